"""Object stores on this machine: S3 by moto, Cloud Storage by gcp-storage-emulator. No request leaves the machine."""

import logging
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer

import fsspec
import pytest


@pytest.fixture(scope="session")
def _s3() -> Iterator[str]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def _gs() -> str:
    # It is read when the module is imported, which then does not ask a store elsewhere for the type of each bucket.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    one_at_a_time = threading.Lock()

    class Handler(emulator.RequestHandler):
        """The emulator's own server waits for one client at a time, which may be idle."""

        def _serve(self) -> None:
            with one_at_a_time:
                emulator.Router(self).handle(self.command)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    storage = emulator.Storage(use_memory_fs=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, storage))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def _environment(protocol: str, endpoint: str, patch: pytest.MonkeyPatch) -> None:
    if protocol == "gs":
        patch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        patch.setenv("NO_GCE_CHECK", "true")  # or it is asked for credentials over the network
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", endpoint)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        logging.getLogger("gcsfs").setLevel(logging.ERROR)
        return
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", "name")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def _bucket(protocol: str, endpoint: str, patch: pytest.MonkeyPatch) -> str:
    """Returns the URL of an empty bucket."""
    _environment(protocol, endpoint, patch)
    fsspec.get_filesystem_class(protocol).clear_instance_cache()
    files = fsspec.filesystem(protocol)
    for number in range(10_000):
        name = f"bucket-{number}"
        if not files.exists(name):
            files.mkdir(name)
            return f"{protocol}://{name}"
    raise AssertionError


@pytest.fixture
def s3(_s3, monkeypatch) -> str:
    """The URL of an empty bucket of S3."""
    return _bucket("s3", _s3, monkeypatch)


@pytest.fixture
def gs(_gs, monkeypatch) -> str:
    """The URL of an empty bucket of Cloud Storage."""
    return _bucket("gs", _gs, monkeypatch)


@pytest.fixture(params=["s3", "gs"])
def bucket(request) -> str:
    """The URL of an empty bucket, of each store in turn."""
    return request.getfixturevalue(request.param)

"""Object stores on this machine: S3 by moto, Cloud Storage by gcp-storage-emulator. No request leaves the machine."""

import logging
from collections.abc import Iterator

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
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    emulator.RequestHandler.timeout = 5  # it serves one connection at a time, which may be idle
    server = emulator.create_server("127.0.0.1", 0, in_memory=True)
    server._api.daemon = True  # its end would wait for idle connections
    server.start()
    host, port = server._api._httpd.socket.getsockname()
    return f"http://{host}:{port}"


def _environment(protocol: str, endpoint: str, patch: pytest.MonkeyPatch) -> None:
    if protocol == "gs":
        patch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        patch.setenv("NO_GCE_CHECK", "true")  # or it is asked for credentials over the network
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

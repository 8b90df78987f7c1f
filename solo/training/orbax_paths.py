"""How Orbax writes checkpoints, depending on where they are stored.

Local folders       are written under another name and renamed once complete.
Folders that a file system refuses to rename, such as buckets mounted with Cloud Storage FUSE, and gs://
                    are written in place. The file that is written last, `commit_success.txt`, marks them as complete.
s3://               is handled in the same way. Orbax 0.12 can list and delete there, but supports only files and gs://
                    for arrays. TensorStore has a driver for S3, which `_add_s3` adds to the three functions that
                    choose a driver.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jax
from orbax.checkpoint import v1 as ocp

from solo.config import ConfigError
from solo.files import is_remote
from solo.training.distributed import from_first


def for_orbax(folder: Path) -> Path:
    """Returns a folder or checkpoint in the form that Orbax expects, and sets up the libraries of its store."""
    _silence_unread_errors()
    if not is_remote(folder):
        return folder.absolute()
    import fsspec

    for protocol in ("gs", "gcs", "s3"):
        # TensorStore and other hosts write without fsspec, so its cached listings would be wrong.
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.ERROR)  # it warns at every call that it cannot look up a bucket's type
    if str(folder).startswith("s3://"):
        _add_s3()
    return folder


def saving_context(folder: Path) -> tuple[ocp.Context, bool]:
    """Returns the context in which Orbax saves into a folder, and whether it writes checkpoints in place.

    All processes must call this function.
    """
    context = ocp.Context()
    in_place = is_remote(folder) or not from_first(lambda: renames_folders(folder))
    if in_place:
        context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
    return context, in_place


def reading_context() -> ocp.Context:
    """Returns a context in which this process reads its part of a checkpoint without waiting for the others.

    By default, Orbax waits up to 300 seconds for all processes after every read. A host with a slow disk would look
    like a damaged checkpoint, and if only one host found damage, the others would wait.
    """
    context = ocp.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    return context


@functools.cache
def _silence_unread_errors() -> None:
    """Keeps asyncio from logging every error of a damaged checkpoint.

    Orbax reads arrays concurrently and raises the first error. The other errors would flood the log.
    """

    def is_read(record: logging.LogRecord) -> bool:
        return "never retrieved" not in (text := record.getMessage()) or "tensorstore" not in text

    logging.getLogger("asyncio").addFilter(is_read)


def renames_folders(folder: Path) -> bool:
    """Returns whether folders in a folder, which is created, can be renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    old, new = (folder / f".rename-{uuid.uuid4().hex}" for _ in range(2))
    try:
        old.mkdir()
        (old / "file").touch()
        old.rename(new)
        return True
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT) and not old.exists():
            raise
        return False
    finally:
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(new, ignore_errors=True)


@functools.cache
def _add_s3() -> None:
    """Makes Orbax use TensorStore's driver for S3. Raises ConfigError if this version of Orbax is not supported."""
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    try:
        uses_bucket, normal = tensorstore_utils._use_gcs_driver, tensorstore_utils._normalize_path
        kvstore = gcs_utils.get_kvstore_for_gcs
    except AttributeError as error:
        import orbax.checkpoint

        raise ConfigError(
            f"run folders on s3:// do not work with orbax-checkpoint {orbax.checkpoint.__version__}: {error}; they do"
            " with 0.12.8"
        ) from None

    def is_s3(path: str) -> bool:
        return str(path).startswith("s3://")

    tensorstore_utils._use_gcs_driver = lambda path: is_s3(path) or uses_bucket(path)
    tensorstore_utils._normalize_path = lambda path: (
        re.sub("^s3:/", "s3://", os.path.normpath(path)) if is_s3(path) else normal(path)
    )
    gcs_utils.get_kvstore_for_gcs = lambda path: s3_kvstore(str(path)) if is_s3(path) else kvstore(path)


def s3_kvstore(url: str) -> dict[str, Any]:
    """Returns TensorStore's spec of a place on S3.

    Credentials are found in the same places as by the AWS tools. TensorStore does not read AWS_ENDPOINT_URL, so its
    value is passed on; with an endpoint, TensorStore does not look up the region either.
    """
    parts = urlsplit(url)
    spec: dict[str, Any] = {"driver": "s3", "bucket": parts.netloc, "path": parts.path.lstrip("/")}
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        spec["aws_credentials"] = {"type": "environment"}  # the default looks for files, and complains of each
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    elif region:
        spec |= {"aws_region": region}
    return spec

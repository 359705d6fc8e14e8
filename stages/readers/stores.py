"""Where files are: the local disk, buckets (pyarrow) and the Hugging Face hub (huggingface_hub)."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from stages.readers.places import DataFile, ReadError, is_remote

SCHEMES = ("s3", "gs", "hf")
_HUB = re.compile(r"datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?P<path>/.*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHUNK = 1 << 20


class Handle:
    """An open file. A failure to read it raises ``ReadError``: a lost connection is no fault of the data, and must not
    be mistaken for its end."""

    closed = False

    def __init__(self, file: Any, uri: str) -> None:
        self._file, self._uri = file, uri

    def read(self, size: int = -1, /) -> bytes:
        try:
            data: bytes = self._file.read() if size < 0 else self._file.read(size)
        except OSError as error:
            raise ReadError(f"{self._uri} cannot be read: {error}") from error
        return data

    def seek(self, position: int, whence: int = 0, /) -> int:
        self._file.seek(position, whence)
        return self.tell()

    def tell(self) -> int:
        position: int = self._file.tell()
        return position

    def close(self) -> None:
        """Nothing: whoever opened the file closes it, not a decompressor that was given it."""


def filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow file system of a remote location, and the path on it.

    Raises:
        ReadError: the scheme is unknown, or the store cannot be reached.
    """
    from pyarrow import fs

    scheme, _, rest = uri.partition("://")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ReadError(f"{uri}: {scheme}:// is not known; use {known} or a local path")
    if scheme == "hf":
        return fs.PyFileSystem(fs.FSSpecHandler(hub())), rest
    bucket, _, key = rest.partition("/")
    with reaching(uri):
        found, root = fs.FileSystem.from_uri(f"{scheme}://{bucket}")
    return found, f"{root}/{key}" if key else root


def hub() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


def hub_commit(repository: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(repository, revision=revision).sha)


def pinned(uri: str) -> str:
    """A location on the hub with its revision as a commit, so that what is listed is what is read later.

    Raises:
        ReadError: it does not name a dataset, or the hub does not have it.
    """
    match = _HUB.fullmatch(uri.removeprefix("hf://"))
    if match is None:
        raise ReadError(f"{uri}: expected hf://datasets/OWNER/NAME[@REVISION][/PATH]")
    revision = match["revision"] and unquote(match["revision"])
    if not revision or not _COMMIT.fullmatch(revision):
        with reaching(uri):
            revision = hub_commit(match["repo"], revision)
    return f"hf://datasets/{match['repo']}@{revision}{match['path'] or ''}"


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Whatever a remote store's library raises becomes a ``ReadError``."""
    try:
        yield
    except ReadError:
        raise
    except Exception as error:  # each library, and what it is built on, has its own errors
        reason = str(error).partition("\n")[0]
        raise ReadError(f"{uri} cannot be reached ({type(error).__name__}: {reason}); check the name, the network and "
                        "the credentials") from error  # fmt: skip


def file_at(uri: str, name: str = "") -> DataFile:
    """The file at a path or URI; its name is the path's last part unless given.

    Raises:
        ReadError: there is no such file, or it is not a regular file.
    """
    if not is_remote(uri):
        path = Path(os.path.abspath(uri))  # not resolved: the name, and with it the suffix, is the link's
        if not path.exists():
            raise ReadError(f"{path} does not exist")
        if not path.is_file():
            raise ReadError(f"{path} is not a regular file")
        return DataFile(str(path), name or path.name, path.stat().st_size)
    store, path_there = filesystem(uri)
    with reaching(uri):
        info = store.get_file_info(path_there)
    if not info.is_file:
        raise ReadError(f"{uri} does not exist")
    return DataFile(uri, name or uri.rpartition("/")[2], info.size or 0)


@contextmanager
def opened(file: DataFile) -> Iterator[Handle]:
    """The file for reading at any position.

    Raises:
        ReadError: it cannot be opened.
    """
    if not file.remote:
        try:
            handle = open(file.uri, "rb")  # noqa: SIM115 (closed below, with those of other stores)
        except OSError as error:
            raise ReadError(f"{file.uri} cannot be read: {error.strerror}") from error
    else:
        store, path = filesystem(file.uri)
        with reaching(file.uri):
            handle = store.open_input_file(path)
    with handle:
        yield Handle(handle, file.uri)


def identity(file: DataFile) -> str:
    """SHA-256 (hex) that changes with the content. A local file's bytes are hashed. A remote file is not downloaded: on
    the hub its stored hash counts, in a bucket the address, size and modification time.

    Raises:
        ReadError: the file cannot be read, or is gone.
    """
    digest = hashlib.sha256()
    if not file.remote:
        with opened(file) as handle:
            while chunk := handle.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()
    store, path = filesystem(file.uri)
    with reaching(file.uri):
        if file.uri.startswith("hf://"):
            known = hub().info(path)
            told = [(known.get("lfs") or {}).get("sha256") or known.get("blob_id"), known["size"]]
            if not told[0]:
                raise ReadError(f"{file.uri}: the hub keeps no hash of it; download it and name the local file")
        else:
            info = store.get_file_info(path)
            if not info.is_file:
                raise ReadError(f"{file.uri} does not exist")
            told = [file.uri, info.size, info.mtime_ns]
    digest.update(json.dumps(told).encode())
    return digest.hexdigest()

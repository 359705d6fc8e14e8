"""A file's bytes in blocks, decompressed, in flat memory however much comes out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from stages.readers.places import Limits, ReadError
from stages.readers.stores import Handle

BLOCK = 256 << 10
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_STEP = 64 << 10


class Broken(Exception):
    """The file cannot be read beyond this point; what came before is good."""


def compression(head: bytes) -> str | None:
    """How a file that begins with ``head`` is compressed: ``.gz``, ``.zst`` or not at all."""
    return ".gz" if head.startswith(_GZIP) else ".zst" if head.startswith(_ZSTD) else None


def decompressed(handle: Handle, kind: str | None, limits: Limits) -> Iterator[bytes]:
    """The blocks of a file from its start.

    Raises:
        Broken: the compressed stream is cut off or damaged, or a decompression bomb. All blocks before it were given.
    """
    handle.seek(0)
    if kind is None:
        yield from _raw(handle)
        return
    out = 0
    for block in _gunzip(handle) if kind == ".gz" else _unzstd(handle):
        out += len(block)
        if out > limits.max_bytes:
            raise Broken(f"decompresses to more than {limits.max_bytes:,} bytes (a decompression bomb?)")
        if out > limits.ratio_from and out > limits.max_ratio * handle.tell():
            raise Broken(f"decompresses to more than {limits.max_ratio:g} times its size: a decompression bomb")
        if block:
            yield block


def _raw(handle: Handle) -> Iterator[bytes]:
    while block := handle.read(BLOCK):
        yield block


def _gunzip(handle: Handle) -> Iterator[bytes]:
    """Members of a gzip file one after another, zeros (padding) between or after them skipped."""
    stream = zlib.decompressobj(31)
    begun = False
    for block in _raw(handle):
        data, waiting = block, False
        while data or waiting:
            if not begun:
                data = data.lstrip(b"\0")
                if not data:
                    break
                begun = True
            before = stream.copy()
            try:
                out = stream.decompress(data, BLOCK)
            except zlib.error as error:
                yield from _rescued(before, data)
                raise Broken(f"damaged gzip: {error}") from None
            yield out
            data, waiting = stream.unconsumed_tail, len(out) == BLOCK  # it may still hold back output
            if stream.eof:
                data, waiting, begun = stream.unused_data, False, False
                stream = zlib.decompressobj(31)
    if begun:
        raise Broken("the gzip stream is cut off: the file is not whole")


def _rescued(stream: Any, data: bytes) -> Iterator[bytes]:
    """What comes out before the error: a failing zlib call returns nothing, so ask for halves, then less."""
    size = BLOCK
    while size := size // 2:
        trial = stream.copy()
        try:
            part = trial.decompress(data, size)
        except zlib.error:
            continue
        yield part
        stream, data = trial, trial.unconsumed_tail


def _unzstd(handle: Handle) -> Iterator[bytes]:
    """Arrow's decompressor returns nothing from a failing read, so what led there is read again byte by byte."""
    import pyarrow as pa

    done, step = 0, _ZSTD_STEP
    while True:
        handle.seek(0)
        stream = pa.CompressedInputStream(pa.PythonFile(handle, mode="r"), "zstd")
        _skip(stream, done)
        try:
            while block := stream.read(step):
                done += len(block)
                yield block
        except ReadError:
            raise
        except OSError as error:
            if step == 1:
                cut = "Truncated" in str(error)
                reason = "the zstd stream is cut off: the file is not whole" if cut else f"damaged zstd: {error}"
                raise Broken(reason) from None
            step = 1
        else:
            return


def _skip(stream: Any, size: int) -> None:
    while size:
        size -= len(stream.read(min(size, _ZSTD_STEP)))


class Blocks:
    """Blocks whose first bytes can be looked at before they are read."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._held = bytearray()
        self._broken: Broken | None = None

    def head(self, size: int) -> bytes:
        """The first ``size`` bytes, or all there are."""
        while len(self._held) < size and self._pull():
            pass
        return bytes(self._held[:size])

    def first_line(self, most: int) -> bytes | None:
        """The first line with its end if it has one; None if it has more than ``most`` bytes."""
        searched = 0
        while (end := self._held.find(b"\n", searched)) < 0:
            searched = len(self._held)
            if searched > most:
                return None
            if not self._pull():
                return bytes(self._held)
        return bytes(self._held[: end + 1])

    def drop(self, size: int) -> None:
        """Skip the first bytes, which were looked at."""
        del self._held[:size]

    def _pull(self) -> bool:
        try:
            block = next(self._blocks, None)
        except Broken as broken:
            self._broken, self._blocks = broken, iter(())
            return False
        self._held += block or b""
        return block is not None

    def __iter__(self) -> Iterator[bytes]:
        """Raises what ``decompressed`` does."""
        if self._held:
            yield bytes(self._held)
            self._held.clear()
        yield from self._blocks
        if self._broken is not None:
            raise self._broken

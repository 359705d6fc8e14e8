"""Which container a file is, told by its first bytes, and its rows."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

from stages.core.errors import RowError
from stages.readers import arrays, csvtext, lines, stores
from stages.readers.places import DataFile, Limits, Place, Row
from stages.readers.streams import Blocks, Broken, compression, decompressed
from stages.readers.suffixes import compressed_suffix, container_suffix

_HEAD = 4096
_BOM = b"\xef\xbb\xbf"
_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff"
_UTF16 = "UTF-16 or UTF-32 text; write it as UTF-8 (iconv -f UTF-16 -t UTF-8)"
_REFUSED = (
    (rb"\x80[\x02-\x05]", "a Python pickle, which could run code when it is loaded; save the data as JSONL or Parquet"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive (xlsx, npz and PyTorch files are such); unpack it, or save as CSV"),
    (rb"\x93NUMPY", "a NumPy file; save the data as JSONL or Parquet"),
    (rb"\x7fELF|MZ.{0,62}\0|\xcf\xfa\xed\xfe|\xca\xfe\xba\xbe|\xfe\xed\xfa[\xce\xcf]", "an executable"),
    (rb"#!\s*/", "a script"),
    (rb"\xff\xfe|\xfe\xff|\0\0\xfe\xff", _UTF16),
    (rb"[\t-~]\0[\t-~]\0|\0[\t-~]\0[\t-~]", _UTF16),
    (rb"version https://git-lfs", "a Git LFS pointer and not the data itself; run git lfs pull"),
    (rb"(?i:\s*<(!doctype|html|\?xml))", "a web page or XML; was a page saved in place of the file?"),
    (rb"FEA1\0", "a Feather file of version 1; save it as Arrow or Parquet"),
    (rb"%PDF-", "a PDF"),
    (rb"SQLite format 3\0", "a SQLite database; export the table as CSV"),
    (rb"BZh[1-9]1AY|\xfd7zXZ|7z\xbc\xaf|Rar!\x1a", "compressed in a way that is not read; use gzip or zstd"),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd", "compressed twice; decompress it once"),
    (rb".{257}ustar", "a tar archive; unpack it"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF.{4}W", "an image or sound"),
    (rb"\x89HDF|GGUF[\x01-\x08]\0|Obj\x01", "a binary format that is not read; save the data as JSONL or Parquet"),
)
_PATTERNS = [(re.compile(pattern, re.DOTALL), what) for pattern, what in _REFUSED]


def rows(file: DataFile, limits: Limits = Limits()) -> Iterator[Row]:  # noqa: B008 (frozen)
    """The rows of a file, in order, in flat memory. A fault in a row or the file is a row whose value is a
    ``RowError``: one at the place where a damaged file breaks off, one for the whole of a file that is not data. An
    empty file has no rows.

    Raises:
        ReadError: the file cannot be opened, or reading it failed for a reason outside the file.
    """
    with stores.opened(file) as handle:
        kind = compression(handle.read(4))
        said = compressed_suffix(file.name)
        if said is not None and kind is None and file.size:
            reason = f"named {said}, but it is not; it is damaged, or needs another name"
            yield Row(Place(file.name), RowError("", reason))
            return
        blocks = Blocks(decompressed(handle, kind, limits))
        try:
            container = _container(blocks, container_suffix(file.name) or "", limits)
        except RowError as error:
            yield Row(Place(file.name), error, blocks.head(lines.SHOWN))
            return
        if container in (_PARQUET, _ARROW_FILE, _ARROW_STREAM):
            handle.seek(0)
            yield from _columns(container, file, handle if kind is None else blocks, limits)
        elif container == b"csv":
            yield from csvtext.read(blocks, file.name, limits, container_suffix(file.name) or ".csv")
        else:
            reader = arrays.read if container == b"json" else lines.read
            yield from reader(blocks, file.name, limits)


def _container(blocks: Blocks, suffix: str, limits: Limits) -> bytes:
    """A magic word, ``csv``, ``json`` (an array, or an object around one) or ``lines``.

    Raises:
        RowError: the first bytes are those of something else.
    """
    head = blocks.head(_HEAD)
    for magic in (_PARQUET, _ARROW_FILE, _ARROW_STREAM):
        if head.startswith(magic):
            return magic
    for pattern, what in _PATTERNS:
        if pattern.match(head):
            raise RowError("", what)
    if suffix in (".parquet", ".arrow") and head:
        raise RowError("", f"named {suffix}, but it does not begin like such a file")
    if head.startswith(_BOM):
        blocks.drop(len(_BOM))
        head = head[len(_BOM) :]
    begins = head.lstrip()[:1]
    if begins and begins in b"[{":
        return _json(blocks, begins, suffix, limits)
    return b"csv" if suffix in (".csv", ".tsv") else b"lines"


def _json(blocks: Blocks, begins: bytes, suffix: str, limits: Limits) -> bytes:
    """One JSON text, or one per line: the latter if the first line is whole and more follow, whatever the suffix."""
    line = blocks.first_line(limits.max_row_bytes)
    many = suffix in (".jsonl", ".ndjson")
    if line is None:
        return b"lines" if many and begins == b"{" else b"json"
    follows = blocks.head(len(line) + _HEAD)[len(line) :]
    if _whole(line):
        return b"lines" if follows.strip() or (many and begins == b"{") else b"json"
    # a first line that is not JSON: damaged, or the first of several that form one text
    alone = not follows.strip()
    ended = follows.startswith(b"{") and not line.rstrip().endswith((b",", b":", b"[", b"{"))
    return b"lines" if begins == b"{" and (ended or (many and alone)) else b"json"


def _whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _columns(container: bytes, file: DataFile, source: Any, limits: Limits) -> Iterator[Row]:
    """Rows of a table. One that is compressed as a whole is decompressed to a temporary file first: its end is needed
    before its start."""
    import pyarrow as pa

    from stages.readers import columns

    with ExitStack() as stack:
        broken = None
        plain = not isinstance(source, Blocks)
        if not plain:
            source, broken = _spooled(source, stack.enter_context(tempfile.TemporaryFile()))
        if container == _PARQUET:
            if broken:
                yield Row(Place(file.name), RowError("", broken))
            else:
                yield from columns.parquet(pa.PythonFile(source, mode="r"), file.name, limits)
            return
        # mapped where it can be: a batch of any size then takes no memory
        mapped = plain and not file.remote
        handle = stack.enter_context(pa.memory_map(file.uri)) if mapped else pa.PythonFile(source, mode="r")
        if container == _ARROW_FILE:
            handle.seek(len(_ARROW_FILE))
        yield from columns.arrow(handle, file.name, limits, broken)


def _spooled(blocks: Blocks, spool: IO[bytes]) -> tuple[IO[bytes], str | None]:
    """A file with all blocks, and why they end early if they do."""
    broken = None
    try:
        for block in blocks:
            spool.write(block)
    except Broken as error:
        broken = str(error)
    spool.seek(0)
    return spool, broken

"""What a reader returns: files, rows, and the place of each row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from stages.core.errors import RowError

EXCERPT = 200
"""How many characters of a row are shown."""
_PLACE = re.compile(r"(?P<file>.*):(?:(?P<line>\d+)|(?:group (?P<row_group>\d+) )?row (?P<row>\d+)|file)", re.DOTALL)
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://")


class ReadError(Exception):
    """A location cannot be read: the message says what is wrong and what to do."""


class NoFiles(ReadError):
    """A folder or a glob without files: there may be some later."""


@dataclass(frozen=True)
class Limits:
    """How much a file may demand of the machine."""

    max_row_bytes: int = 16 << 20
    """A longer row is refused, and never held whole."""
    max_ratio: float = 500.0
    """A stream that decompresses to more than this times its size is a decompression bomb ..."""
    ratio_from: int = 64 << 20
    """... once this many bytes have come out of it."""
    max_bytes: int = 256 << 30
    """A compressed file may decompress to no more than this."""


@dataclass(frozen=True)
class DataFile:
    """A file that rows are read from."""

    uri: str
    """Absolute path, or URI: all that another machine needs to open it (credentials come from its environment)."""
    name: str
    """For people; unique within its listing."""
    size: int
    """Bytes, as stored."""

    @property
    def remote(self) -> bool:
        return is_remote(self.uri)


def is_remote(location: str) -> bool:
    return _REMOTE.match(location) is not None


@dataclass(frozen=True)
class Place:
    """Where a row is: a line of a text, or a row of a (row group of a) table; with none of these, the file as a
    whole. Lines and rows count from 1, row groups from 0. Lines are those of the decompressed text."""

    file: str
    line: int | None = None
    row_group: int | None = None
    row: int | None = None

    def __str__(self) -> str:
        if self.line is not None:
            return f"{self.file}:{self.line}"
        if self.row is None:
            return f"{self.file}:file"
        group = "" if self.row_group is None else f"group {self.row_group} "
        return f"{self.file}:{group}row {self.row}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """The place that ``str`` turned into ``text``; a text of another form is a file's name."""
        match = _PLACE.fullmatch(text)
        if match is None:
            return cls(text)
        numbers = {name: int(match[name]) if match[name] else None for name in ("line", "row_group", "row")}
        return cls(match["file"], **numbers)


class Row(NamedTuple):
    """A row, or why there is none."""

    place: Place
    value: Mapping[str, Any] | RowError
    text: bytes | str = ""
    """How the row begins, if the file is text."""
    typed: bool = False
    """Whether its objects have all fields of their column, null where they lack one."""

    @property
    def excerpt(self) -> str:
        """The first characters of the row, which any text encoding can hold."""
        text = self.text
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        if not text and not isinstance(self.value, RowError):
            short = {name: value[:EXCERPT] if isinstance(value, str) else value for name, value in self.value.items()}
            text = json.dumps(short, ensure_ascii=False, default=str)
        return text[:EXCERPT].encode("utf-8", "replace").decode()

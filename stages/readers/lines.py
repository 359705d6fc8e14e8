"""Lines of a text, and JSON Lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stages.core.errors import RowError
from stages.readers.jsontext import decode
from stages.readers.places import EXCERPT, Limits, Place, Row
from stages.readers.streams import Broken

SHOWN = 4 * EXCERPT
"""Bytes enough for an excerpt in UTF-8."""


def too_long(limits: Limits) -> RowError:
    return RowError("", f"longer than {limits.max_row_bytes:,} bytes")


def lines(blocks: Iterable[bytes], most: int) -> Iterator[tuple[bytes, bool]]:
    """Each line without its newline, and whether it is whole: of one longer than ``most`` bytes only the beginning is
    kept. A line that the file breaks off in is not returned.

    Raises:
        Broken: when the blocks do.
    """
    held: list[bytes] = []
    size = 0
    for block in blocks:
        first, *others = block.split(b"\n")
        for piece in others:
            size += len(first)
            held.append(first)
            line = held[0] if len(held) == 1 else b"".join(held)
            yield (line, True) if size <= most else (line[:SHOWN], False)
            held, size, first = [], 0, piece
        size += len(first)
        held.append(first)
        if size > most:
            held = [b"".join(held)[:SHOWN]]
    if size:
        yield b"".join(held), size <= most


def read(blocks: Iterable[bytes], file: str, limits: Limits) -> Iterator[Row]:
    """Rows of JSON Lines; empty lines are skipped."""
    number = 0
    try:
        for number, (line, whole) in enumerate(lines(blocks, limits.max_row_bytes), 1):
            if not line or line.isspace():
                continue
            place = Place(file, number)
            if not whole:
                yield Row(place, too_long(limits), line)
                continue
            try:
                yield Row(place, decode(line), line[:SHOWN])
            except RowError as error:
                yield Row(place, error, line[:SHOWN])
    except Broken as broken:
        yield Row(Place(file, number + 1), RowError("", str(broken)))

"""Which suffixes name data."""

from __future__ import annotations

COMPRESSED = (".gz", ".zst")
CONTAINERS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
KNOWN = f"{', '.join(CONTAINERS)}, each also with {' or '.join(COMPRESSED)}"


def container_suffix(name: str) -> str | None:
    """The suffix that says what is in a file, without that of its compression; None if it is unknown."""
    lower = name.lower()
    for suffix in COMPRESSED:
        lower = lower.removesuffix(suffix)
    return next((suffix for suffix in CONTAINERS if lower.endswith(suffix)), None)


def compressed_suffix(name: str) -> str | None:
    return next((suffix for suffix in COMPRESSED if name.lower().endswith(suffix)), None)

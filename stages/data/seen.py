"""What there was before: records of earlier ticks of a schedule, by the ids of pairs and the keys of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.core.records import id_numbers, messages_of, prompt_key
from stages.io.artifact import Table
from stages.io.tables import stream_columns


def pairs_seen(files: Sequence[Sequence[Table]], seen: Sequence[Table]) -> NDArray[np.bool_]:
    """Which of the files' pairs, in their order, stand among the rows ``seen``, both given as rows of ``PAIRS``.

    Only the files' ids are held, 8 bytes each, and those of ``seen`` are looked up among them a few at a time: what
    was seen grows with every tick.
    """
    ids = [id_numbers(table["pair_id"]) for file in files for table in stream_columns(file, ["pair_id"])]
    own, places = np.unique(np.concatenate([np.zeros(0, np.uint64), *ids]), return_inverse=True)
    found = np.zeros(len(own), np.bool_)
    for table in stream_columns(seen, ["pair_id"]):
        numbers = id_numbers(table["pair_id"])
        at = np.searchsorted(own, numbers)
        inside = at < len(own)
        at = at[inside]
        found[at[own[at] == numbers[inside]]] = True
    return found[places]


def prompt_keys(tables: Sequence[Table]) -> set[str]:
    """The keys of prompts, given as rows of ``PROMPTS``."""
    streamed = stream_columns(tables, ["messages"])
    return {prompt_key(messages_of(row)) for table in streamed for row in table["messages"].to_pylist()}

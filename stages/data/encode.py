"""Pairs become token ids through the model's chat template, once for each file of pairs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from stages.base import Summary
from stages.core.errors import RowError
from stages.core.records import TOKENS
from stages.core.tokens.encoding import encode_records
from stages.data.badrows import after
from stages.data.config import EncodeConfig
from stages.io.artifact import Artifact
from stages.io.context import StageContext
from stages.io.filenames import RECORDS, TOKENISED
from stages.io.output import PartWriter
from stages.io.parts import run_parts, slices
from stages.io.quarantine import Quarantine
from stages.io.tables import Rows

SLICE = 1000
"""Pairs of a part: the n-th part has the tokens of the n-th so many pairs."""

_ROWS_EACH = 2000


def run(config: EncodeConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Tokenise all pairs in slices, in parallel; a part has the ``tokens.arrow`` of a slice, in the pairs' order.

    A row that cannot be encoded is missing there: ``row`` says which pair each row is.
    """
    pairs = inputs["pairs"]
    total = sum(table.rows for table in pairs.tables(RECORDS))
    counts = run_parts(
        slices(total, SLICE), "stages.data.encode:Encoder", context, "pairs", rows_each=_ROWS_EACH,
        config=config, pairs=pairs, policy=inputs["policy"],
    )  # fmt: skip
    made = {"pairs": counts.pop("rows"), **counts}
    return {**made, **after(pairs.summary, total, counts).summary()}


class Encoder:
    """Turns slices of pairs into rows of ``TOKENS``."""

    def __init__(self, config: EncodeConfig, pairs: Artifact, policy: Artifact) -> None:
        from stages.policy.load import load_encoder  # here, since the driver does not import transformers

        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many workers as CPUs
        self._config = config
        self._encoder = load_encoder(policy.folder())
        self._rows = Rows(pairs.tables(RECORDS))

    def __call__(self, task: Mapping[str, Any], part: PartWriter) -> None:
        records = self._rows.slice(task["start"], task["stop"])
        found = encode_records(self._encoder, records, self._config.max_length, self._config.truncation)
        quarantine = part.quarantine
        for row, error in found.errors:
            quarantine.add(_rejected(records, row, error))
        tokens = found.table.append_column(TOKENS.field("row"), pa.array(found.rows + task["start"], pa.int64()))
        part.table(TOKENISED, [tokens], TOKENS)
        cut = {"truncated_prompts": found.prompt_cut, "truncated_responses": found.response_cut}
        part.counts |= {name: int(rows.sum()) for name, rows in cut.items()}


def _rejected(records: pa.Table, row: int, error: RowError) -> dict[str, str]:
    (record,) = records.slice(row, 1).to_pylist()
    return Quarantine.row(record["source"], error, record["prompt"][-1]["content"] or "")

"""The quality report on records: ``report.json`` and ``report.html``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from stages.base import StageError, Summary
from stages.data.config import QualityConfig
from stages.data.quality.lengths import Count
from stages.data.quality.report import html, report
from stages.data.quality.survey import survey
from stages.io.artifact import Artifact, grouped
from stages.io.context import StageContext
from stages.io.filenames import RECORDS, REPORT_HTML, REPORT_JSON
from stages.io.output import Output
from stages.io.parts import run_alone


def run(config: QualityConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    made: Summary = run_alone("stages.data.quality.stage:look", context, config, dict(inputs))
    return made


def look(
    output: Output, progress: Callable[[int, int, str], None], config: QualityConfig, inputs: Mapping[str, Artifact]
) -> Summary:
    """Look at all pairs (``pairs.N``), beside the held-out prompts (``heldout``) if there are any; with a ``policy``
    lengths are in its tokens. Returns the counts and each finding's level and count.

    Raises:
        StageError: there is no row.
    """
    files = [artifact.tables(RECORDS) for artifact in grouped(inputs, "pairs")]
    heldout = [table for artifact in grouped(inputs, "heldout") for table in artifact.tables(RECORDS)]
    count = _tokens(inputs["policy"].folder()) if "policy" in inputs else None
    found = survey(files, heldout, config, count, progress)
    if not len(found.records):
        raise StageError("no pairs to report on: the files have no usable row")
    value = report(found)
    written = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)
    with output.part("report") as part:
        (part.folder / REPORT_JSON).write_text(written + "\n", encoding="utf-8")
        (part.folder / REPORT_HTML).write_text(html(value), encoding="utf-8")
    return {
        **{name: value[name] for name in ("rows", "paired", "unpaired", "prompts")},
        "findings": {finding["name"]: finding["count"] for finding in value["findings"]},
        "look": [finding["name"] for finding in value["findings"] if finding["level"] == "look"],
    }


def _tokens(policy: Path) -> Count:
    from stages.policy.load import load_tokenizer

    tokenizer = load_tokenizer(policy)
    return lambda texts: [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]

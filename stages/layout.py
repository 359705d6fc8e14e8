"""Names of the files inside artifacts, for the stages that write and those that read them."""

from __future__ import annotations

from pathlib import Path

MODEL = "model"
"""In every policy: a folder in Hugging Face format."""
ADAPTER = "adapter"
"""In a policy trained with an adapter: the adapter in PEFT format. Merged into ``model`` too, but for virtual tokens,
which cannot be (``stages.adapter_types.prompt_adapter``)."""
RECORDS = "records.arrow"
QUARANTINE = "quarantine.jsonl"
TOKENISED = "tokens.arrow"
SELECTION = "selection.arrow"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
METRICS = "metrics.jsonl"
"""In a trained policy: one row of metrics an optimizer step."""


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.arrow"


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.arrow"))

"""Names of the files inside artifacts, for the stages that write and those that read them."""

from __future__ import annotations

from pathlib import Path

MODEL = "model"
"""In every policy: a folder in Hugging Face format."""
ADAPTER = "adapter"
"""In a policy trained with an adapter: the adapter in PEFT format. Also merged into ``model``, except for virtual
tokens, which cannot be (``stages.policy.adapter_settings.prompt_adapter``)."""
CHAT = "chat.json"
"""In a policy whose spec says so: what its chat template is told besides the conversation, such as today's date."""
RECORDS = "records.arrow"
QUARANTINE = "quarantine.jsonl"
TOKENISED = "tokens.arrow"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
SELECTION = "selection.arrow"
"""Which pairs of which inputs are used, and how (``stages.data.curate``)."""
ANNOTATORS = "annotators.json"
"""Next to a selection based on votes: every annotator's quality."""
METRICS = "metrics.jsonl"
"""In a trained policy: one row of metrics per optimizer step."""


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.arrow"


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.arrow"))

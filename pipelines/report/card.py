"""A model card of an exported champion: Markdown with the front matter that the Hugging Face hub reads.

What is not known is left out. Text that people or data wrote is escaped: it can neither add HTML nor break a table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

Record = Mapping[str, Any]
_MARKUP = re.compile(r"([\\`*_\[\]|~$])")
_TAG = re.compile(r"\w+")
_USUAL = "sigmoid"


def text(about: Record, adapter: str | None = None) -> str:
    """The card of what ``pipelines.run.export.document`` tells; ``adapter`` is the folder of virtual tokens, if any."""
    sections = {
        "": _what(about),
        "Use": _use(adapter),
        "Base model": _base(about),
        "Champions before": _before(about),
        "Data": _data(about),
        "Rounds": _rounds(about),
        "Evaluation": _evaluation(about),
        "Settings": _settings(about),
        "Versions": _versions(about),
        "Lineage": _lineage(about),
    }
    parts = [_front(about), f"# {about['pipeline']}, champion {about['champion']['number']}"]
    for title, lines in sections.items():
        if lines:
            parts += [f"## {title}"] if title else []
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def escaped(value: Any) -> str:
    """Text of others on one line of Markdown, as it reads."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", line)


def _front(about: Record) -> str:
    losses = [name for each in about["rounds"] if each["used"] for name in _losses(each["settings"])]
    lora = any(each["settings"].get("lora") for each in about["rounds"] if each["used"])
    tags = [
        "dpo",
        "rondo",
        *(name for name in losses if name != _USUAL and _TAG.fullmatch(name)),
        *(["lora"] if lora else []),
    ]
    hub = (about["base"] or {}).get("hub")
    matter = {
        **({"base_model": hub} if hub else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(tags)),
    }
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---"


def _losses(settings: Record) -> list[str]:
    losses = settings.get("loss") or []
    losses = [losses] if isinstance(losses, str | Mapping) else losses
    return [str(each.get("use") if isinstance(each, Mapping) else each) for each in losses]


def _what(about: Record) -> list[str]:
    entry, restores = about["champion"], about.get("restores")
    lines = [
        f"Champion {entry['number']} of the pipeline {about['pipeline']} since {escaped(entry['since'])}, trained by "
        "preference optimization with Rondo.",
        "",
        f"Why it became champion: {escaped(entry['reason'])}",
    ]
    if restores:
        lines.append(f"(It restores champion {restores['number']}: {escaped(restores['reason'])})")
    return lines


def _use(adapter: str | None) -> list[str]:
    lines = [
        "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
        'folder = "path/to/this/folder"', "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
    ]  # fmt: skip
    if adapter:
        lines += ["", "# Its virtual tokens are an adapter that the model is not whole without.",
                  "from peft import PeftModel", "",
                  f'model = PeftModel.from_pretrained(model, folder + "/{adapter}")']  # fmt: skip
    return [*lines, "```"]


def _base(about: Record) -> list[str]:
    base = about["base"]
    if not base:
        return []
    name = base.get("hub") or base.get("source")
    lines = [f"- {escaped(name)}" + (f" at revision {escaped(base['revision'])}" if base.get("revision") else "")]
    if base.get("parameters"):
        lines.append(f"- {_number(base['parameters'])} parameters")
    if base.get("adapter"):
        lines.append(f"- with an adapter merged into it ({base['adapter'][:16]})")
    return lines


def _before(about: Record) -> list[str]:
    lines = [f"- {each['champion']} since {escaped(each['since'])}: {escaped(each['reason'])}"
             for each in about["champions_before"]]  # fmt: skip
    return ["Trained from these, the newest first:", "", *lines] if lines else []


def _data(about: Record) -> list[str]:
    lines = []
    for each in about["artifacts"]:
        files = [file for file in about["files"] if file["of"] == each["fingerprint"]]
        if each["stage"] == "ingest" and files:
            prompts = each["config"].get("kind") == "prompts"
            kind = "held-out prompts" if each["key"] == "heldout" else "prompts" if prompts else "preferences"
            named = "".join(f" {escaped(file['name'])}" for file in files if "name" in file)
            identities = ", ".join(file["fingerprint"][:16] for file in files)
            rows = each["summary"].get("rows")
            count = "" if rows is None else f": {_number(rows)} {'prompts' if prompts else 'pairs'}"
            lines.append(f"- {kind}{named} ({identities}){count}")
    for each in about["artifacts"]:
        summary = each["summary"]
        if each["stage"] == "curate" and "training" in summary:
            used = f"{_number(summary['training'])} pairs to train on, {_number(summary.get('heldout', 0))} held out"
            lines.append(f"- chosen of {_number(summary.get('pairs', 0))} given pairs: {used}")
    return lines


def _rounds(about: Record) -> list[str]:
    rows = []
    for number, each in enumerate(about["rounds"], 1):
        settings = each["settings"]
        rows.append([
            str(number), escaped(each["key"] or ""), escaped(" + ".join(_losses(settings))),
            _number(settings.get("beta")), _number(settings.get("learning_rate")), _number(settings.get("batch_size")),
            escaped(_adapter(settings)), _number(each["pairs"]), _number(each["loss"]),
            _number(each["reward_accuracy"]), _number(each["kl"]), _came_of(each),
        ])  # fmt: skip
    names = ("#", "step", "loss function", "beta", "learning rate", "batch size", "adapter", "pairs", "loss",
             "reward accuracy", "KL", "")  # fmt: skip
    return _table(names, rows)


def _adapter(settings: Record) -> str:
    if lora := settings.get("lora"):
        return f"LoRA, rank {lora.get('rank', 16)}"
    return str((settings.get("peft") or {}).get("peft_type", ""))


def _came_of(each: Record) -> str:
    if not each["used"]:
        return "not promoted, no part of this model" if each["promoted"] is False else "no part of this model"
    return {True: "promoted", False: "not promoted", None: ""}[each["promoted"]]


def _evaluation(about: Record) -> list[str]:
    of = {each["fingerprint"]: str(number) for number, each in enumerate(about["rounds"], 1)}
    lines = []
    for each in about["evaluations"]:
        rate = each["win_rate"]
        against = f" against {escaped(each['against'])}" if each["against"] else ""
        judge = f", judged by {escaped(each['judge'])}" if each["judge"] else ""
        scores = [each["baseline_score"], each["judge_score"]]
        score = "" if None in scores else f"; mean score {_number(scores[0])} before, {_number(scores[1])} now"
        name = f"- round {of.get(each['policy'], '?')}{against}"
        lines.append(f"{name}: {_rate(rate, each['confidence'])}{_length(each)}{judge}{score}")
    if not lines and (rate := _evidence(about)):
        lines.append(f"- when it became champion: {_rate(rate, None)}")
    names = {"loss": "loss", "reward_accuracy": "reward accuracy", "reward_margin": "reward margin", "kl": "KL"}
    for each in about["heldout"]:
        measures = [f"{name} {_number(each[key])}" for key, name in names.items() if each.get(key) is not None]
        lines.append(f"- round {of.get(each['policy'], '?')} on {_number(each.get('pairs'))} held-out pairs: "
                     + ", ".join(measures))  # fmt: skip
    return lines


def _evidence(about: Record) -> Any:
    """What the run that made it champion had measured, where the measurements themselves are gone."""
    entry = about.get("restores") or about["champion"]
    rate = entry.get("evidence", {}).get("win_rate")
    return rate if isinstance(rate, Mapping) and "mean" in rate else None


def _length(each: Record) -> str:
    """Whether it wins because its answers are longer."""
    controlled, ratio = each["length_controlled"], each["length_ratio"]
    if not controlled or ratio is None:
        return ""
    return f"; {_number(controlled['mean'])} with length controlled, its answers being {ratio:.2f} times as long"


def _rate(rate: Record, confidence: float | None) -> str:
    level = f", {100 * confidence:g}% interval" if confidence else ""
    between = f" ({_number(rate['low'])} to {_number(rate['high'])}{level})" if "low" in rate and "high" in rate else ""
    prompts = f" on {_number(rate['prompts'])} prompts" if "prompts" in rate else ""
    return f"win rate {_number(rate['mean'])}{between}{prompts}"


def _settings(about: Record) -> list[str]:
    """What each stage was told, but for defaults; once where several artifacts were told the same."""
    told: dict[str, list[Any]] = {}
    for each in about["artifacts"]:
        known = told.setdefault(each["stage"], [])
        if each["config"] and each["config"] not in known:
            known.append(each["config"])
    lines = {name: known[0] if len(known) == 1 else known for name, known in told.items() if known}
    if not lines:
        return []
    written = yaml.safe_dump(lines, sort_keys=False, allow_unicode=True, width=100).rstrip()
    longest = max((len(found) for found in re.findall("`+", written)), default=0)
    fence = "`" * max(3, longest + 1)  # longer than any inside, so that none inside ends it
    return ["Settings of each stage that differ from the defaults; a list where they were several.", "",
            f"{fence}yaml", written, fence]  # fmt: skip


def _versions(about: Record) -> list[str]:
    versions = sorted({str(each["rondo"]) for each in about["artifacts"] if each["rondo"]})
    return [f"- Rondo {escaped(', '.join(versions))}"] if versions else []


def _lineage(about: Record) -> list[str]:
    lines = [f"`rondo.json` names the {len(about['artifacts'])} artifacts that this model was made from and measured "
             "by, each with its settings and inputs."]  # fmt: skip
    if about["missing"]:
        lines.append(f"{len(about['missing'])} more were deleted before this export, so what is told here is not all.")
    return lines


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of already escaped cells, without the columns that are empty in every row."""
    kept = [at for at in range(len(names)) if any(row[at] for row in rows)]
    if not rows:
        return []
    lines = [[names[at] for at in kept], ["---"] * len(kept), *([row[at] for at in kept] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else escaped(value)

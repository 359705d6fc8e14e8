"""What the policy's tokenizer and chat template say about themselves, before any row is looked at."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.spec.checks.adapters import misfit
from pipelines.spec.model_path import adapter_path, local_path
from pipelines.spec.models import CHAMPION, PipelineSpec
from pipelines.spec.problems import Checked, Fault
from stages.core.errors import RowError
from stages.core.tokens.ends import end_of_turn
from stages.core.tokens.templates import ChatEncoder
from stages.policy.families import untrainable
from stages.policy.files import CONFIG, weights_header
from stages.policy.tokenizer import read_tokenizer

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "embeddings.weight")
_PROBE = "qzxjv"


@dataclass(frozen=True)
class Chat:
    """The policy's encoder, and what its files say about lengths and sizes (None where they do not)."""

    encoder: ChatEncoder
    embedding_rows: int | None = None
    positions: int | None = None


def read(spec: PipelineSpec, folder: Path, checked: Checked) -> Chat | None:
    """The policy's chat template and tokenizer; None, with a note, where they cannot be read before a run."""
    try:
        path = local_path(spec.policy, folder)
        adapter = adapter_path(spec.policy.adapter, folder) if spec.policy.adapter is not None else None
        model = path if path is not None else _downloaded(spec.policy.model, spec.policy.revision)
        encoder = ChatEncoder(read_tokenizer(model, adapter), spec.policy.date)
        if not encoder.template:
            raise ValueError("there is no chat template")
        encoder.encoding()
    except Exception as error:  # a library's own reader may raise anything; the run will say the same with its cause
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        checked.notes.append(f"the chat template cannot be looked at before the run: {reason}")
        return None
    config = _config(model)
    if path is None:  # of a folder the spec's own checks have seen this
        checked.faults += _family(spec, config)
    chat = Chat(encoder, _embedding_rows(model, config), _positions(config))
    checked.faults += _faults(spec, chat)
    checked.notes += _notes(spec, chat)
    return chat


def _downloaded(hub_id: str, revision: str | None) -> Path:
    """A hub model's folder with all but its weights."""
    if hub_id.startswith(CHAMPION):
        raise ValueError(f"{hub_id} is looked up where the run starts")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "additional_chat_templates/*.jinja"]
    return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))


def _family(spec: PipelineSpec, config: Mapping[str, Any]) -> Iterator[Fault]:
    """What a hub model's family is not made for."""
    if reason := untrainable(config):
        yield Fault(("policy", "model"), reason)
    for key, reason in misfit(spec.train, config.get("model_type")):
        yield Fault(("train", *key), reason)


def _faults(spec: PipelineSpec, chat: Chat) -> Iterator[Fault]:
    if "strftime_now" in chat.encoder.template and spec.policy.date is None:
        today = datetime.date.today().isoformat()
        yield Fault(
            ("policy", "date"),
            "the chat template writes today's date, so the same data would be tokenised differently every day; give "
            f"the date to write, such as date: {today}",
        )
    sampled = spec.prompts.train or spec.prompts.heldout
    if sampled and chat.positions is not None and spec.rollout.max_length > chat.positions:
        yield Fault(
            ("rollout", "max_length"),
            f"{spec.rollout.max_length} is above the model's max_position_embeddings {chat.positions}; lower it",
        )


def _notes(spec: PipelineSpec, chat: Chat) -> Iterator[str]:
    encoder = chat.encoder
    tokenizer = encoder.tokenizer
    end = end_of_turn(tokenizer)
    if end is None:
        yield (
            "the chat template writes no end of turn behind an answer; answers are trained to end with the tokenizer's "
            f"end of sequence {tokenizer.eos_token!r}, and engines stop there"
        )
    elif behind := _behind(encoder, tokenizer.convert_ids_to_tokens(end)):
        yield f"the chat template writes {behind!r} behind an answer's end of turn; that is not trained on"
    last = max(tokenizer.get_vocab().values(), default=0)
    if chat.embedding_rows is not None and last >= chat.embedding_rows:
        yield f"the tokenizer has ids up to {last}, the embedding has {chat.embedding_rows} rows"
    if chat.positions is not None and spec.prepare.max_length > chat.positions:
        given = spec.prepare.max_length
        yield f"prepare.max_length {given} is above the model's max_position_embeddings {chat.positions}"


def _behind(encoder: ChatEncoder, end: str) -> str:
    """What the template writes behind an answer's end of turn, but for white space."""
    talk: list[Any] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _PROBE}]
    try:
        return encoder.text(talk).rpartition(_PROBE)[2].partition(end)[2].strip()
    except RowError:
        return ""  # it takes no conversation like this one; rows will show whether it takes theirs


def _config(model: Path) -> Mapping[str, Any]:
    file = model / CONFIG
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {**found, **(found.get("text_config") or {})}


def _positions(config: Mapping[str, Any]) -> int | None:
    return next((config[name] for name in ("max_position_embeddings", "n_positions") if config.get(name)), None)


def _embedding_rows(model: Path, config: Mapping[str, Any]) -> int | None:
    """Rows of the embedding, by the weights' headers; ``config.json`` is not always right."""
    for file in sorted(model.glob("*.safetensors")) if model.is_dir() else ():
        for name, about in weights_header(file).items():
            if name.endswith(_EMBEDDINGS):
                return int(about["shape"][0])
    return config.get("vocab_size")

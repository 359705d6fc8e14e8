"""A spec's adapter (``train.peft``) checked against peft's own configuration. peft is imported if one is given."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stages.policy import adapter_settings as adapter_types
from stages.policy import families
from stages.train.config import TrainConfig

POSITIVE = ("num_virtual_tokens", "r")


def faults(train: TrainConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with ``train.peft``, each with its key path within ``train``."""
    settings = train.peft
    if settings is None:
        return
    found = [(("peft", name), message) for name, message in adapter_types.faults(settings)]
    yield from found
    if not found:
        yield from _refused_by_peft(settings)


def misfit(train: TrainConfig, family: str | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """What of a sound adapter cannot work on models of a family, with its key path within ``train``."""
    if train.lora is not None:
        lora, own = train.lora, {"lora_dropout": "dropout", "use_dora": "dora"}
        settings: dict[str, Any] = {
            "peft_type": "LORA", "target_modules": lora.target_modules, "lora_dropout": lora.dropout,
            "use_dora": lora.dora,
        }  # fmt: skip
        if fault := families.misfit(family, settings):
            yield ("lora", own.get(fault[0], fault[0])), fault[1]
    elif train.peft is not None and (fault := families.misfit(family, train.peft)):
        yield ("peft", fault[0]), fault[1]


def needs_lora(train: TrainConfig) -> bool:
    """Whether a quantised base is asked for without a LoRA on it."""
    lora = train.lora is not None or (train.peft is not None and train.peft["peft_type"] == "LORA")
    return train.quantization is not None and not lora


def needs_bitsandbytes(train: TrainConfig) -> Iterator[str]:
    """The settings that need bitsandbytes, if it is not installed."""
    if find_spec("bitsandbytes") is None:
        yield from ["quantization"] if train.quantization else []
        yield from ["optimizer"] if train.optimizer == "adamw_8bit" else []


def _refused_by_peft(settings: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """peft declares types without checking them, and checks some combinations; both are checked here."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    made = PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]]
    hints = typing.get_type_hints(made)
    values = {name: value for name, value in settings.items() if name != "peft_type"}
    wrong = False
    for name, value in values.items():
        if message := _wrong_type(hints[name], value) or _out_of_range(settings["peft_type"], name, value):
            wrong = True
            yield ("peft", name), f"{message}, got {value!r}"
    if wrong:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as a setting that another one disables
            made(**values, task_type="CAUSAL_LM")
    except (ValueError, TypeError, KeyError, Warning) as error:
        yield ("peft",), " ".join(str(error).split())


def _wrong_type(hint: Any, value: Any) -> str | None:
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        return error.errors(include_url=False)[0]["msg"][0].lower() + error.errors(include_url=False)[0]["msg"][1:]
    return None


def _out_of_range(peft_type: str, name: str, value: Any) -> str | None:
    if name in POSITIVE and not (peft_type == "OFT" and name == "r") and value < 1:
        return "expected at least 1"
    if name.endswith("dropout") and not 0 <= value < 1:
        return "expected a share from 0 to less than 1"
    return None

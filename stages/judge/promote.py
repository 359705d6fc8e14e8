"""The gate: the new policy becomes the champion if it reached every bound; otherwise the old one stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from stages.base import Artifact, StageContext, Summary
from stages.io.filenames import ADAPTER, CHAT, MODEL
from stages.judge.config import PromoteConfig
from stages.policy.adapter_settings import prompt_adapter


def run(config: PromoteConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Summary:
    """Make a policy artifact of the winner's model; files are linked where the disk allows it, not copied."""
    win_rate = inputs["evaluation"].summary["win_rate"]
    misses = missed(config, win_rate)
    winner = "champion" if misses else "candidate"
    shutil.copytree(inputs[winner].path / MODEL, context.output / MODEL, copy_function=_link_or_copy)
    if (adapter := prompt_adapter(inputs[winner].path)) is not None:
        shutil.copytree(adapter, context.output / ADAPTER, copy_function=_link_or_copy)
    if (chat := inputs[winner].path / CHAT).is_file():
        shutil.copyfile(chat, context.output / CHAT)
    return {"promoted": not misses, "misses": misses, "policy": inputs[winner].fingerprint}


def missed(config: PromoteConfig, win_rate: Mapping[str, float]) -> list[str]:
    """The bounds that the measured win rate does not reach, as sentences."""
    measured = {"win_rate": win_rate["mean"], "win_rate_low": win_rate["low"]}
    bounds = {name: getattr(config, name) for name in measured}
    return [
        f"{name} is {measured[name]:.3f}, below {bound}"
        for name, bound in bounds.items()
        if bound is not None and measured[name] < bound
    ]


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, Path(target))

"""Whether what judges, and what a gate asks for, fits the rest of a spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.spec.checks import model
from pipelines.spec.models import EvaluateSpec
from pipelines.spec.problems import Fault, KeyPath
from stages.judge.judges.config import JudgeConfig, models_of
from stages.judge.judges.llm.config import LlmJudge
from stages.judge.judges.rewards.config import RewardModelJudge


def faults(values: Mapping[str, Any], base: Path) -> Iterator[Fault]:
    """What is wrong with the judges and the gate, as far as the spec shows."""
    judge, evaluate = values.get("judge"), values.get("evaluate")
    if values.get("reward") is not None and not values.get("preferences", True):
        yield Fault(("reward",), "a reward model is trained on given preferences; give some")
    if judge is not None:
        yield from _judge(("judge",), judge, values, base)
    if evaluate is None:
        return
    if evaluate.checks is not None:
        if (of_checks := evaluate.checks.judge) is not None:
            yield from _judge(("evaluate", "checks", "judge"), of_checks, values, base)
        if (judge := of_checks or judge) is not None and judge.compares:
            message = "compares answers by two; checks need a judge that scores each, such as rules"
            yield Fault(("evaluate", "checks", "judge"), message)
    yield from _gate(evaluate)
    prompts = values.get("prompts")
    if evaluate.promote_if and prompts is not None and not prompts.heldout:
        yield Fault(("evaluate", "promote_if"), "needs prompts.heldout to measure a win rate on")


def _judge(path: KeyPath, judge: JudgeConfig, values: Mapping[str, Any], base: Path) -> Iterator[Fault]:
    if isinstance(judge, RewardModelJudge) and judge.model == "reward" and values.get("reward", judge) is None:
        yield Fault((*path, "model"), "the spec trains no reward model; give a reward section, or name a model")
    for name, source in models_of(judge).items():
        if isinstance(judge, RewardModelJudge):
            found = model.reward_problems(source, base)
        else:
            found = [*model.problems(source, base), *model.adapter_problems(source, base)]
        for message in found:
            yield Fault((*path, name, "model"), message)
    if not isinstance(judge, LlmJudge):
        return
    if judge.model is not None and not find_spec("vllm"):
        yield Fault((*path, "model"), "needs vLLM, which is not installed; or name an endpoint")
    resources = values.get("resources")
    limited = judge.budget.cost is not None or judge.budget.tokens is not None
    if limited and resources is not None and resources.judge.workers > 1:
        message = f"{resources.judge.workers} workers cannot share a budget; use 1, with a higher endpoint.concurrency"
        yield Fault(("resources", "judge", "workers"), message)


def _gate(evaluate: EvaluateSpec) -> Iterator[Fault]:
    """Bounds on what is not measured."""
    gate = evaluate.promote_if
    if gate is None:
        return
    if gate.max_regression and evaluate.task is None:
        message = "names tasks; say in evaluate.task which field of the prompts' rows holds theirs"
        yield Fault(("evaluate", "promote_if", "max_regression"), message)
    if gate.max_check_regression is not None and evaluate.checks is None:
        yield Fault(("evaluate", "promote_if", "max_check_regression"), "needs evaluate.checks, prompts to check on")

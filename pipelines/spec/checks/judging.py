"""Whether what judges, and what a gate asks for, fits the rest of a spec."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.spec.asked import judges
from pipelines.spec.checks import model
from pipelines.spec.models import EvaluateSpec
from pipelines.spec.problems import Fault, KeyPath
from stages.judge.judges.config import EnsembleJudge, SentimentJudge, SingleJudge, models_of
from stages.judge.judges.llm.config import LlmConfig, LlmJudge
from stages.judge.judges.rewards.config import RewardModelJudge
from stages.judge.judges.rules.config import RulesJudge
from stages.policy.config import ModelSource


def faults(values: Mapping[str, Any], base: Path) -> Iterator[Fault]:
    """What is wrong with the judges and the gate, as far as the spec shows."""
    judge, evaluate = values.get("judge"), values.get("evaluate")
    if values.get("reward") is not None and not values.get("preferences", True):
        yield Fault(("reward",), "a reward model is trained on given preferences; give some")
    for path, each in judges(judge, evaluate):
        yield from _judge(path, each, values, base)
    pair = values.get("pair")
    if pair is not None and pair.soft is not None and pair.soft.votes and judge is not None and not judge.compares:
        yield Fault(("pair", "soft", "votes"), "needs an ensemble, or a judge that compares; else give a temperature")
    if (revise := values.get("revise")) is not None:
        yield from _asked(("revise",), revise, values, base)
        if (prompts := values.get("prompts")) is not None and not prompts.train:
            yield Fault(("revise",), "needs prompts.train, whose answers are revised")
    if evaluate is None:
        return
    for number, source in enumerate(evaluate.against):
        if not isinstance(source, str):
            yield from _model(("evaluate", "against", number), source, base)
    of_checks = evaluate.checks.judge or judge if evaluate.checks is not None else None
    if of_checks is not None and of_checks.compares:
        message = "compares answers by two; checks need a judge that scores each, such as rules"
        yield Fault(("evaluate", "checks", "judge"), message)
    yield from _gate(evaluate)
    gate = evaluate.promote_if
    if gate and gate.min_agreement is not None and judge is not None and not isinstance(judge, EnsembleJudge):
        yield Fault(("evaluate", "promote_if", "min_agreement"), "one judge agrees with nobody; give an ensemble")
    prompts = values.get("prompts")
    if prompts is None or prompts.heldout:
        return
    if evaluate.promote_if:
        yield Fault(("evaluate", "promote_if"), "needs prompts.heldout to measure a win rate on")
    for name in ("checks", "kl"):
        if getattr(evaluate, name):
            yield Fault(("evaluate", name), "needs prompts.heldout: without them nothing is evaluated")


def notes(values: Mapping[str, Any]) -> Iterator[str]:
    """What makes a figure say less than it seems to."""
    evaluate, rollout, judge = values.get("evaluate"), values.get("rollout"), values.get("judge")
    trained = any(getattr(each, "model", None) == "reward" for _, each in judges(judge, evaluate))
    if values.get("reward") is not None and not trained:
        yield "no judge uses the reward model: only rondo train-reward trains it; see judge: {use: reward_model}"
    asked = [*(each for _, each in judges(judge, evaluate)), values.get("revise")]
    servers = [each.endpoint for each in asked if isinstance(each, LlmConfig) and each.endpoint is not None]
    for name in dict.fromkeys(server.key_env for server in servers if server.key_env):
        if not os.environ.get(name):
            yield f"{name} is not set here; it has to be where judging runs"
    if evaluate is None or rollout is None:
        return
    measured = evaluate.kl or (evaluate.promote_if is not None and evaluate.promote_if.max_kl is not None)
    if measured and (rollout.temperature != 1 or rollout.top_p != 1):
        yield (
            f"the KL is estimated on answers at temperature {rollout.temperature:g} and top_p {rollout.top_p:g}: a "
            "KL of the policy itself needs rollout.temperature 1 and top_p 1"
        )


def _judge(path: KeyPath, judge: SingleJudge, values: Mapping[str, Any], base: Path) -> Iterator[Fault]:
    if isinstance(judge, LlmJudge):
        yield from _asked(path, judge, values, base)
        return
    if isinstance(judge, SentimentJudge) and not find_spec("vader"):
        yield Fault((*path, "use"), "sentiment needs VADER: pip install 'rondo-dpo[quickstart]'")
    if isinstance(judge, RulesJudge) and not judge.model_dump(exclude_defaults=True, exclude={"use"}):
        yield Fault(path, "rules without a rule scores all answers alike; give at least one")
    if isinstance(judge, RulesJudge) and (judge.min_words or 0) > (judge.max_words or math.inf):
        yield Fault((*path, "min_words"), f"{judge.min_words} is above max_words {judge.max_words}")
    if isinstance(judge, RewardModelJudge) and judge.model == "reward" and values.get("reward", judge) is None:
        yield Fault((*path, "model"), "the spec trains no reward model; give a reward section, or name a model")
    for name, source in models_of(judge).items():
        if isinstance(judge, RewardModelJudge):
            yield from (Fault((*path, name, "model"), message) for message in model.reward_problems(source, base))
        else:
            yield from _model((*path, name), source, base)


def _model(path: KeyPath, source: ModelSource, base: Path) -> Iterator[Fault]:
    yield from (Fault((*path, "model"), message) for message in model.problems(source, base))
    yield from (Fault((*path, "adapter"), message) for message in model.adapter_problems(source, base))


def _asked(path: KeyPath, asked: LlmConfig, values: Mapping[str, Any], base: Path) -> Iterator[Fault]:
    """A language model that judges or revises."""
    if asked.model is not None:
        yield from _model((*path, "model"), asked.model, base)
        if not find_spec("vllm"):
            yield Fault((*path, "model"), "needs vLLM, which is not installed; or name an endpoint")
    resources = values.get("resources")
    limited = asked.budget.cost is not None or asked.budget.tokens is not None
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

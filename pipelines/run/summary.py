"""What a run came to: the object behind ``--json``, the run's record and its table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from pipelines.plan.rounds import Plan, Round
from pipelines.plan.steps import Step
from pipelines.run.evaluation import against_table, answers_table
from pipelines.run.runner import StepResult
from stages.io.filenames import ADAPTER, MODEL, SIDE_BY_SIDE
from stages.policy.adapter_settings import ADAPTER_CONFIG, is_prompt_learning

_COLUMNS = 8
"""Rounds that stand beside each other on a line."""


def summarise(plan: Plan, results: Sequence[StepResult], done: bool) -> dict[str, Any]:
    """Steps run so far, rounds whose training is through, and where the policy is if the run is done.

    ``adapter`` is there where ``policy`` is not the policy without it: virtual tokens.
    """
    done_so_far = {result.step.fingerprint: result for result in results}
    rounds = [_round(r, done_so_far) for r in plan.rounds if r.train.fingerprint in done_so_far]
    steps = [
        {
            "key": result.step.key,
            "stage": result.step.stage.name,
            "fingerprint": result.step.fingerprint,
            "cached": result.cached,
            "seconds": result.seconds,
        }
        for result in results
    ]
    quarantined = sum(result.summary.get("quarantined", 0) for result in results)
    paid = [result.summary["paid"] for result in results if not result.cached and result.summary.get("paid")]
    return {
        "paid": {name: sum(each[name] for each in paid) for name in ("tokens", "cost")} if paid else None,
        "steps": steps,
        "rounds": rounds,
        "quarantined": quarantined,
        **_policy(done_so_far[plan.policy.fingerprint] if done else None),
    }


def _policy(result: StepResult | None) -> dict[str, str | None]:
    """Where a policy is: folders, or places in a bucket, from which nothing is fetched for this."""
    if result is None:
        return {"policy": None, "adapter": None, "manifest": None}
    artifact = result.artifact
    (part,) = artifact.parts
    if artifact.store.is_local:
        artifact.folder()  # whole, or an error
    place = f"{artifact.store.name.rstrip('/')}/{part.place}"
    config = f"{ADAPTER}/{ADAPTER_CONFIG}"
    needed = artifact.has(config) and is_prompt_learning(artifact.path(config))
    return {
        "policy": f"{place}/{MODEL}",
        "adapter": f"{place}/{ADAPTER}" if needed else None,
        "manifest": f"{artifact.store.name.rstrip('/')}/{result.manifest}",
    }


def _round(round_: Round, done: Mapping[str, StepResult]) -> dict[str, Any]:
    def summary(step: Step | None) -> Mapping[str, Any]:
        return done[step.fingerprint].summary if step and step.fingerprint in done else {}

    train, heldout = summary(round_.train), summary(round_.heldout)
    evaluation, promotion = summary(round_.evaluate), summary(round_.promote)
    prefix = f"round-{round_.number}/"
    seconds = {
        result.step.key.removeprefix(prefix): result.seconds
        for result in done.values()
        if result.step.key.startswith(prefix)
    }
    return {
        "round": round_.number,
        "pairs": summary(round_.prepare).get("pairs"),
        **{name: train.get(name) for name in ("first_loss", "loss", "reward_accuracy", "reward_margin", "kl")},
        "tasks": train.get("tasks", {}),
        "heldout": dict(heldout) or None,
        "win_rate": evaluation.get("win_rate"),
        "baseline": evaluation.get("baseline"),
        "against": evaluation.get("against", {}),
        "answers": evaluation.get("answers", {}),
        "checks": evaluation.get("checks"),
        "divergence": evaluation.get("kl"),
        "samples": _samples(round_.evaluate, done),
        "judge_score": evaluation.get("judge_score"),
        "baseline_score": evaluation.get("baseline_score"),
        "promoted": promotion.get("promoted", True),
        "decided": _decided(round_),
        "misses": promotion.get("misses", []),
        "seconds": seconds,
    }


def _samples(evaluate: Step | None, done: Mapping[str, StepResult]) -> str | None:
    """The place in the store of the answers side by side."""
    if evaluate is None or evaluate.fingerprint not in done:
        return None
    found = [part.place for part in done[evaluate.fingerprint].artifact.parts if SIDE_BY_SIDE in part.files]
    return f"{found[0]}/{SIDE_BY_SIDE}" if found else None


def _decided(round_: Round) -> str:
    """On what evidence a policy was promoted or not: by the ``gate``, or as it came, ``measured`` or ``unmeasured``."""
    if round_.promote:
        return "gate"
    return "measured" if round_.evaluate or round_.heldout else "unmeasured"


def _promoted(row: dict[str, Any]) -> str:
    why = {"measured": " (no gate)", "unmeasured": " (nothing measured)"}
    return ("yes" if row["promoted"] else "no") + why.get(row.get("decided", ""), "")


def tables(rounds: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """All that is said of the rounds in the end."""
    parts = (table(rounds), against_table(rounds), answers_table(rounds), tasks_table(rounds), seconds_table(rounds))
    return (each for each in parts if each is not None)


def table(rounds: Sequence[dict[str, Any]]) -> Table:
    """One row per round."""
    result = Table(title="Rounds", title_justify="left")
    for name in ("round", "pairs", "loss", "accuracy", "margin", "win rate [95%]", "judge score", "promoted"):
        result.add_column(name, justify="right")
    for row in rounds:
        win = row["win_rate"]
        result.add_row(
            str(row["round"]),
            _number(row["pairs"], 0),
            f"{_number(row['first_loss'])} -> {_number(row['loss'])}",
            _number(row["reward_accuracy"], 2),
            _number(row["reward_margin"]),
            f"{win['mean']:.2f} [{win['low']:.2f}, {win['high']:.2f}]" if win else "-",
            f"{_number(row['baseline_score'], 2)} -> {_number(row['judge_score'], 2)}" if win else "-",
            _promoted(row),
        )
    return result


def tasks_table(rounds: Sequence[dict[str, Any]]) -> Table | None:
    """Held-out pairs, and the tasks of a mixture in training and held out; None where there are neither."""
    result = Table(title="Held-out pairs and tasks", title_justify="left")
    result.add_column("round", justify="right")
    result.add_column("task")
    result.add_column("pairs")
    for name in ("loss", "accuracy", "margin"):
        result.add_column(name, justify="right")
    for row in rounds:
        heldout = row.get("heldout") or {}
        trained = [(name, "training", found) for name, found in row.get("tasks", {}).items()]
        measured = {**({"all": heldout} if heldout else {}), **heldout.get("tasks", {})}
        groups = [*trained, *((name, f"{found['pairs']} held out", found) for name, found in measured.items())]
        for name, count, found in groups:
            accuracy, margin = _number(found["reward_accuracy"], 2), _number(found["reward_margin"])
            result.add_row(str(row["round"]), name, count, _number(found["loss"]), accuracy, margin)
    return result if result.row_count else None


def seconds_table(rounds: Sequence[dict[str, Any]]) -> Table:
    """Seconds of every stage, one column for each round, of many rounds for the last ones."""
    rounds = rounds[-_COLUMNS:]
    result = Table(title="Seconds per stage (of the execution that made the artifact)", title_justify="left")
    result.add_column("stage")
    for row in rounds:
        result.add_column(f"round {row['round']}", justify="right")
    names = dict.fromkeys(name for row in rounds for name in row["seconds"])
    for name in names:
        result.add_row(name, *(_number(row["seconds"].get(name), 1) for row in rounds))
    return result


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

"""``rondo plan``: what would run and why, and what it takes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

from clusters.memory import usable_memory

if TYPE_CHECKING:
    from pipelines.plan.rounds import Plan
    from pipelines.run.needs import Needs
    from pipelines.run.store import ArtifactStore
    from pipelines.spec.models import PipelineSpec


def show(spec: PipelineSpec, planned: Plan, store: ArtifactStore, as_json: bool) -> None:
    """Print each step with its fingerprint, whether its result is there, and if not, why it has to run; then what the
    steps that have to run take."""
    from pipelines.run.explain import Explain
    from pipelines.run.needs import Estimator
    from pipelines.run.runner import Committed

    committed, explain = Committed(store), Explain(store)
    here = None if os.environ.get("RAY_ADDRESS") else usable_memory()
    estimate = Estimator(store, committed, spec.prepare.max_length, here)
    rows, needs = [], []
    for step in planned.steps:
        there, taken = committed(step) is not None, estimate(step)
        rows.append(
            {
                "key": step.key, "stage": step.stage.name, "fingerprint": step.fingerprint, "committed": there,
                "why": "" if there else explain(step), "needs": taken and taken.as_json(),
            }
        )  # fmt: skip
        if taken and not there:
            needs.append(taken)
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        state = "committed" if row["committed"] else f"to run ({row['why']})"
        typer.echo(f"{row['key']:<26} {str(row['fingerprint'])[:12]}  {state}")
    typer.echo(f"{sum(not row['committed'] for row in rows)} of {len(rows)} steps to run")
    for line in table(needs):
        typer.echo(line)


def table(needs: Sequence[Needs]) -> Iterable[str]:
    """Lines on the memory and the tokens of steps; steps of a stage that take the same stand together."""
    groups: dict[tuple[object, ...], list[Needs]] = {}
    for each in needs:
        if each.memory is not None:
            taken = (*each.memory.parts.items(), *each.memory.main.items(), each.memory.total)
            workers = each.step.resources.worker_range
            groups.setdefault((each.step.stage.name, *taken, workers, each.tokens), []).append(each)
    if groups:
        yield "\nmemory a worker, estimated (docs/memory.md), in GiB"
    for group in groups.values():
        yield _line(group)
    for reason in dict.fromkeys(each.unknown for each in needs if each.unknown):
        yield f"\nmemory: {reason}"
    for group in groups.values():
        if said := group[0].misfit:
            yield f"note: {said}"


def _line(group: Sequence[Needs]) -> str:
    first = group[0]
    assert first.memory is not None
    fewest, most = first.step.resources.worker_range
    name = first.step.key if len(group) == 1 else f"{first.step.key} (+{len(group) - 1})"
    workers = f"{fewest}" if fewest == most else f"{fewest}-{most}"
    engine = first.step.stage.name == "rollout"
    parts = {part: _gib(size) for part, size in first.memory.parts.items() if size >= _SHOWN}
    told = ", ".join(f"{part} {size}" for part, size in parts.items())
    if when := first.memory.when:
        told = f"{when}; then {_gib(first.memory.working)}"
    told += f"; {_gib(sum(first.memory.main.values()))} in main memory" if first.memory.main else ""
    told += ", and vLLM's cache" if engine and getattr(first.step.config, "engine", "") == "vllm" else ""
    tokens = "" if first.tokens is None else f"; {'at most ' if engine else ''}{first.tokens:,} tokens"
    return f"{name:<26} {workers:>3} x {_gib(first.memory.total):>6}  {told}{tokens}"


_SHOWN = 2**30 // 20
"""Bytes from which a part is shown."""


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"

"""Ticks without a cluster: reading is real, and a run commits what stages would have made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.plan.rounds import Plan
from pipelines.plan.steps import Step
from pipelines.run import summary
from pipelines.run.champions import Champions
from pipelines.run.runner import Committed, StepResult
from pipelines.run.store import ArtifactStore
from pipelines.schedule import tick as ticking
from pipelines.schedule.ledger import Ledger
from pipelines.schedule.tick import Options, tick
from pipelines.spec import load
from pipelines.spec.load import Loaded
from tests import specs
from tests.unit import workspace

NAME = "tiny"
START = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = """\
name: tiny
policy: {model: model}
preferences: [pairs]
prompts: {heldout: heldout.jsonl}
judge: {use: sentiment}
evaluate: {promote_if: {win_rate: 0.5}}
"""


@dataclass
class Schedule:
    """A schedule whose runs take no time, and what they came to."""

    folder: Path
    rates: list[float] = field(default_factory=list)
    """The win rates of the next rounds; 0.75 when there is none left."""
    trouble: Callable[[Plan], int] | None = None
    """Called in the next run: an exit code, or an exception."""
    plans: list[Plan] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    ticks: int = 0
    place: str = ""

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.place or str(self.folder / "store"))

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store, NAME)

    @property
    def champions(self) -> Champions:
        return Champions(self.store, NAME)

    def pairs(self, name: str, start: int = 0, count: int = 4) -> None:
        specs.jsonl(self.folder / "pairs" / name, specs.pairs(start + count)[start:])

    def loaded(self) -> Loaded:
        return load.load(str(self.folder / "spec.yaml"))

    def tick(self, due: datetime | None = None) -> dict[str, Any]:
        """The next tick, an hour after the last, or one that was due at another time."""
        self.ticks += due is None
        due = due or START + timedelta(hours=self.ticks)
        document, code = tick(self.loaded(), self.store, due, Options(lease=30), self.said.append)
        assert code == {"failed": 1, "interrupted": 130}.get(document["outcome"], 0)
        return document

    def execute(self, loaded: Loaded, plan: Plan, store: ArtifactStore, *_: object) -> tuple[dict[str, Any], int]:
        self.plans.append(plan)
        trouble, self.trouble = self.trouble, None
        code = trouble(plan) if trouble else 0
        run = f"run-{len(self.plans)}"
        if code:
            return {"run": run, "error": "out of memory", "log": "the.log", "rounds": []}, code
        committed = Committed(store)
        results = [self._made(step, store, committed) for step in plan.steps]
        return {"run": run, "log": "the.log", **summary.summarise(plan, results, False)}, 0

    def _made(self, step: Step, store: ArtifactStore, committed: Committed) -> StepResult:
        manifest = committed(step)
        if manifest is None:
            output = store.output(step.fingerprint, committed.made_from(step))
            if step.stage.produces == "policy":
                with output.part("policy") as part:
                    (part.folder / "model").mkdir()
                    for name in ("config.json", "tokenizer.json"):
                        (part.folder / "model" / name).write_text("{}")
            document = {"key": step.key, "produces": step.stage.produces, "payload": step.payload, "seconds": 1.0}
            made_from = committed.made_from(step)
            document |= {"made_from": made_from, "summary": self._summary(step, committed)}
            manifest = committed.add(step, store.commit(output, document))
        return StepResult(step, False, 1.0, manifest["summary"], store.open(manifest), "manifest.json")

    def _summary(self, step: Step, committed: Committed) -> dict[str, Any]:
        if step.stage.name == "evaluate":
            rate = self.rates.pop(0) if self.rates else 0.75
            return {"win_rate": {"mean": rate, "low": rate - 0.1, "high": rate + 0.1, "prompts": 3},
                    "judge_score": 0.5, "baseline_score": 0.1}  # fmt: skip
        if step.stage.name == "promote":
            manifest = committed(step.inputs["evaluation"])  # type: ignore[arg-type]
            assert manifest is not None
            promoted = manifest["summary"]["win_rate"]["mean"] >= 0.5
            return {"promoted": promoted, "misses": [] if promoted else ["win_rate is too low"]}
        return {"pairs": 4}


@pytest.fixture
def schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Schedule:
    workspace.spec(workspace.make(tmp_path), SPEC)
    (tmp_path / "pairs").mkdir()
    made = Schedule(tmp_path)
    made.pairs("one.jsonl")
    monkeypatch.setattr(ticking, "execute", made.execute)
    return made

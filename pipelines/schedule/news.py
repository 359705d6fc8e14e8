"""What a tick has to work with: the user's files that no earlier tick has used, and the plan that is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.plan.base_model import base_step
from pipelines.plan.given import Fresh, Past, Preferences, fresh_prompts, preferences, prompts
from pipelines.plan.judging import judging
from pipelines.plan.rounds import Plan, unroll
from pipelines.plan.steps import Source, Step, found, walk
from pipelines.run.champions import Champion
from pipelines.run.runner import Committed
from pipelines.schedule.ledger import Artifacts, Begin, Tick
from pipelines.spec.models import PipelineSpec
from stages.catalog import CURATE, ENCODE, INGEST


@dataclass(frozen=True)
class News:
    """The steps that read what is new. Rows of it may have been seen all the same: only reading tells."""

    spec: PipelineSpec
    folder: Path
    base: Step
    given: Preferences | None
    """The new files of preferences, if there are any."""
    asked: Step | None
    """The prompts of new files, if there are any."""
    past: tuple[Past, ...]

    @property
    def preferences(self) -> list[Source]:
        return [source for step in (self.given.records if self.given else ()) for source in _sources(step)]

    @property
    def prompts(self) -> list[Source]:
        return list(_sources(self.asked)) if self.asked else []

    @property
    def steps(self) -> list[Step]:
        """Those that tell whether there is anything to train on."""
        return walk([step for step in (self.given.selection if self.given else None, self.asked) if step])

    def plan(self, committed: Committed) -> Plan | None:
        """The rounds of this tick, once its ``steps`` are done; None where no row is new. They are measured against the
        policy that the tick starts from. Without new prompts there is one round."""
        selected = _summary(committed, self.given.selection) if self.given else {}
        given = replace(self.given, heldout=selected["heldout"] > 0) if self.given and selected["training"] else None
        asked = self.asked if self.asked and _summary(committed, self.asked)["rows"] else None
        if not given and not asked:
            return None
        spec = self.spec
        spec = spec.model_copy(
            update={
                "rounds": spec.rounds if asked else 1,
                "prompts": spec.prompts.model_copy(update={"train": spec.prompts.train if asked else None}),
                "evaluate": spec.evaluate.model_copy(update={"against": ("base",)}),
            }
        )

        def ask(key: str, location: str) -> Step:
            return asked if key == "prompts" and asked else prompts(key, location, self.folder)

        return unroll(spec, self.base, given, ask, judging(spec, self.folder), self.past)

    def made(self, plan: Plan | None, committed: Committed) -> Artifacts:
        """What of this tick later ones have to know, once all of it is done."""
        trained = self.given is not None and plan is not None and "selection" in plan.rounds[0].prepare.inputs
        tokens = [step for name, step in self.given.inputs.items() if name != "selection"] if self.given else []
        own = [step for each in (plan.rounds if plan else ()) for step in _named(each.prepare, "pairs")]
        return Artifacts(
            records=tuple(committed.place(step) for step in self.given.records) if self.given else (),
            prompts=committed.place(self.asked) if self.asked else None,
            selection=committed.place(self.given.selection) if self.given and trained else None,
            tokens=tuple(committed.place(step) for step in tokens) if trained else (),
            own=tuple(committed.place(step) for step in own),
        )


def made_by(entry: Champion, begin: Begin) -> bool:
    """Whether a tick has made a champion."""
    return entry.evidence.get("began") == begin.began.isoformat()


def lineage(ticks: Sequence[Tick], history: Sequence[Champion], number: int) -> list[Tick]:
    """The ticks that have trained a champion, the last one first, back to the first or to where a person has put a
    policy in. Those whose champion was rolled back are none of it."""
    entries, found = {entry.number: entry for entry in history}, []
    while (entry := entries.get(number)) is not None:
        entry = entries.get(entry.restores or number, entry)
        tick = next((each for each in ticks if made_by(entry, each.begin)), None)
        if tick is None:
            break
        found.append(tick)
        number = tick.begin.champion
    return found


def news(
    spec: PipelineSpec, folder: Path, earlier: Sequence[Tick], trained: Sequence[Tick],
    takes: Callable[[str], bool], takes_prompts: Callable[[str], bool],
) -> News:  # fmt: skip
    """What is new in the files that are taken. Rows of the ``earlier`` ticks are not; those of the ``trained`` ones can
    be replayed, and no held-out prompt is trained on."""
    made = [tick.end.made for tick in earlier if tick.end]
    heldout = [prompts("heldout", spec.prompts.heldout, folder)] if spec.prompts.heldout else []
    fresh = Fresh(
        takes,
        takes_prompts,
        pairs=tuple(found("seen", INGEST, place) for each in made for place in each.records),
        prompts=(*heldout, *(found("seen", INGEST, each.prompts) for each in made if each.prompts)),
    )
    base = base_step(spec.policy, folder)
    given = preferences(spec, folder, base, fresh) if spec.preferences else None
    asked = fresh_prompts("prompts", spec.prompts.train, folder, fresh) if spec.prompts.train else None
    replayed = [tick.end.made for tick in reversed(trained) if tick.end]
    return News(spec, folder, base, given, asked, tuple(map(_past, replayed)))


def _past(made: Artifacts) -> Past:
    selection = found("past", CURATE, made.selection) if made.selection else None
    tokens = tuple(found("past", ENCODE, place) for place in made.tokens)
    return Past(selection, tokens, tuple(found("past", ENCODE, place) for place in made.own))


def _summary(committed: Committed, step: Step) -> dict[str, int]:
    manifest = committed(step)
    assert manifest is not None, step.key
    summary: dict[str, int] = manifest["summary"]
    return summary


def _sources(step: Step) -> Iterator[Source]:
    return (value for value in step.inputs.values() if isinstance(value, Source))


def _named(step: Step, name: str) -> list[Step]:
    return [value for key, value in step.inputs.items() if key.partition(".")[0] == name and isinstance(value, Step)]

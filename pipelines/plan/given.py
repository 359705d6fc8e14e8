"""The user's own data in the plan: one step per file, so that adding a file reads and tokenises only that file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.fingerprint import data_identity
from pipelines.plan.steps import Source, Step
from pipelines.spec.models import PipelineSpec, SourceSpec
from stages.catalog import CURATE, ENCODE, INGEST
from stages.core.formats.config import FormatConfig
from stages.data.config import CurateConfig, EncodeConfig, IngestConfig, MixConfig
from stages.readers import DataFile, NoFiles, files


@dataclass(frozen=True)
class Fresh:
    """What of the user's files is taken: all of them, or for a schedule those that no earlier tick has used."""

    takes: Callable[[str], bool] | None = None
    """Whether a file of preferences is taken, by its ``data_identity``; None takes all."""
    takes_prompts: Callable[[str], bool] | None = None
    """Likewise of prompts."""
    pairs: tuple[Step, ...] = ()
    """Records of pairs that are not used again."""
    prompts: tuple[Step, ...] = ()
    """Likewise of prompts."""


EVERYTHING = Fresh()


@dataclass(frozen=True)
class Preferences:
    """The steps that the given preferences go through."""

    records: tuple[Step, ...]
    """Every file's pairs."""
    selection: Step
    """Which pairs are used, and with what label."""
    inputs: Mapping[str, Step]
    """What ``prepare`` takes: the selection, and the files' tokens."""
    source_of: tuple[int, ...]
    """The source of each file."""
    heldout: bool
    """Whether some of them are held out."""


@dataclass(frozen=True)
class Past:
    """What an earlier tick of a schedule trained on, found in the store."""

    selection: Step | None
    """Which of the given pairs, and with what label; None where there were none."""
    tokens: tuple[Step, ...]
    """Those pairs' files, tokenised."""
    own: tuple[Step, ...]
    """The pairs that its rounds made, tokenised."""


def past_inputs(past: Sequence[Past]) -> tuple[dict[str, Step], tuple[int, ...]]:
    """What ``prepare`` takes of the given pairs of earlier ticks, and the selection of each of their files."""
    chosen = [each for each in past if each.selection is not None]
    selections = {f"past_selection.{number}": each.selection for number, each in enumerate(chosen) if each.selection}
    files = [(number, step) for number, each in enumerate(chosen) for step in each.tokens]
    tokens = {f"past.{index}": step for index, (_, step) in enumerate(files)}
    return {**selections, **tokens}, tuple(number for number, _ in files)


def preferences(spec: PipelineSpec, folder: Path, base: Step, fresh: Fresh = EVERYTHING) -> Preferences | None:
    """From the files that the spec's preferences name to what ``prepare`` takes; None where there are none."""
    made, source_of = records(spec.preferences, folder, fresh)
    if not made:
        return None
    mix = [MixConfig(**{name: getattr(each, name) for name in MixConfig.model_fields}) for each in spec.preferences]
    inputs: dict[str, Step] = {f"pairs.{index}": step for index, step in enumerate(made)}
    inputs |= {f"seen.{index}": step for index, step in enumerate(fresh.pairs)}
    if spec.prompts.heldout:
        inputs["heldout"] = prompts("heldout", spec.prompts.heldout, folder)
    data = spec.data
    config = CurateConfig(
        mix=tuple(mix), source_of=source_of, labels=data.labels, filters=data.filters, heldout=data.heldout,
        max_bad_share=data.max_bad_share,
    )  # fmt: skip
    selection = Step("preferences/curate", CURATE, config, inputs)
    tokens = {f"selected.{index}": encoded(f"{step.key}/encode", step, base, spec) for index, step in enumerate(made)}
    return Preferences(tuple(made), selection, {"selection": selection, **tokens}, source_of, data.heldout > 0)


def records(
    sources: Sequence[SourceSpec], folder: Path, fresh: Fresh = EVERYTHING
) -> tuple[list[Step], tuple[int, ...]]:
    """The pairs of every file that the sources name, and the source of each file."""
    made: list[Step] = []
    source_of: list[int] = []
    for number, each in enumerate(sources):
        config = IngestConfig(kind="pairs", **{name: getattr(each, name) for name in FormatConfig.model_fields})
        for key, source in _sources(each.path, folder, fresh.takes):
            made.append(Step(f"preferences/{key}", INGEST, config, {"files.0": source}))
            source_of.append(number)
    return made, tuple(source_of)


def encoded(key: str, pairs: Step, base: Step, spec: PipelineSpec) -> Step:
    """Pairs as tokens of the base model."""
    config = EncodeConfig(max_length=spec.prepare.max_length, truncation=spec.prepare.truncation)
    return Step(key, ENCODE, config, {"policy": base, "pairs": pairs}, spec.resources.encode)


def prompts(key: str, location: str, folder: Path) -> Step:
    """Prompts of one or more files."""
    step = fresh_prompts(key, location, folder, EVERYTHING)
    assert step is not None  # a location without files is an error
    return step


def fresh_prompts(key: str, location: str, folder: Path, fresh: Fresh) -> Step | None:
    """Prompts of the files that are taken; None where none is."""
    sources = _sources(location, folder, fresh.takes_prompts)
    inputs: dict[str, Step | Source] = {f"files.{index}": source for index, (_, source) in enumerate(sources)}
    inputs |= {f"seen.{index}": step for index, step in enumerate(fresh.prompts)}
    return Step(key, INGEST, IngestConfig(kind="prompts"), inputs) if sources else None


def _sources(location: str, folder: Path, takes: Callable[[str], bool] | None) -> list[tuple[str, Source]]:
    """The files that a location names and that are taken, each with its name for people."""
    try:
        listed = files(location, folder)
    except NoFiles:
        if takes is None:
            raise
        return []  # those that there were are gone, and new ones may come
    found = [(file.name, _source(file)) for file in listed]
    return [(name, source) for name, source in found if not takes or takes(source.fingerprint)]


def _source(file: DataFile) -> Source:
    return Source(file.name, Path(file.name if file.remote else file.uri), data_identity(file), file)

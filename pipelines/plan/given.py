"""The user's own data in the plan: one step per file, so that adding a file reads and tokenises only that file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.fingerprint import data_identity
from pipelines.plan.steps import Source, Step
from pipelines.spec.models import PipelineSpec, SourceSpec
from stages.catalog import CURATE, ENCODE, INGEST
from stages.core.formats.config import FormatConfig
from stages.data.config import CurateConfig, EncodeConfig, IngestConfig, MixConfig
from stages.readers import DataFile, files


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


def preferences(spec: PipelineSpec, folder: Path, base: Step) -> Preferences | None:
    """From the files that the spec's preferences name to what ``prepare`` takes; None where there are none."""
    if not spec.preferences:
        return None
    made, source_of = records(spec.preferences, folder)
    mix = [MixConfig(**{name: getattr(each, name) for name in MixConfig.model_fields}) for each in spec.preferences]
    inputs: dict[str, Step] = {f"pairs.{index}": step for index, step in enumerate(made)}
    if spec.prompts.heldout:
        inputs["heldout"] = prompts("heldout", spec.prompts.heldout, folder)
    data = spec.data
    config = CurateConfig(
        mix=tuple(mix), source_of=source_of, labels=data.labels, filters=data.filters, heldout=data.heldout,
        max_bad_share=data.max_bad_share,
    )  # fmt: skip
    selection = Step("preferences/curate", CURATE, config, inputs)
    tokens = {f"selected.{index}": encoded(f"{step.key}/encode", step, base, spec) for index, step in enumerate(made)}
    return Preferences(tuple(made), selection, {"selection": selection, **tokens}, source_of)


def records(sources: Sequence[SourceSpec], folder: Path) -> tuple[list[Step], tuple[int, ...]]:
    """The pairs of every file that the sources name, and the source of each file."""
    made: list[Step] = []
    source_of: list[int] = []
    for number, each in enumerate(sources):
        config = IngestConfig(kind="pairs", **{name: getattr(each, name) for name in FormatConfig.model_fields})
        for key, source in _sources(each.path, folder):
            made.append(Step(f"preferences/{key}", INGEST, config, {"files.0": source}))
            source_of.append(number)
    return made, tuple(source_of)


def encoded(key: str, pairs: Step, base: Step, spec: PipelineSpec) -> Step:
    """Pairs as tokens of the base model."""
    config = EncodeConfig(max_length=spec.prepare.max_length, truncation=spec.prepare.truncation)
    return Step(key, ENCODE, config, {"policy": base, "pairs": pairs}, spec.resources.encode)


def prompts(key: str, location: str, folder: Path) -> Step:
    """Prompts of one or more files."""
    sources = _sources(location, folder)
    return Step(
        key, INGEST, IngestConfig(kind="prompts"),
        {f"files.{index}": source for index, (_, source) in enumerate(sources)},
    )  # fmt: skip


def _sources(location: str, folder: Path) -> list[tuple[str, Source]]:
    """The files that a location names, each with its name for people."""
    return [(file.name, _source(file)) for file in files(location, folder)]


def _source(file: DataFile) -> Source:
    return Source(file.name, Path(file.name if file.remote else file.uri), data_identity(file), file)

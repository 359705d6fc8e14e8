"""YAML and overrides become a PipelineSpec. All mistakes are reported at once, with file, line and key path."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from pipelines.spec import yamlfile
from pipelines.spec.checks import preflight, rendering
from pipelines.spec.checks.data import check_data
from pipelines.spec.invalid import invalid, unknown_key
from pipelines.spec.models import CHAMPION, ChampionSource, PipelineSpec, SourceSpec
from pipelines.spec.problems import Checked, Fault, KeyPath, Problem, SpecError
from stages.base import StageError
from stages.hints import closest
from stages.judge.judges.config import EnsembleJudge, models_of
from stages.policy.config import ModelSource

Champion = Callable[[ModelSource], ChampionSource]


@dataclass(frozen=True)
class Loaded:
    spec: PipelineSpec
    path: Path
    argument: str
    """The spec as it was named on the command line."""
    overrides: tuple[str, ...]
    notes: tuple[str, ...]
    """Worth knowing but no reason to stop, such as rows that will go to quarantine."""
    where: Callable[[KeyPath], str]
    """The place of a key, for people."""

    def look(self, show: int = 0) -> tuple[Loaded, tuple[str, ...]]:
        """Look at the first rows as the model will see them. Returns the spec with what is worth knowing about them,
        and ``show`` rows of each source as text.

        Raises:
            SpecError: with every problem found.
        """
        found = rendering.look(self.spec, self.path.parent, show)
        if found.checked.faults:
            raise SpecError([Problem(self.where(fault.path), fault.message) for fault in found.checked.faults])
        return replace(self, notes=(*self.notes, *found.checked.notes)), found.shown


def recipes() -> dict[str, Path]:
    """The bundled recipes by name."""
    folder = Path(str(resources.files("pipelines"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file that ``SPEC`` means: a path, or the name of a bundled recipe."""
    bundled = recipes()
    with contextlib.suppress(OSError, ValueError):  # not a possible file name
        if Path(name).is_file():
            return Path(name).resolve()
    if name in bundled:
        return bundled[name]
    close = closest(name, bundled)
    meant = f'did you mean the recipe "{close}"?' if close else f"recipes: {', '.join(bundled)}"
    raise SpecError([Problem(name, f"no such file or recipe; {meant}")])


def load(name: str, overrides: Sequence[str] = (), champion: Champion | None = None, growing: bool = False) -> Loaded:
    """Read, override, validate and check a spec. ``champion`` looks one up; without it, where the spec starts from one
    stays open. Folders of a schedule may be ``growing`` from no files.

    Raises:
        SpecError: with every problem found.
    """
    path = find(name)
    document = yamlfile.read(path)
    problems = list(document.problems)
    raw = dict(document.value)
    for text in overrides:
        problems += override(raw, text)
    preflight.importable_from(path.parent)
    values, invalid = validate(raw, path.parent)
    if champion is not None:
        look_up(values, invalid, champion)
    checked = preflight.check(values, path.parent, growing)
    where = placing(document, overrides)
    problems += [Problem(where(fault.path), fault.message) for fault in (*invalid, *checked.faults)]
    if problems:
        raise SpecError(problems)
    spec = PipelineSpec.model_construct(**values)
    return Loaded(spec, path, name, tuple(overrides), tuple(checked.notes), where)


def placing(document: yamlfile.Document, overrides: Sequence[str]) -> Callable[[KeyPath], str]:
    """Says where a key was given: in a file, or on the command line."""
    overridden = {tuple(text.partition("=")[0].split(".")) for text in overrides}

    def where(key_path: KeyPath) -> str:
        given = any(key_path[: len(key)] == key for key in overridden)
        return f"--set {'.'.join(map(str, key_path))}" if given else document.where(key_path)

    return where


def look_up(values: dict[str, Any], invalid: list[Fault], champion: Champion) -> None:
    """Put champions in the place of their names."""

    def found(source: ModelSource, *path: str) -> ModelSource:
        try:
            return champion(source) if source.model.startswith(CHAMPION) else source
        except StageError as error:
            invalid.append(Fault((*path, "model"), str(error)))
            return source

    if (policy := values.get("policy")) is not None:
        values["policy"] = found(policy, "policy")
    for key in ("judge", "revise"):
        if (asked := values.get(key)) is not None:
            values[key] = _with_champions(asked, found, key)
    if (evaluate := values.get("evaluate")) is None:
        return
    against = [each if isinstance(each, str) else found(each, "evaluate", "against") for each in evaluate.against]
    changed: dict[str, Any] = {"against": tuple(against)}
    if evaluate.checks and evaluate.checks.judge:
        judge = _with_champions(evaluate.checks.judge, found, "evaluate", "checks", "judge")
        changed["checks"] = evaluate.checks.model_copy(update={"judge": judge})
    values["evaluate"] = evaluate.model_copy(update=changed)


def _with_champions(config: Any, found: Callable[..., ModelSource], *path: str) -> Any:
    """What judges or revises, with what was ``found`` for its models."""
    if isinstance(config, EnsembleJudge):
        members = enumerate(config.judges)
        judges = tuple(_with_champions(each, found, *path, "judges", str(number)) for number, each in members)
        return config.model_copy(update={"judges": judges})
    models = models_of(config)
    return config.model_copy(update={name: found(source, *path, name) for name, source in models.items()})


def source(location: str, overrides: Sequence[str] = ()) -> tuple[SourceSpec, tuple[str, ...]]:
    """Preference files without a spec: what a ``preferences`` entry says, its keys given as overrides.

    Returns the source, with its path relative to the current folder, and notes.

    Raises:
        SpecError: with every problem found.
    """
    raw: dict[str, Any] = {"path": location}
    problems = [problem for text in overrides for problem in override(raw, text)]
    preflight.importable_from(Path.cwd())
    values, invalid = validate({"preferences": [raw]}, Path.cwd())
    checked = Checked()
    check_data({"preferences": values.get("preferences")}, Path.cwd(), checked)
    faults = [fault for fault in (*invalid, *checked.faults) if fault.path[0] == "preferences"]
    problems += [Problem(".".join(map(str, fault.path[2:])) or location, fault.message) for fault in faults]
    if problems:
        raise SpecError(problems)
    return values["preferences"][0], tuple(checked.notes)


def override(raw: dict[str, Any], text: str) -> list[Problem]:
    """Put ``a.b=value`` into the raw document; the value is read as YAML."""
    key, separator, value_text = text.partition("=")
    where = f"--set {text}"
    if not separator or not key:
        return [Problem(where, "expected key.path=value, as in --set train.beta=0.2")]
    try:
        value = yamlfile.scalar(value_text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return [Problem(where, f"{value_text!r} is not a YAML value")]
    *parents, last = key.split(".")
    target = raw
    for parent in parents:
        inner = target.get(parent)
        target[parent] = dict(inner) if isinstance(inner, Mapping) else {}
        target = target[parent]
    target[last] = value
    return []


def validate(raw: Mapping[str, Any], base: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Validate section by section, so that valid sections can be checked even if others are not.

    Returns the valid sections (defaults filled in) and the faults of the others.
    """
    values: dict[str, Any] = {}
    faults = [
        Fault((key,), unknown_key(key, PipelineSpec.model_fields))
        for key in raw
        if key not in PipelineSpec.model_fields
    ]
    for name, field in PipelineSpec.model_fields.items():
        if name not in raw:
            if field.is_required():
                faults.append(Fault((name,), "required, but missing"))
            else:
                values[name] = field.get_default()
            continue
        annotation: Any = field.annotation
        adapter: TypeAdapter[Any] = TypeAdapter(
            typing.Annotated[annotation, *field.metadata] if field.metadata else annotation
        )
        try:
            values[name] = adapter.validate_python(raw[name], context={"base": base})
        except ValidationError as error:
            faults += invalid(error, raw, PipelineSpec, name)
    return values, faults

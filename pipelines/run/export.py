"""A champion leaves the store: its model's files, a model card and its lineage, in a folder of their own."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from pipelines.report import card
from pipelines.run.champions import Champion, Champions, names
from pipelines.run.execute import redacted
from pipelines.run.lineage import Id, Lineage, identity, settings, stage
from pipelines.run.store import ArtifactStore, Manifest
from stages.base import StageError
from stages.catalog import EVALUATE, HELDOUT, MATERIALISE, PROMOTE, TRAIN, VOTE
from stages.io.artifact import Artifact
from stages.io.filenames import ADAPTER, MODEL
from stages.policy.adapter_settings import ADAPTER_CONFIG, is_prompt_learning

LINEAGE = "rondo.json"
CARD = "README.md"
_OF_THE_BASE = "base"
"""The folder for those files of the base model whose names the export's own have."""
_MARK = ".rondo-export"
"""In a folder that an export has begun: it may be deleted."""
_CHUNK = 16 << 20
_LONG = 20
"""Lists longer than this stay in the store."""
_PERSONAL = ("annotators",)
_PATH = re.compile(r"(?:file://|(?<![\w/.~-]))/(?:[^\s/'\"]+/)+([^\s/'\"]+)")
_USER = re.compile(r"//[^/@\s]*@")
_HIDDEN = re.compile(r"(?i)(?:token|secret|password|credentials?|api[_-]?key|access[_-]?key)$")


def document(store: ArtifactStore, champions: Champions, entry: Champion, policy: Manifest) -> dict[str, Any]:
    """A champion and all that is known of how it came about, without what is this machine's own: the model card is made
    of it, and it is kept beside the model.

    Raises:
        StoreError: something in the store is damaged, or it cannot be reached.
    """
    lineage = Lineage(store, policy)
    entries = _entries(store, lineage)
    restored = next((each for each in champions.history if each.number == entry.restores), None)
    found = {
        "pipeline": champions.name,
        "champion": asdict(entry),
        **({"restores": asdict(restored)} if restored else {}),
        "run": entry.run or (restored.run if restored else None),
        "base": _base(lineage),
        "champions_before": _before(lineage, entries, entry),
        "rounds": [_round(lineage, each) for each in lineage.of(TRAIN)],
        "evaluations": [_evaluation(lineage, entries, each) for each in lineage.of(EVALUATE)],
        "heldout": [{"policy": _of(lineage.subject(each)), **each["summary"]} for each in lineage.of(HELDOUT)],
        "artifacts": [_artifact(each) for each in lineage.artifacts],
        "files": lineage.files(),
        "missing": lineage.missing(),
    }
    cleaned: dict[str, Any] = _clean(found, "" if store.store.is_local else store.location.rstrip("/"))
    return cleaned


def write(
    store: ArtifactStore, policy: Manifest, about: Mapping[str, Any], folder: Path, console: Console
) -> list[str]:
    """Put a policy's model, its card and its lineage into a folder, whole or not at all. Returns the files' names.

    Raises:
        StageError: the folder cannot be taken, or the policy is not whole.
        OSError: the disk cannot be written to.
    """
    folder = folder.expanduser().resolve()
    artifact = store.open(policy)
    with store.lock(f"export-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}", timeout=0) as free:
        if not free:
            raise StageError(f"{folder}: another export is at it")
        refuse_taken(folder)
        with _begun(folder.with_name(f"{folder.name}.part")) as part:
            _copy(artifact, part, console)
            adapter = (part / ADAPTER).is_dir()
            (part / LINEAGE).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            (part / CARD).write_text(card.text(about, ADAPTER if adapter else None), encoding="utf-8")
            (part / _MARK).unlink()
            made = sorted(file.relative_to(part).as_posix() for file in part.rglob("*") if file.is_file())
            part.rename(folder)
    return made


def refuse_taken(folder: Path) -> None:
    """Raises:
    StageError: there is something already.
    """
    if folder.exists() and not folder.is_dir():
        raise StageError(f"{folder} is a file; give a folder that is not there yet")
    if folder.is_dir() and any(folder.iterdir()):
        raise StageError(f"{folder} is not empty; give a folder that is not there yet, or an empty one")


@contextmanager
def _begun(part: Path) -> Iterator[Path]:
    """A fresh folder to write into; what an export that was killed left there goes, what anyone else put there stays.
    Of one that fails nothing is left."""
    ours = part.is_dir() and ((part / _MARK).exists() or not any(part.iterdir()))
    if part.exists() and not ours:
        raise StageError(f"{part} is in the way: it is where the export is written first; move it away or delete it")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / _MARK).touch()
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _copy(artifact: Artifact, target: Path, console: Console) -> None:
    """The model's files, and those of an adapter that the model is not whole without."""
    names = sorted(name for part in artifact.parts for name in part.files)
    if not any(name.startswith(f"{MODEL}/") for name in names):
        raise StageError(f"the policy {artifact.fingerprint[:12]} has no model in the store")
    config = f"{ADAPTER}/{ADAPTER_CONFIG}"
    wanted: tuple[str, ...] = (f"{MODEL}/",)
    if artifact.has(config) and is_prompt_learning(artifact.path(config)):
        wanted = (f"{MODEL}/", f"{ADAPTER}/")
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(20), DownloadColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        for name in (name for name in names if name.startswith(wanted)):
            place = target / name.removeprefix(f"{MODEL}/")
            if place in (target / CARD, target / LINEAGE):
                place = target / _OF_THE_BASE / place.name
            place.parent.mkdir(parents=True, exist_ok=True)
            task = bar.add_task(place.name, total=None)
            with bar.open(artifact.path(name), "rb", task_id=task) as source, place.open("wb") as copy:
                shutil.copyfileobj(source, copy, _CHUNK)
            bar.remove_task(task)


def _entries(store: ArtifactStore, lineage: Lineage) -> dict[Id, tuple[str, Champion]]:
    """The champions of all pipelines by the artifact in which their weights were made; of a policy that was champion
    several times the first."""
    found: dict[Id, tuple[str, Champion]] = {}
    for name in names(store):
        for entry in Champions(store, name).history:
            made = lineage.weights(store.manifest_at(entry.policy, entry.inputs))
            if made is not None:
                found.setdefault(identity(made), (name, entry))
    return found


def _before(lineage: Lineage, entries: Mapping[Id, tuple[str, Champion]], entry: Champion) -> list[dict[str, Any]]:
    """The champions that this one was trained from, the newest first."""
    found = [entries[identity(each)] for each in lineage.ancestors()[1:] if identity(each) in entries]
    return [
        {"champion": f"{name}@{each.number}", "since": each.since, "reason": each.reason, "policy": each.policy}
        for name, each in found
        if each.policy != entry.policy
    ]


def _base(lineage: Lineage) -> dict[str, Any] | None:
    """The model that it all began with."""
    ancestors = lineage.ancestors()
    if not ancestors or stage(ancestors[-1]) != MATERIALISE.name:
        return None
    base = ancestors[-1]
    config, summary = base["payload"].get("config", {}), base["summary"]
    known = {
        "hub": config.get("hub"),
        "revision": config.get("revision"),
        "source": Path(str(summary.get("source") or "")).name if not config.get("hub") else None,
        "parameters": summary.get("parameters"),
        "adapter": base["payload"].get("inputs", {}).get("adapter"),
    }
    return {name: value for name, value in known.items() if value}


def _round(lineage: Lineage, train: Manifest) -> dict[str, Any]:
    shards = lineage.input(train, "shards")
    return {
        "key": train.get("key"),
        "fingerprint": train["fingerprint"],
        "used": identity(train) in lineage.used,
        "settings": settings(train),
        "pairs": shards["summary"].get("pairs") if shards else None,
        **{name: train["summary"].get(name) for name in ("loss", "reward_accuracy", "reward_margin", "kl")},
        "promoted": _promoted(lineage, train),
    }


def _promoted(lineage: Lineage, train: Manifest) -> bool | None:
    """What a gate said; None where there was none."""
    gates = [each for each in lineage.of(PROMOTE) if _same(lineage.subject(each), train)]
    said = [bool(each["summary"].get("promoted")) for each in gates]
    return any(said) if said else None


def _evaluation(lineage: Lineage, entries: Mapping[Id, tuple[str, Champion]], made: Manifest) -> dict[str, Any]:
    summary = made["summary"]
    first = summary.get("baseline", "base")
    against = summary.get("against", {}).get(first, {})
    judged = lineage.input(made, "judged") or lineage.input(made, f"verdicts.{first}")
    ensemble = {"use": "ensemble"} if judged and stage(judged) == VOTE.name else {}
    judge = settings(judged).get("judge", ensemble) if judged else {}
    return {
        "policy": _of(lineage.subject(made)),
        "against": _against(lineage, entries, lineage.subject(made, f"baseline.{first}")),
        "judge": judge.get("use") if isinstance(judge, Mapping) else None,
        "confidence": settings(made).get("confidence"),
        **{name: summary.get(name) for name in ("win_rate", "judge_score", "baseline_score")},
        **{name: against.get(name) for name in ("length_controlled", "length_ratio")},
    }


def _against(lineage: Lineage, entries: Mapping[Id, tuple[str, Champion]], baseline: Manifest | None) -> str | None:
    if baseline is None:
        return None
    if identity(baseline) in entries:
        name, entry = entries[identity(baseline)]
        return f"champion {name}@{entry.number}"
    if stage(baseline) == MATERIALISE.name:
        ancestors = lineage.ancestors()
        return "the base model" if ancestors and _same(ancestors[-1], baseline) else "another base model"
    return f"the policy {baseline['fingerprint'][:12]} of {baseline.get('key')}"


def _of(policy: Manifest | None) -> str | None:
    return policy["fingerprint"] if policy else None


def _same(one: Manifest | None, other: Manifest) -> bool:
    return one is not None and identity(one) == identity(other)


def _artifact(manifest: Manifest) -> dict[str, Any]:
    payload = manifest["payload"]
    return {
        **{name: manifest.get(name) for name in ("fingerprint", "attempt", "key")},
        **{name: payload.get(name) for name in ("stage", "version", "config")},
        "inputs": payload.get("inputs", {}),
        "made_from": manifest.get("made_from", {}),
        **({"plugins": payload["plugins"]} if "plugins" in payload else {}),
        "summary": _short(manifest["summary"]),
        **{name: manifest.get(name) for name in ("seconds", "rondo", "committed")},
    }


def _short(value: Any) -> Any:
    """Without long lists, and without people."""
    if isinstance(value, Mapping):
        kept = {name: each for name, each in value.items() if name not in _PERSONAL}
        return {name: _short(each) for name, each in kept.items() if not isinstance(each, list) or len(each) <= _LONG}
    return [_short(each) for each in value] if isinstance(value, list) else value


def _clean(value: Any, bucket: str) -> Any:
    """Without the store's address, paths of this machine (their last name stays), users in addresses and secrets."""
    if isinstance(value, Mapping):
        hidden = {name for name, each in value.items() if isinstance(each, str) and _HIDDEN.search(name)}
        return {
            _clean(name, bucket): "[secret]" if name in hidden else _clean(each, bucket) for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_clean(each, bucket) for each in value]
    if not isinstance(value, str):
        return value
    text = _USER.sub("//", value)
    return redacted(_PATH.sub(r"\1", text.replace(bucket, "the store") if bucket else text))

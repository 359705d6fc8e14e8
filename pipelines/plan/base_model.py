"""Where a base model comes from: a folder, a GGUF file in a package, the hub, or a champion. Nothing is loaded here."""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.fingerprint import hash_path
from pipelines.plan.steps import Source, Step, found
from pipelines.spec.model_path import adapter_path, local_path
from pipelines.spec.models import CHAMPION, ChampionSource
from pipelines.spec.problems import Problem, SpecError
from stages.catalog import MATERIALISE, TRAIN
from stages.policy.config import MaterialiseConfig, ModelSource

_COMMIT = re.compile(r"^[0-9a-f]{40}$")


def base_step(source: ModelSource, base: Path, key: str = "base") -> Step:
    """The step that makes a model's artifact; a champion's is there already.

    Raises:
        SpecError: a hub revision cannot be resolved to a commit.
    """
    if source.model.startswith(CHAMPION):  # one that was not looked up has a place in a plan, but is not to be run
        return found(key, TRAIN, source.made if isinstance(source, ChampionSource) else (source.model, ""))
    path = local_path(source, base)
    inputs: dict[str, Step | Source] = {}
    if source.adapter is not None:
        adapter = adapter_path(source.adapter, base)
        inputs["adapter"] = Source("adapter", adapter, hash_path(adapter))
    if path is not None:
        name = "model" if path.is_dir() else path.name
        inputs["source"] = Source(name, path, hash_path(path))
        return Step(key, MATERIALISE, MaterialiseConfig(date=source.date), inputs)
    place = "policy" if key == "base" else key.removesuffix("/model").replace("/", ".") + ".model"
    commit = _commit(source.model, source.revision or "main", f"{place}.revision")
    return Step(key, MATERIALISE, MaterialiseConfig(hub=source.model, revision=commit, date=source.date), inputs)


def _commit(hub_id: str, revision: str, where: str) -> str:
    """The commit that a revision points to now, from the hub or, offline, from the local cache."""
    if _COMMIT.match(revision):
        return revision
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:  # the snapshot's folder is named by its commit
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=["config.json"])).name
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"{hub_id} at {revision} was found neither on the hub nor in its local cache: {reason}"
        raise SpecError([Problem(where, message)]) from None

"""What an engine serves, and how its process has to start. Imports no torch: the driver does without."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from stages.generate.config import RolloutConfig
from stages.io.artifact import Artifact
from stages.io.filenames import ADAPTER


@dataclass(frozen=True)
class Weights:
    """What an engine serves: a whole model, or a model with an adapter that has a name of its own.

    The adapter's name comes from its content: vLLM caches adapters by name, and a name used twice can serve the
    older one.
    """

    model: Path
    adapter: Path | None = None
    adapter_name: str = ""


def weights_for(policy: Artifact, adapter_base: Artifact | None) -> Weights:
    """An adapter on its base, where there is one (on a GPU); else the merged weights, which every policy has: on a CPU
    adapters cost a factor of 3 to 4."""
    folder = policy.folder()
    if adapter_base is not None and (folder / ADAPTER).is_dir():
        return Weights(adapter_base.folder(), folder / ADAPTER, f"adapter-{policy.fingerprint[:32]}")
    return Weights(folder)


def environment(config: RolloutConfig, gpu: bool) -> dict[str, str]:
    """Environment that the process of an engine has to start with.

    The engine runs inside the stage's own process: it starts in seconds, uses every core it is given, and
    leaves no child behind when the process ends.
    """
    shared = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if config.engine != "vllm":
        return shared
    cpu = {} if gpu else {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2")}
    return shared | cpu | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

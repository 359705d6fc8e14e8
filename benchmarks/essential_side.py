"""The rate of one step's essential work, without Ray around it; prints one line of JSON. ``overhead`` starts it."""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import islice
from typing import Any

import torch

from pipelines.run.store import ArtifactStore
from stages.core.records import messages_of
from stages.data.shards import ShardData
from stages.generate import serving
from stages.generate.config import RolloutConfig
from stages.io.allocator import keep_freed_memory
from stages.io.artifact import Artifact
from stages.io.filenames import RECORDS
from stages.io.tables import rows_of
from stages.policy.load import device_of_worker, load_encoder
from stages.train.config import TrainConfig

_SEQUENCES = 128
"""Sequences that are generated: a batch of the rollout stage's."""
_STEPS = 4
"""Optimizer steps that are timed, after one in which kernels are made and memory is mapped."""


def rollout(config: RolloutConfig, inputs: dict[str, Artifact], cpus: int) -> float:
    """Seconds per token of an engine that has started, on the step's first prompts."""
    os.environ.update(serving.environment(config, torch.cuda.is_available()))
    from stages.generate import engines

    weights = serving.weights_for(inputs["policy"], inputs.get("adapter_base") if torch.cuda.is_available() else None)
    encoder, engine = load_encoder(weights.model), engines.make(config, weights, cpus)
    rows = list(islice(rows_of(inputs["prompts"].tables(RECORDS)), max(1, _SEQUENCES // config.samples)))
    prompts = [encoder.prompt(messages_of(row["messages"])) for row in rows]
    engine.generate([ids for ids in prompts[:1] if not isinstance(ids, Exception)])
    started = time.perf_counter()
    answers = engine.generate([ids for ids in prompts if not isinstance(ids, Exception)])
    seconds = time.perf_counter() - started
    tokens = sum(len(sample.token_ids) for samples in answers for sample in samples)
    return seconds / tokens


def train(config: TrainConfig, inputs: dict[str, Artifact]) -> float:
    """Seconds per optimizer step of the training loop, on the step's first ones."""
    from benchmarks.rondo_side import trainable
    from stages.policy.load import product_precision
    from stages.train.loop import train_steps
    from stages.train.worker import Worker

    precision = product_precision(config.precision, device_of_worker())
    model, optimizer = trainable(config, inputs["policy"].folder(), precision)
    data = ShardData(inputs["shards"], inputs.get("reference"))
    worker = Worker(device=device_of_worker())
    rows = list(islice(train_steps(model, optimizer, data, config, worker, model.layout), 1 + _STEPS))
    timed = rows[1:] or rows
    return sum(row["seconds"] for row in timed) / len(timed)


def reference(config: dict[str, Any], inputs: dict[str, Artifact], cpus: int) -> float:
    """Seconds per pair of the forward passes, with a model that is loaded, on up to 64 pairs."""
    from stages.score.config import ReferenceConfig
    from stages.score.scorer import Scorer

    scorer = Scorer(ReferenceConfig.model_validate(config), inputs["policy"], inputs["shards"])
    torch.set_num_threads(cpus)
    pairs = scorer.data.pairs(range(min(64, len(scorer.data))))
    scorer.score(pairs[:8])
    started = time.perf_counter()
    scorer.score(pairs)
    return (time.perf_counter() - started) / len(pairs)


def main() -> None:
    task = json.loads(sys.argv[1])
    store = ArtifactStore(task["store"])
    there = {manifest["fingerprint"]: manifest for manifest in store.manifests()}
    inputs = {name: store.open(there[value]) for name, value in task["inputs"].items() if value in there}
    keep_freed_memory()
    torch.set_num_threads(task["cpus"])
    if task["stage"] == "rollout":
        seconds = rollout(RolloutConfig.model_validate(task["config"]), inputs, task["cpus"])
    elif task["stage"] == "train":
        seconds = train(TrainConfig.model_validate(task["config"]), inputs)
    else:
        seconds = reference(task["config"], inputs, task["cpus"])
    print("RESULT " + json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()

"""What a worker of a stage takes of its device's memory, in bytes: estimates from a model's shape and a configuration.

Counted as the code allocates it, for the moment at which it is most; docs/memory.md has the formulas. Sources: 16
bytes for each trained weight, Rajbhandari et al., arXiv:1910.02054, section 3.1; activations in the way of Korthikanti
et al., arXiv:2205.05198, section 4, for the tensors that Rondo's layers keep; NF4 with double quantization, Dettmers et
al., arXiv:2305.14314, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.plan.activations import Pass, backward, head, kept, logits
from pipelines.plan.shape import Shape
from stages.base import Resources, RolloutResources, TrainResources
from stages.core.forward.config import KNOWN
from stages.generate.config import RolloutConfig
from stages.score.config import ReferenceConfig, tokens_of_pass
from stages.train.config import FitConfig, RewardConfig, TrainConfig

GIB = 2**30
QUANTIZED: Mapping[str, float] = {"4bit": 0.516, "8bit": 1.0}
"""Bytes per weight of a quantised product: NF4 with its doubly quantised scales, or LLM.int8."""
PROCESS = {"cpu": int(0.6 * GIB), "gpu": int(1.0 * GIB)}
"""Python with its libraries; on a GPU the context and the kernels. The first was measured, the second is assumed."""
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PEFT = dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "stablelm"), ("q_proj", "v_proj")
)
"""What peft 0.21 adapts where no modules are named, of families with Llama's names; of others all products."""


@dataclass(frozen=True)
class Need:
    """A worker's memory in bytes. ``parts`` are there together while it works; ``moments`` are what it takes at other
    times, all in all, such as while weights are read. ``main`` are parts in main memory, beside a GPU that holds the
    others."""

    parts: Mapping[str, int]
    moments: Mapping[str, int] = field(default_factory=dict)
    main: Mapping[str, int] = field(default_factory=dict)

    @property
    def working(self) -> int:
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        return max(self.working, *self.moments.values(), 0)

    @property
    def when(self) -> str:
        """The moment at which it is most; empty while it works."""
        return next((name for name, size in self.moments.items() if size == self.total > self.working), "")


@dataclass(frozen=True)
class Adapter:
    weights: int
    modules: tuple[str, ...]


def adapter_of(config: FitConfig, shape: Shape) -> Adapter | None:
    """The adapter that a training adds: LoRA's rank x (in + out) for each product that it is on (Hu et al.,
    arXiv:2106.09685). Of peft's other types only that they are small is known."""
    rank: int
    named: Any
    if config.lora is not None:
        rank, named = config.lora.rank, config.lora.target_modules
    elif isinstance(config, TrainConfig) and config.peft is not None:
        if config.peft["peft_type"] != "LORA":
            return Adapter(0, _LINEAR)
        rank, named = config.peft.get("r", 8), config.peft.get("target_modules")
    else:
        return None
    default = _PEFT.get(shape.family, _LINEAR)
    wanted = [named] if isinstance(named, str) else list(named) if named else list(default)
    products = shape.products()
    modules = tuple(name for name in products if name in {each.rpartition(".")[2] for each in wanted})
    modules = modules or _LINEAR  # a pattern, or another family's names
    return Adapter(shape.layers * rank * sum(sum(products[name]) for name in modules), modules)


def training(shape: Shape, config: FitConfig, resources: TrainResources, longest: int) -> Need:
    """A worker of a training; of a range of workers the fewest, whose shares are largest.

    Args:
        longest: the most tokens of a prompt and a response together.
    """
    scores = isinstance(config, RewardConfig)
    shape = replace(shape, head=0) if scores else shape
    adapter, workers = adapter_of(config, shape), resources.worker_range[0]
    sharded = resources.strategy == "fsdp" and workers > 1
    offloaded = sharded and resources.offload
    run = Pass.of(
        shape, config.precision, config.layout, bool(resources.gpus), max(resources.least_tokens, 2 * longest),
        longest, None if adapter is None else adapter.modules,
    )  # fmt: skip
    trained = shape.weights if adapter is None else adapter.weights
    each = 8 + (2 if config.optimizer == "adamw_8bit" else 8) + (4 if workers > 1 and not sharded else 0)
    share = workers if sharded else 1
    quantization = config.quantization if isinstance(config, TrainConfig) else None
    hollow = _hollow(config)
    base = 0 if adapter is None else frozen(shape, run, quantization, hollow) // share
    gathered = _gathered(shape, run) if sharded else 0
    saved = kept(shape, run) * (1 if resources.checkpointing else shape.layers)
    saved += shape.layers * run.boundary(shape) if resources.checkpointing else 0
    at_head = 0 if scores else logits(shape, run)
    main = _offloaded(shape, run, trained, workers, hollow) if offloaded else {}
    parts = {
        "trained weights": 0 if offloaded else trained * each // share,
        "frozen weights": 0 if offloaded else base,
        "gathered": gathered + (_passing(shape, run) // workers if offloaded else 0),
        "copies in bf16": _copies(shape, run, sharded, resources.checkpointing),
        "activations": saved + max(backward(shape, run), at_head) + (0 if scores else head(shape, run)),
        "process": PROCESS[run.device],
    }
    moments = _moments(shape, parts, run, sharded, hollow, adapter is not None)
    return Need(parts, moments if quantization is None else {}, main)


def _hollow(config: FitConfig) -> bool:
    """Whether the model is built without its weights (``stages.policy.hollow``), so that each is only ever there in the
    precision that it is used in, and no worker of several has to hold all."""
    if not isinstance(config, TrainConfig) or config.peft is not None or config.quantization is not None:
        return False
    return not (config.lora and config.lora.dora)


def _moments(
    shape: Shape, parts: Mapping[str, int], run: Pass, sharded: bool, hollow: bool, adapted: bool
) -> dict[str, int]:
    """A model that is not hollow is read in float32 before a frozen base is rounded, and one that is sharded is put
    together in main memory by one worker at the end. With one worker, a second model is read beside the one in training
    to save an adapter's policy (``stages.train.policy.save_policy``)."""
    held = parts["trained weights"] + parts["frozen weights"] + parts["process"]
    whole = 4 * shape.weights
    if sharded:
        return {"while saving": held + 2 * whole} if run.device == "cpu" and not hollow else {}
    if not adapted:
        return {}
    return {"while reading": 0 if hollow else whole + parts["process"], "while saving": held + whole}


def frozen(shape: Shape, run: Pass, quantization: str | None, hollow: bool) -> int:
    """The frozen weights of all workers together: products in the run's precision (or quantised), the rest in float32
    or, of a ``hollow`` model with products in bf16, in the precision of the files."""
    rest = shape.stored if hollow and run.size == 2 else 4
    linear = QUANTIZED[quantization] if quantization else run.size
    ends = run.size * shape.head + rest * (shape.weights - shape.layers * shape.linear - shape.head)
    return int(shape.layers * shape.linear * linear) + ends


def _offloaded(shape: Shape, run: Pass, trained: int, workers: int, hollow: bool) -> dict[str, int]:
    """What a worker's shares take in main memory. Weights and gradients are pinned there, and for each tensor torch's
    allocator of pinned memory takes the next power of two."""

    def pinned(product: int, rest: int) -> int:
        def piece(numbers: int, size: int) -> int:
            return 1 << (-(-numbers // workers) * size - 1).bit_length() if numbers else 0

        layer = sum(piece(into * out, product) for into, out in shape.products().values())
        return shape.layers * layer + piece(shape.embedding, rest) + piece(shape.head, product)

    process = PROCESS["cpu"]
    if run.full:
        return {"trained weights": 2 * pinned(4, 4) + 8 * trained // workers, "process": process}
    rest = shape.stored if hollow and run.size == 2 else 4
    return {"trained weights": 16 * trained // workers, "frozen weights": pinned(run.size, rest), "process": process}


def _passing(shape: Shape, run: Pass) -> int:
    """Of all workers' shares, what lies on a card on the way: a layer's weights before they are gathered, and its
    gradients after they were summed."""
    return shape.layer * ((4 + 4) if run.full else run.size)


def _gathered(shape: Shape, run: Pass) -> int:
    """What FSDP brings together: the embedding and the head for a whole step, with their gradients where they are
    trained; two layers at a time, the next while one is at work, and one layer's gradients, which are summed over the
    workers in float32. Trained products are gathered as they are used, in families that are known
    (``stages.train.sharding``)."""
    if run.full:
        ends = (4 + 4) * (shape.embedding + shape.head + shape.other)
        layer = (run.size if shape.family in KNOWN else 4) * shape.linear + 4 * (shape.layer - shape.linear)
        return ends + 2 * layer + layer + 4 * shape.layer
    rest = shape.stored if run.size == 2 else 4
    return rest * (shape.embedding + shape.other) + run.size * (shape.head + 2 * shape.layer)


def _copies(shape: Shape, run: Pass, sharded: bool, checkpointing: bool) -> int:
    """Products of trained float32 weights in bf16 are made with copies, which the backward pass needs again: of all
    layers, or with ``checkpointing`` of one at a time; autocast, in the padded layout, keeps those of all layers. What
    several workers hold in shares is gathered in bf16 already, in families that are known."""
    if not run.full or run.size == 4 or (sharded and shape.family in KNOWN):
        return 0
    return 2 * shape.linear * (1 if checkpointing and run.packed else shape.layers)


def reference(shape: Shape, config: ReferenceConfig, resources: Resources, longest: int) -> Need:
    """A worker that scores pairs."""
    tokens = max(tokens_of_pass(bool(resources.gpus)), 2 * longest)
    run = Pass.of(shape, config.precision, config.layout, bool(resources.gpus), tokens, longest, ())
    parts = {
        "weights": frozen(shape, run, config.quantization, config.quantization is None),
        "activations": max(kept(shape, run) + backward(shape, run), logits(shape, run)) + head(shape, run),
        "process": PROCESS[run.device],
    }
    return Need(parts)


def rollout(shape: Shape, config: RolloutConfig, resources: RolloutResources) -> Need:
    """A generation engine, without its cache of keys and values: how large that becomes is up to vLLM. transformers
    holds weights in float32, vLLM in the precision that the model's configuration names."""
    size = 4 if config.engine == "transformers" else shape.served if resources.gpus else min(shape.served, 2)
    device = "gpu" if resources.gpus else "cpu"
    return Need({"weights": size * shape.weights // resources.tensor_parallel, "process": PROCESS[device]})

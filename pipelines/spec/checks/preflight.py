"""What can be known before anything heavy starts: whether sections fit together and files can be read."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.plugins import plugin_hash
from pipelines.spec.asked import judges
from pipelines.spec.checks import adapters, judging, model, sweep, tied
from pipelines.spec.checks.data import check_data
from pipelines.spec.model_path import is_local
from pipelines.spec.problems import Checked, Fault, KeyPath
from stages.base import Plugin, resolve
from stages.core.losses import config as loss_config
from stages.judge.judges.config import CustomJudge
from stages.train.config import TrainConfig

_LEAST_SIMPO_BETA = 0.5


def importable_from(folder: Path) -> None:
    """Make the user's own modules beside the spec and in the current folder importable."""
    for path in (str(folder), str(Path.cwd())):
        if path not in sys.path:
            sys.path.append(path)


def check(values: Mapping[str, Any], base: Path, growing: bool = False) -> Checked:
    """Check the sections that are valid by themselves against each other and against the files they name."""
    checked = Checked()
    _workers(values, checked)
    checked.faults += _offload(values.get("resources"))
    checked.faults += _cards(values.get("resources"))
    checked.faults += _needs(values)
    checked.faults += _settings(values)
    checked.faults += _installed(values)
    checked.faults += _adapters(values, base)
    checked.faults += _objective(values.get("train"))
    checked.notes += _advice(values.get("train"))
    for path, plugin, arguments in _plugins(values):
        checked.faults += _plugin_imports(path, plugin, arguments)
    if (policy := values.get("policy")) is not None:
        checked.faults += [Fault(("policy", "model"), message) for message in model.problems(policy, base)]
        checked.faults += [Fault(("policy", "adapter"), message) for message in model.adapter_problems(policy, base)]
    checked.faults += judging.faults(values, base)
    checked.notes += judging.notes(values)
    if growing and values.get("reward") is not None:
        message = "not trained by a schedule; train it with rondo train-reward, and name its folder in judge.model"
        checked.faults.append(Fault(("reward",), message))
    checked.faults += sweep.faults(values)
    checked.notes += sweep.notes(values)
    checked.faults += tied.faults(values.get("train"), values.get("policy"), base)
    check_data(values, base, checked, growing)
    return checked


def _workers(values: Mapping[str, Any], checked: Checked) -> None:
    """How training is spread over workers."""
    train, resources = values.get("train"), values.get("resources")
    if train is None or resources is None:
        return
    most = resources.train.worker_range[1]
    if train.batch_size < most:
        message = f"{train.batch_size} pairs leave some of {most} workers (resources.train.workers) without work"
        checked.faults.append(Fault(("train", "batch_size"), f"{message}; use {most} or more"))
    elif train.batch_size % most:
        checked.notes.append(
            f"train.batch_size {train.batch_size} does not divide among {most} workers (resources.train.workers): "
            "the results are the same, but in every step some workers wait for others"
        )
    if resources.train.strategy == "fsdp":
        for name in ("quantization", "optimizer"):
            if (value := getattr(train, name)) in ("4bit", "8bit", "adamw_8bit"):
                message = f"{value} cannot be divided among workers (resources.train.strategy: fsdp); use ddp"
                checked.faults.append(Fault(("train", name), message))


def _cards(resources: Any) -> Iterator[Fault]:
    """nccl refuses two workers of a training on one GPU."""
    train = None if resources is None else resources.train
    if train is not None and 0 < train.gpus < 1 and train.worker_range[1] > 1:
        message = f"{train.gpus:g} of a GPU is for a training of one worker: several cannot share a card"
        yield Fault(("resources", "train", "gpus"), f"{message}; set gpus: 1, or workers: 1")


def _offload(resources: Any) -> Iterator[Fault]:
    """Shares in main memory: there have to be shares, and a GPU that they are not in."""
    if resources is None or not resources.train.offload:
        return
    train = resources.train
    wanted = {
        "strategy: fsdp": train.strategy == "fsdp",
        "workers: 2 or more": train.worker_range[0] > 1,
        "gpus: 1": train.gpus > 0,
    }
    if lacking := [setting for setting, there in wanted.items() if not there]:
        message = "moves what each of several workers with a GPU holds of a model to main memory"
        yield Fault(
            ("resources", "train", "offload"), f"{message}; set {' and '.join(lacking)} beside it, or leave it out"
        )


def _needs(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Sections that only make sense together."""
    prompts, preferences = values.get("prompts"), values.get("preferences")
    if prompts is None or preferences is None or "judge" not in values:
        return
    if not prompts.train and not preferences:
        yield Fault(("prompts", "train"), "nothing to train on; give prompts.train, preferences or both")
    asked = prompts.heldout or (prompts.train and values.get("revise") is None)
    if asked and values["judge"] is None:
        yield Fault(("judge",), "required when there are prompts; for example judge: {use: sentiment}")
    if not prompts.train and values.get("rounds", 1) > 1:
        yield Fault(("rounds",), "more than one round needs prompts.train: rounds after the first make their own pairs")
    rollout = values.get("rollout")
    pair = values.get("pair")
    accepted = pair.rejection.samples if pair is not None and pair.strategy == "rejection_sampling" else 0
    if prompts.train and rollout is not None and rollout.samples < 2:
        yield Fault(("rollout", "samples"), "a pair needs at least 2 samples per prompt")
    elif prompts.train and rollout is not None and rollout.samples <= accepted:
        message = f"rejection sampling needs more than the {accepted} that it accepts (pair.rejection.samples), say 64"
        yield Fault(("rollout", "samples"), message)


def _settings(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Settings that are valid one by one and cannot work together."""
    rollout, prompts, policy = values.get("rollout"), values.get("prompts"), values.get("policy")
    if rollout is not None and rollout.max_tokens >= rollout.max_length:
        yield Fault(
            ("rollout", "max_tokens"),
            f"{rollout.max_tokens} leaves no room for a prompt within rollout.max_length {rollout.max_length}",
        )
    if rollout is not None and prompts is not None and prompts.train and rollout.temperature == 0:
        yield Fault(("rollout", "temperature"), "0 makes all answers to a prompt the same, and no pairs; use 0.5 to 1")
    resources = values.get("resources")
    if rollout is not None and rollout.engine == "transformers":
        if rollout.engine_options:
            yield Fault(
                ("rollout", "engine_options"), "these are vLLM's, and rollout.engine is transformers; leave them out"
            )
        if resources is not None and resources.rollout.tensor_parallel > 1:
            message = "transformers uses one GPU a worker; set rollout.engine to vllm, or leave it out"
            yield Fault(("resources", "rollout", "tensor_parallel"), message)
    if policy is not None and policy.revision and is_local(policy):
        yield Fault(("policy", "revision"), "only hub models have revisions; leave it out for a folder or pkg://")


def _installed(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Libraries that the spec needs and that an extra provides."""
    rollout = values.get("rollout")
    if rollout is not None and rollout.engine == "vllm" and not find_spec("vllm"):
        yield Fault(("rollout", "engine"), "vllm is not installed: pip install 'rondo-dpo[cpu]' or 'rondo-dpo[gpu]'")


def _adapters(values: Mapping[str, Any], base: Path) -> Iterator[Fault]:
    """The training's adapter, also on this model, and what quantisation needs."""
    train, rollout, prompts = values.get("train"), values.get("rollout"), values.get("prompts")
    if train is None:
        return
    found, policy = list(adapters.faults(train)), values.get("policy")
    if not found:
        family = model.configuration(policy, base).get("model_type") if policy is not None else None
        found = list(adapters.misfit(train, family))
    for path, message in found:
        yield Fault(("train", *path), message)
    sampled = prompts is not None and (prompts.train or prompts.heldout)
    if train.prompt_learning and sampled and rollout is not None and rollout.engine == "vllm":
        message = f"vLLM cannot serve the virtual tokens of {train.peft['peft_type']}; use transformers, or auto"
        yield Fault(("rollout", "engine"), message)
    if adapters.needs_lora(train):
        yield Fault(("train", "quantization"), "a quantised base is frozen: add train.lora, or train.peft of type LORA")
    for name in adapters.needs_bitsandbytes(train):
        message = f"{getattr(train, name)} needs bitsandbytes: pip install 'rondo-dpo[quantization]'"
        yield Fault(("train", name), message)
    resources = values.get("resources")
    if train.quantization == "4bit" and resources is not None:
        for stage in ("train", "reference"):
            if not getattr(resources, stage).gpus:
                message = f"4bit needs a GPU (bitsandbytes has no gradient for it on a CPU): resources.{stage}.gpus"
                yield Fault(("train", "quantization"), message)


def _objective(train: TrainConfig | None) -> Iterator[Fault]:
    if train is not None:
        yield from (Fault(("train", key), message) for key, message in loss_config.conflicts(train))


def _advice(train: TrainConfig | None) -> Iterator[str]:
    """Settings that work but are probably not intended."""
    if train is not None and train.beta < _LEAST_SIMPO_BETA and any(loss.use == "simpo" for loss in train.loss):
        yield (
            f"train.beta {train.beta} is far below what simpo is used with (2 to 10): its log-probabilities are means "
            "per token"
        )


def _plugins(values: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Plugin, tuple[str, ...]]]:
    """The user's own code that the spec names: where, what, and the arguments it gets in addition to its options."""
    judge, train = values.get("judge"), values.get("train")
    for path, each in judges(judge, values.get("evaluate")):
        if isinstance(each, CustomJudge):
            yield path, each, ()
    for index, source in enumerate(values.get("preferences") or ()):
        if isinstance(source.format, Plugin):
            yield ("preferences", index, "format"), source.format, ("row",)
    if train is None:
        return
    for index, loss in enumerate(train.loss):
        if isinstance(loss, loss_config.CustomLoss):
            yield ("train", *loss_config.loss_path(train, index)), loss, loss_config.LOSS_ARGUMENTS
    for index, constraint in enumerate(train.constraints):
        yield ("train", "constraints", index), constraint, loss_config.CONSTRAINT_ARGUMENTS


def _plugin_imports(path: KeyPath, plugin: Plugin, arguments: tuple[str, ...]) -> Iterator[Fault]:
    try:
        plugin_hash(plugin.use)
        function = resolve(plugin.use)
    except (Exception, SystemExit) as error:
        yield Fault((*path, "use"), f"{plugin.use} cannot be imported: {type(error).__name__}: {error}")
        return
    if not callable(function):
        yield Fault((*path, "use"), f"{plugin.use} is not a class or function")
        return
    try:
        signature = inspect.signature(function)
    except ValueError:  # a callable that does not reveal its parameters
        return
    try:
        signature.bind_partial(*arguments)
    except TypeError as error:
        called = f"({', '.join(arguments)}, **options)"
        yield Fault((*path, "use"), f"{plugin.use} cannot be called with {called}: {error}")
        return
    try:
        signature.bind(*arguments, **plugin.options)
    except TypeError as error:
        yield Fault((*path, "options"), f"{plugin.use} does not take these options: {error}")

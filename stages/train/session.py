"""What every training worker runs, whoever started it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from stages.base import TrainResources
from stages.core.forward.logprobs import ResponseLogprobs, freeze
from stages.core.forward.rewards import ResponseRewards
from stages.core.losses.objective import UserFunctionError
from stages.data.shards import ShardData
from stages.io.allocator import keep_freed_memory, return_freed_memory
from stages.io.filenames import CHAT, METRICS
from stages.io.parts import make_importable
from stages.policy.load import device_of_worker, load_encoder, product_precision
from stages.train import checkpoints, micro_batch_size, proof, reward, save_shares
from stages.train.arguments import POLICY, Arguments, is_measured
from stages.train.bases import Bases, sharing
from stages.train.checkpoints import TrainState
from stages.train.closing import ClosedPairs
from stages.train.config import RewardConfig, TrainConfig
from stages.train.gradients import MicroBatchError
from stages.train.kept import Kept
from stages.train.loop import NotFiniteError, objective_of, train_steps
from stages.train.micro_batch_size import Found
from stages.train.policy import HollowPolicy, build_optimizer, rebuild_policy, save_policy, without_dropout
from stages.train.sharding import distribute, shards, shares_on, whole_weights
from stages.train.worker import PairData, Worker

_NAMED = 10
"""Pairs that an error names."""


class Session(Protocol):
    """A worker's place among the others, and whom it tells how it goes."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def abandoned(self) -> bool:
        """Whether a worker has given up for a reason that would be the same again."""
        ...

    def abandon(self, reason: str) -> None: ...
    def post(self, step: int, steps: int, note: str) -> None: ...
    def kept(self, step: int) -> None:
        """A step is done and kept."""
        ...

    def measured(self, rows: list[dict[str, float]]) -> None:
        """The trial that this is has been measured; ``rows`` are those of all steps so far. Ends the training, by
        SystemExit, if the trial does not go on."""
        ...


def train_worker(arguments: Arguments, session: Session, bases: Bases | None = None) -> None:
    """Train from the newest checkpoint to the end, and write the finished policy unless it is a trial.

    Args:
        bases: keeps the base model for the next training in this process.
    """
    config, resources = arguments.config, arguments.resources
    make_importable(arguments.importable)
    if session.abandoned:
        return
    inputs, kept = arguments.inputs, Kept(arguments.output)
    initial = inputs["policy"].folder()
    device, sharded = device_of_worker(), shards(resources.strategy, session.world)
    return_freed_memory() if sharded else keep_freed_memory()
    torch.set_num_threads(arguments.cpus)
    torch.manual_seed(config.seed)
    precision = product_precision(config.precision, device)
    with contextlib.ExitStack() as leaving:
        place = torch.device("cpu") if sharded else device
        scorer: type[ResponseLogprobs] = ResponseLogprobs
        if isinstance(config, RewardConfig):
            built, scorer = leaving.enter_context(reward.built(config, initial, place)), ResponseRewards
        else:
            assert isinstance(config, TrainConfig)
            shares = sharing(config, initial, device) if sharded else None
            built = shares or leaving.enter_context((bases or Bases(keep=False)).policy(config, initial, place))
        bare = scorer(freeze(built.model, precision), built.layout, precision, resources.checkpointing)
        without_dropout(bare)
        leaving.callback(bare.release)
        model = distribute(bare, resources.strategy, device, resources.offload)
        if built.shares is not None:
            built.shares.base.fill(shares_on(device, resources.offload))
        optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], config)
        state = TrainState(bare, optimizer, 0, [])
        if (folder := kept.newest()) is not None:
            state = checkpoints.load(folder, bare, optimizer)
            print(f"continued from step {state.step}", flush=True)
        data: PairData = ShardData(inputs["shards"], inputs.get("reference"))
        if isinstance(config, RewardConfig):
            data = ClosedPairs(ShardData(inputs["shards"]), load_encoder(initial))
        worker = Worker(session.rank, session.world, device, resources.least_tokens, _all_sum, sharded)
        with _given_up(session, resources):
            found = micro_batch_size.find(
                model, bare.layout, optimizer, data, config, objective_of(config), resources, worker, arguments.output
            )
            worker = replace(worker, micro_batch_tokens=found.tokens)
        with _given_up(session, resources, found):
            for row in train_steps(model, optimizer, data, config, worker, bare.layout, state.step):
                _after_step(row, state, arguments, session, kept, worker)
        if arguments.watch is not None and not is_measured(state.metrics[-1]):  # another run's last checkpoint
            state.metrics[-1] |= arguments.watch.measure(state.model, worker)
            if sharded or session.rank == 0:
                kept.keep(state.step, partial(checkpoints.save, state), together=sharded, last=True, again=True)
            session.measured(state.metrics)
        if arguments.finish:
            _finish(session, state, data, arguments, initial, built.shares, sharded)


def _after_step(
    row: dict[str, float], state: TrainState, arguments: Arguments, session: Session, kept: Kept, worker: Worker
) -> None:
    """Tell how it goes, measure what is to be measured, and keep what a crash must not cost."""
    step, steps = int(row["step"]), int(row["steps"])
    state.step = step
    state.metrics.append(row)
    watch, sharded = arguments.watch, worker.lockstep
    if session.rank == 0:
        session.post(step, steps, f"loss {row['loss']:.3f}, accuracy {row['reward_accuracy']:.2f}")
    look = watch is not None and watch.due(step, steps)
    if look:
        assert watch is not None
        row |= watch.measure(state.model, worker)
    if look or step == steps or step % arguments.resources.checkpoint_every == 0:
        if sharded or session.rank == 0:
            kept.keep(step, partial(checkpoints.save, state), together=sharded, last=step == steps)
        session.kept(step)
    if look:
        session.measured(state.metrics)


@contextmanager
def _given_up(session: Session, resources: TrainResources, found: Found | None = None) -> Iterator[None]:
    """Leave the reason for the driver when training cannot go on, where trying again would end the same way.

    The error is raised all the same, since other workers may be waiting for this one: Ray Train then ends them all,
    and the workers that it starts anew find the reason and stop.
    """
    try:
        yield
    except (NotFiniteError, MicroBatchError, UserFunctionError) as error:
        session.abandon(explain(error, resources, found))
        raise


def explain(error: Exception, resources: TrainResources, found: Found | None = None) -> str:
    """What went wrong and what to do about it; ``found`` is what ``auto`` did, if it was asked to."""
    if isinstance(error, MicroBatchError):
        said = f"lower resources.train.micro_batch_tokens ({resources.micro_batch_tokens})"
        if resources.micro_batch_tokens == "auto":
            size = found or Found(resources.least_tokens)
            said = f"set resources.train.micro_batch_tokens below {size.tokens}" + (f" ({found})" if found else "")
        return f"{error}; {said}, set resources.train.checkpointing: true, or lower prepare.max_length"
    if isinstance(error, NotFiniteError):
        named = f" for the pairs {', '.join(error.pairs[:_NAMED])}" if error.pairs else ""
        more = f" and {len(error.pairs) - _NAMED} more" if len(error.pairs) > _NAMED else ""
        return f"{error}{named}{more}; lower train.learning_rate, or use train.precision: fp32"
    return str(error)


def _all_sum(value: Tensor) -> Tensor:
    if torch.distributed.is_initialized():
        value = value.to(device_of_worker())
        torch.distributed.all_reduce(value)
    return value


def _finish(
    session: Session, state: TrainState, data: PairData, arguments: Arguments, initial: Path,
    shares: HollowPolicy | None, sharded: bool,
) -> None:  # fmt: skip
    """Worker 0 writes the finished policy; all workers have to call this."""
    trained, config = state.model, arguments.config
    assert isinstance(trained, ResponseLogprobs)
    weights = whole_weights(trained.model) if sharded and shares is None else {}
    if session.rank != 0:
        if shares is not None:
            save_shares.save(shares, initial, None)
        return
    with arguments.output.part(POLICY) as part:
        trained.release()
        if shares is not None:
            save_shares.save(shares, initial, part.folder)
        elif isinstance(config, RewardConfig):
            assert isinstance(trained, ResponseRewards)
            reward.finish(trained, weights, config, data, arguments.inputs, part.folder)
        else:
            assert isinstance(config, TrainConfig)
            _save(trained, weights, config, data, initial, part.folder)
        if (chat := initial / CHAT).is_file():
            shutil.copyfile(chat, part.folder / CHAT)
        lines = "".join(json.dumps(row) + "\n" for row in state.metrics)
        (part.folder / METRICS).write_text(lines, encoding="utf-8")


def _save(
    trained: ResponseLogprobs, weights: Mapping[str, Tensor], config: TrainConfig, data: PairData, initial: Path,
    folder: Path,
) -> None:  # fmt: skip
    """Write a policy, with the note that proves it; ``weights`` are the whole ones of a sharded model."""
    whole = rebuild_policy(config, initial, weights) if weights else trained.model
    save_policy(whole, config, initial, folder, lambda model: proof.write(model, data, folder))

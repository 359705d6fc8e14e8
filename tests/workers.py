"""Several training workers in one process, each a thread, with what they exchange."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

_SECONDS = 30.0
"""How long a worker waits for another that has gone another way."""

T = TypeVar("T")


class Group:
    """What ``torch.distributed`` is to processes. All workers have to come to every exchange."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._given: list[Tensor | None] = [None] * world
        self._barrier = threading.Barrier(world, timeout=_SECONDS)

    def all_sum(self, rank: int, value: Tensor) -> Tensor:
        """The sum over all workers, added up in the order of their ranks."""
        self._given[rank] = value.detach().clone()
        self._barrier.wait()
        total = torch.stack([tensor for tensor in self._given if tensor is not None]).sum(0)
        self._barrier.wait()
        return total

    def run(self, work: Callable[[int], T]) -> list[T]:
        """``work(rank)`` of every worker at the same time; the first error that one of them raises."""

        def start(rank: int) -> T:
            torch.set_num_threads(1)
            try:
                return work(rank)
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.world) as threads:
            futures = [threads.submit(start, rank) for rank in range(self.world)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [future.result() for future in futures]


class Replica(torch.nn.Module):
    """Stands where DistributedDataParallel stands: the last backward pass of a step leaves the mean of the workers'
    gradients. ``quiet`` counts the backward passes that would not communicate."""

    def __init__(self, module: torch.nn.Module, group: Group, rank: int) -> None:
        super().__init__()
        self.module = module
        self.quiet = 0
        self._silent = False
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: self._exchange(p, group, rank))

    def _exchange(self, parameter: torch.nn.Parameter, group: Group, rank: int) -> None:
        if not self._silent:
            assert parameter.grad is not None
            parameter.grad = group.all_sum(rank, parameter.grad) / group.world

    def forward(self, *arguments: Any) -> Any:
        return self.module(*arguments)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        self.quiet += 1
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

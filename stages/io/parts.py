"""How stages use Ray: a list of small tasks in, Arrow tables out, in the tasks' order."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray

from stages.base import Resources, resolve
from stages.io.allocator import give_back_memory

_RETRIES = 3
"""How often a lost process is replaced."""
_AHEAD = 4
"""Tables that may be waiting to be taken."""


def map_tasks(tasks: Sequence[Mapping[str, Any]], function: Any) -> Iterator[pa.Table]:
    """Run ``function(task) -> iterable of tables`` for each task, in parallel, and yield the tables in order.

    Tables are streamed: nothing holds more than the few in flight. A single task needs no distribution.
    """
    if len(tasks) == 1:
        yield from _one_task(function.__name__, function, tasks[0], cpus=1)
        return
    data = _ray_data()

    def call(batch: pa.Table) -> Iterator[pa.Table]:
        for task in batch.to_pylist():
            yield from function(task)

    dataset = data.from_items(list(tasks), override_num_blocks=len(tasks))
    yield from _tables(dataset.map_batches(call, batch_size=1, batch_format="pyarrow"))


def map_actors(
    tasks: Sequence[Mapping[str, Any]],
    worker: str,
    resources: Resources,
    env: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Iterator[pa.Table]:
    """Like :func:`map_tasks`, but the function is an object (a model, an engine) made once per worker.

    ``worker`` is a class as ``module:name``, which only the workers import: the driver does without torch. It is called
    with ``arguments`` and ``cpus``, then with one-row tables, and closed if it has a ``close``. Any memory and devices
    it holds are free once the last table has been taken. A single worker is one long task: there is nothing to
    distribute, and its process, with all that it has imported, serves the next stage.
    """
    cpus = resources.cpus_per_worker(ray.cluster_resources().get("CPU", 1))
    if resources.workers == 1:
        inputs = worker, {**arguments, "cpus": cpus}, list(tasks)
        yield from _one_task(worker.partition(":")[2], mapped, *inputs, cpus=cpus, gpus=resources.gpus, env=env)
        return
    data = _ray_data()
    dataset = data.from_items(list(tasks), override_num_blocks=len(tasks)).map_batches(
        _Actor,
        batch_size=1,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(size=min(resources.workers, len(tasks))),
        num_cpus=cpus,
        num_gpus=resources.gpus or None,
        fn_constructor_kwargs={**arguments, "worker": worker, "cpus": cpus},
        runtime_env={"env_vars": dict(env or {})},
    )
    yield from _tables(dataset)


def call(function: str, *inputs: Any, gpus: float = 0) -> Any:
    """What a function (``module:name``) returns. If Ray has been started it runs in a worker's process, so that its
    imports are there for later stages and not in the driver; else here."""
    if not ray.is_initialized():
        return resolve(function)(*inputs)
    (result,) = _one_task(function.partition(":")[2], called, function, inputs, cpus=1, gpus=gpus)
    return result


def called(function: str, inputs: Sequence[Any]) -> Iterator[Any]:
    try:
        yield resolve(function)(*inputs)
    finally:
        give_back_memory()


def _one_task(
    name: str, function: Any, *inputs: Any, cpus: int, gpus: float = 0, env: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """What ``function(*inputs)`` yields, in one process."""
    call = ray.remote(
        num_cpus=cpus,
        num_gpus=gpus,
        max_calls=1 if gpus else 0,  # a device's memory is freed only when the process ends
        max_retries=_RETRIES,
        num_returns="streaming",
        _generator_backpressure_num_objects=_AHEAD,
    )(function)
    options = {"runtime_env": {"env_vars": dict(env)}} if env else {}
    tables = call.options(name=name, **options).remote(*inputs)
    try:
        for table in tables:
            yield ray.get(table)
    except ray.exceptions.RayTaskError as error:
        raise error.cause or error from None  # else a stage's own words are lost on the way
    finally:
        ray.cancel(tables, force=True)


def mapped(worker: str, arguments: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> Iterator[pa.Table]:
    """The tables that a worker makes of some tasks, in order."""
    mapper = resolve(worker)(**arguments)
    try:
        for task in tasks:
            yield from mapper(pa.Table.from_pylist([task]))
    finally:
        if hasattr(mapper, "close"):
            mapper.close()
        del mapper
        give_back_memory()


class _Actor:
    """A worker as an actor of Ray Data."""

    def __init__(self, worker: str, **arguments: Any) -> None:
        self._mapper = resolve(worker)(**arguments)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        yield from self._mapper(batch)


def _tables(dataset: Any) -> Iterator[pa.Table]:
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


def _ray_data() -> Any:
    """Ray Data, set up; imported only where there is work to distribute."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else a stage's own words are lost on the way
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return ray.data

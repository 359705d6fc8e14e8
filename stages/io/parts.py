"""How stages use Ray: a list of small tasks in, Arrow tables out, in the tasks' order."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray.data

from stages.base import Resources
from stages.io.allocator import give_back_memory

_RETRIES = 3
"""How often a lost process is replaced."""
_AHEAD = 4
"""Tables that may wait to be taken."""


def map_tasks(tasks: Sequence[Mapping[str, Any]], function: Any, **options: Any) -> Iterator[pa.Table]:
    """Run ``function(task) -> iterable of tables`` for each task, in parallel, and yield the tables in order.

    Tables are streamed: nothing holds more than the few that are on their way. A single task needs no sharing out.
    """
    if len(tasks) == 1:
        yield from _one_task(function.__name__, function, tasks[0], cpus=1)
        return
    _configure()

    def call(batch: pa.Table) -> Iterator[pa.Table]:
        for task in batch.to_pylist():
            yield from function(task)

    dataset = ray.data.from_items(list(tasks), override_num_blocks=len(tasks))
    yield from _tables(dataset.map_batches(call, batch_size=1, batch_format="pyarrow", **options))


def map_actors(
    tasks: Sequence[Mapping[str, Any]],
    worker: type,
    resources: Resources,
    env: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Iterator[pa.Table]:
    """Like :func:`map_tasks`, but the function is an object (a model, an engine) that is made once a worker.

    ``worker`` is called with ``arguments`` and ``cpus``, then with one-row tables, and closed if it can be. Whatever
    memory and devices it holds are free when the last table has been taken. A single worker is one long task: there is
    nothing to share out, and its process, with all that it has imported, serves the next stage.
    """
    cpus = resources.cpus_per_worker(ray.cluster_resources().get("CPU", 1))
    if resources.workers == 1:
        inputs = worker, {**arguments, "cpus": cpus}, list(tasks)
        yield from _one_task(worker.__name__, mapped, *inputs, cpus=cpus, gpus=resources.gpus, env=env)
        return
    _configure()
    dataset = ray.data.from_items(list(tasks), override_num_blocks=len(tasks)).map_batches(
        worker,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(resources.workers, len(tasks))),
        num_cpus=cpus,
        num_gpus=resources.gpus or None,
        fn_constructor_kwargs={**arguments, "cpus": cpus},
        runtime_env={"env_vars": dict(env or {})},
    )
    yield from _tables(dataset)


def _one_task(
    name: str, function: Any, *inputs: Any, cpus: int, gpus: float = 0, env: Mapping[str, str] | None = None
) -> Iterator[pa.Table]:
    """The tables of ``function(*inputs)``, made in one process."""
    call = ray.remote(
        num_cpus=cpus,
        num_gpus=gpus,
        max_calls=1 if gpus else 0,  # a device's memory is free only when the process has ended
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


def mapped(worker: type, arguments: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> Iterator[pa.Table]:
    """The tables that a worker makes of some tasks, in order."""
    mapper = worker(**arguments)
    try:
        for task in tasks:
            yield from mapper(pa.Table.from_pylist([task]))
    finally:
        if hasattr(mapper, "close"):
            mapper.close()
        del mapper
        give_back_memory()


def _tables(dataset: Any) -> Iterator[pa.Table]:
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


def _configure() -> None:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else a stage's own words are lost on the way
    logging.getLogger("ray.data").setLevel(logging.WARNING)

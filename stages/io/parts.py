"""How stages use Ray Data: a list of small tasks in, Arrow tables out, in the tasks' order."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray.data

from stages.base import Resources


def map_tasks(tasks: Sequence[Mapping[str, Any]], function: Any, **options: Any) -> Iterator[pa.Table]:
    """Run ``function(task) -> iterable of tables`` for each task, in parallel, and yield the tables in order.

    Tables are streamed: nothing holds more than the few that are on their way.
    """
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

    ``worker`` is called with ``arguments`` and ``cpus``, then with one-row tables. The actors, and with them
    whatever memory and devices they hold, are gone when the last table has been taken.
    """
    _configure()
    cpus = resources.cpus_per_worker(ray.cluster_resources().get("CPU", 1))
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


def _tables(dataset: Any) -> Iterator[pa.Table]:
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


def _configure() -> None:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else a stage's own words are lost on the way
    logging.getLogger("ray.data").setLevel(logging.WARNING)

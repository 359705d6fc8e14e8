"""How stages use Ray: small tasks go in, and each becomes a part of the artifact, written by the worker that made it.
Only counts come back."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from stages.base import Resources, StageError, resolve
from stages.io import cache, nodes, streams
from stages.io.allocator import give_back_memory
from stages.io.artifact import Part
from stages.io.context import StageContext
from stages.io.output import Output, add_up
from stages.io.streams import Task

_RAYS_OWN = "Failed to apply UDF"
"""What Ray Data adds to the message of an error begins with it."""
_RETRIES = 3
"""How often a lost process is replaced."""
_AHEAD = 16
"""Parts whose counts may be waiting to be taken."""


def part_name(index: int, *rows: int) -> str:
    """The name of a part, made of the rows from the first to before the second number. These belong to it: what an
    unfinished run has made of other rows does not count for a version that cuts them differently."""
    return "-".join([f"{index:05d}", *map(str, rows)])


def slices(rows: int, size: int) -> list[dict[str, Any]]:
    """Tasks of at most ``size`` rows each: ``start`` and ``stop``."""
    starts = range(0, rows, size)
    return [
        {"part": part_name(number, start, stop), "start": start, "stop": stop, "rows": stop - start}
        for number, start in enumerate(starts)
        for stop in (min(start + size, rows),)
    ]


def run_parts(
    tasks: Sequence[Task],
    worker: str,
    context: StageContext,
    note: str,
    env: Mapping[str, str] | None = None,
    rows_each: int = 0,
    at_once: int = 1,
    **arguments: Any,
) -> dict[str, Any]:
    """Make a part of every task, in parallel; returns what they counted, added up.

    Parts that an earlier, interrupted run has finished are not made again. ``worker`` is a class as ``module:name``,
    which only the workers import. It is called with ``arguments``, the object then with each task and the part to write
    (``PartWriter``), unless it is a streaming worker (``streams``), and is closed if it has a ``close``. A single
    worker is one long task: its process, with all that it has imported, serves the next stage. Without Ray it is this
    process.

    Args:
        rows_each: unless the spec gives a number of workers, there is one with a CPU for this many rows, since it takes
            a second or more to start one, as long as there are CPUs.
        at_once: tasks that a worker may have in hand, if it is a streaming one.

    Raises:
        StageError: a worker gave one as the reason why it cannot go on, or a part is missing in the end.
    """
    output, resources = context.output, context.resources
    done = output.done()
    total = sum(task["rows"] for task in tasks)
    rows = {task["part"]: task["rows"] for task in tasks}
    finished = {name: part for name, part in done.items() if name in rows}
    pending = [task for task in tasks if task["part"] not in finished]
    if rows_each and "workers" not in resources.model_fields_set:
        left = sum(task["rows"] for task in pending)
        resources = resources.model_copy(update={"workers": max(1, left // rows_each), "cpus": resources.cpus or 1})
    if finished and pending:
        context.progress(sum(rows[name] for name in finished), total, f"{note} (continued)")
    for part in _made(pending, worker, output, resources, env, at_once, arguments):
        finished[part.name] = part
        context.progress(sum(rows[name] for name in finished), total, note)
    if len(finished) < len(rows):  # a worker that was started again may give its parts in another order than before
        finished |= {name: part for name, part in output.done().items() if name in rows}
    if missing := [name for name in rows if name not in finished]:
        raise StageError(f"{len(missing)} of {len(rows)} parts were not made, the first is {missing[0]}")
    output.parts.extend(finished[name] for name in rows)
    return add_up(finished[name].counts for name in rows)


def run_alone(function: str, context: StageContext, *inputs: Any) -> Any:
    """What a function (``module:name``) returns that makes parts itself: it is given the output, a function to report
    progress to, and ``inputs``. It runs in a worker's process on the driver's machine, since it may read the user's
    files there, or here where Ray was not started."""
    if not _started():
        return resolve(function)(context.output, context.progress, *inputs)
    from stages.io.board import Reporter, board

    with board(context.progress) as progress:
        reporter = Reporter(progress)
        result, parts = call("stages.io.parts:alone", function, context.output, reporter, inputs)
    context.output.parts.extend(parts)
    return result


def alone(function: str, output: Output, report: Any, inputs: Sequence[Any]) -> tuple[Any, list[Part]]:
    result = resolve(function)(output, report, *inputs)
    return result, list(output.parts)


def call(function: str, *inputs: Any, resources: Resources | None = None) -> Any:
    """What a function (``module:name``) returns. If Ray has been started it runs in a worker's process, so that its
    imports are there for later stages and not in the driver: where there are such ``resources``, or on the driver's
    machine. Else it runs here."""
    if not _started():
        return resolve(function)(*inputs)
    from stages.io.board import here

    name, where = function.partition(":")[2], here() if resources is None else None
    options = Resources().options(0) if resources is None else resources.options(1)  # a head may have no CPU to lend
    (result,) = _one_task(name, _called, function, inputs, sys.path, options=options, where=where)
    return result


def assigned_cpus() -> int:
    """The CPUs that this worker may keep busy."""
    import ray

    assigned = ray.get_runtime_context().get_assigned_resources() if ray.is_initialized() else {}
    return int(assigned.get("CPU", 0)) or os.cpu_count() or 1


def has_gpu() -> bool:
    """Whether Ray gave this worker a GPU, or a part of one."""
    if not _started():
        return False
    import ray

    return bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))


def _started() -> bool:
    """Whether Ray has been started; it is not imported for the answer."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _made(
    tasks: Sequence[Task], worker: str, output: Output, resources: Resources, env: Mapping[str, str] | None,
    at_once: int, arguments: Mapping[str, Any],
) -> Iterator[Part]:  # fmt: skip
    """The parts, in the order in which they are finished."""
    if not tasks:
        return
    if not _started():
        yield from _mapped(worker, arguments, output, tasks, ())
        return
    machines = nodes.for_workers(resources)
    cpus = nodes.cpus_per_worker(resources, machines)
    options = {**resources.options(cpus), "runtime_env": {"env_vars": dict(env or {})}}
    workers = min(resources.worker_range[1], len(tasks), max(1, nodes.room(resources, cpus, machines)))
    if workers == 1:
        name, inputs = worker.partition(":")[2], (worker, arguments, output, list(tasks), sys.path)
        yield from _one_task(name, _mapped, *inputs, options=options)
        return
    at_once = min(at_once, -(-len(tasks) // workers))  # else the first engine that is there takes all
    data = _ray_data()
    dataset = data.from_items([dict(task) for task in tasks], override_num_blocks=len(tasks)).map_batches(
        _Actor,
        batch_size=1,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=max(2, at_once),
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=at_once > 1,
        ),
        fn_constructor_args=(worker, arguments, output, tuple(sys.path)),
        **options,
    )
    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from map(Part.parse, table["part"].to_pylist())
    except StageError as error:
        own = getattr(error, "cause", error)  # Ray's is one of ours and of its own type
        raise type(own)(str(own).partition(_RAYS_OWN)[0].strip()) from error


def _one_task(name: str, function: Any, *inputs: Any, options: Mapping[str, Any], where: Any = None) -> Iterator[Any]:
    """What ``function(*inputs)`` yields, in one process."""
    import ray

    call = ray.remote(
        max_calls=1 if options["num_gpus"] else 0,  # a device's memory is freed only when the process ends
        max_retries=_RETRIES,
        num_returns="streaming",
        _generator_backpressure_num_objects=_AHEAD,
    )(function)
    found = call.options(name=name, scheduling_strategy=where, **options).remote(*inputs)
    try:
        for each in found:
            yield ray.get(each)
    except ray.exceptions.RayTaskError as error:
        raise error.cause or error from None  # else a stage's own words are lost on the way
    finally:
        ray.cancel(found, force=True)


def _called(function: str, inputs: Sequence[Any], importable: Sequence[str]) -> Iterator[Any]:
    make_importable(importable)
    try:
        yield resolve(function)(*inputs)
    finally:
        cache.release()
        give_back_memory()


def _mapped(
    worker: str, arguments: Mapping[str, Any], output: Output, tasks: Sequence[Task], importable: Sequence[str]
) -> Iterator[Part]:
    """The parts that one worker makes. Started again after its process was lost, it goes on behind those that are
    there."""
    make_importable(importable)
    done = output.done()
    mapper = resolve(worker)(**arguments)
    left = [task for task in tasks if task["part"] not in done]
    try:
        yield from (done[task["part"]] for task in tasks if task["part"] in done)
        if hasattr(mapper, "stream"):
            yield from streams.streamed(mapper, streams.taken_from(left), output)
        else:
            yield from (_make(mapper, task, output) for task in left)
    finally:
        if hasattr(mapper, "close"):
            mapper.close()
        del mapper
        cache.release()
        give_back_memory()


class _Actor:
    """A worker as an actor of Ray Data."""

    def __init__(self, worker: str, arguments: Mapping[str, Any], output: Output, importable: Sequence[str]) -> None:
        make_importable(importable)
        self._failure: StageError | None = None
        try:
            mapper = resolve(worker)(**arguments)
        except StageError as error:  # here it would be a crash of the actor to Ray, without the words
            self._failure = error
            return
        streaming = hasattr(mapper, "stream")
        self._make = streams.Shared(mapper, output) if streaming else partial(_make, mapper, output=output)

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args)
        parts = [self._make(task) for task in batch.to_pylist()]
        return pa.table({"part": [part.text() for part in parts]})


def _make(mapper: Any, task: Task, output: Output) -> Part:
    with output.writer(task["part"]) as part:
        mapper(task, part)
    return part.made


def make_importable(paths: Sequence[str]) -> None:
    """The driver's ``sys.path``: the user's own judges and formats stand beside the spec."""
    sys.path += [path for path in paths if path not in sys.path]


def _ray_data() -> Any:
    """Ray Data, set up; imported only where there is work to distribute."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else a stage's own words are lost on the way
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return ray.data

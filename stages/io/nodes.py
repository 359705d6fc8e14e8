"""The machines of a cluster: what they have, and where on them a stage's workers have a place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from stages.base import Resources, StageError


@dataclass(frozen=True)
class Node:
    """A machine: ``has`` are its resources as Ray names them (memory in bytes), ``labels`` those of Ray."""

    address: str
    has: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def fits(self, wanted: Resources) -> bool:
        """Whether it is of the kind that is asked for."""
        kind = wanted.accelerator_type
        return (kind is None or f"accelerator_type:{kind}" in self.has) and all(
            _matches(self.labels.get(key), condition) for key, condition in wanted.label_selector.items()
        )

    def room(self, wanted: Resources, cpus: int) -> int:
        """How many workers with so many CPUs have a place on it."""
        if not self.fits(wanted):
            return 0
        places = [int(self.has.get("CPU", 0) // cpus)]
        if wanted.memory_bytes and "memory" in self.has:  # of a machine that is not there yet nobody may know it
            places.append(int(self.has["memory"] // wanted.memory_bytes))
        if wanted.gpus:
            whole = int(self.has.get("GPU", 0))
            places.append(int(whole / wanted.gpus) if wanted.gpus >= 1 else whole * int(1 / wanted.gpus))
        return min(places)

    def __str__(self) -> str:
        labels = "".join(f", {name}={value}" for name, value in sorted(self.labels.items()) if "ray.io/" not in name)
        kinds = "".join(
            f" {name.partition(':')[2]}" for name in sorted(self.has) if name.startswith("accelerator_type:")
        )
        memory = f", {self.has['memory'] / 2**30:.1f} GiB" if "memory" in self.has else ""
        return f"{self.has.get('CPU', 0):g} CPUs, {self.has.get('GPU', 0):g} GPUs{kinds}{memory}{labels}"


def _matches(value: str | None, condition: str) -> bool:
    """Whether a label's value meets Ray's condition: ``a``, ``!a``, ``in(a,b)`` or ``!in(a,b)``."""
    wanted = condition.removeprefix("!")
    values = wanted[3:-1].replace(" ", "").split(",") if wanted.startswith("in(") else [wanted]
    return (value in values) != condition.startswith("!")


def of_cluster() -> list[Node]:
    """The machines of the running cluster."""
    import ray

    return [
        Node(node["NodeManagerAddress"], node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    ]


_patience = 0.0
"""Seconds for which a cluster that adds machines on demand is waited for."""
_say: Callable[[str], object] = print


def wait_for(seconds: float, say: Callable[[str], object] = print) -> None:
    """Note that the cluster adds machines on demand, how long that may take, and how people are told of it."""
    global _patience, _say
    _patience, _say = seconds, say


def for_workers(wanted: Resources) -> list[Node]:
    """The machines of the running cluster, as soon as the fewest workers have a place on them. If there are too few,
    Ray's autoscaler is asked for more, by a placement group: unlike a request it goes when this process does.

    Raises:
        StageError: they have not come in time.
    """
    machines = of_cluster()
    if not _patience or not (lacking := list(unplaceable({"": wanted}, machines))):
        return machines
    from ray.util import placement_group, remove_placement_group

    fewest = wanted.worker_range[0]
    _say(f"waiting for machines: {lacking[0][1]}")
    selectors = [dict(wanted.label_selector)] * fewest if wanted.label_selector else None
    group = placement_group([_bundle(wanted)] * fewest, bundle_label_selector=selectors)
    try:
        if not group.wait(_patience):
            raise StageError(f"no machines came within {_patience:.0f} s (rondo run --wait): {lacking[0][1]}")
    finally:
        remove_placement_group(group)  # the workers take its place
    return of_cluster()


def _bundle(wanted: Resources) -> dict[str, float]:
    """What one worker takes."""
    found: dict[str, float] = {"CPU": wanted.cpus or 1}
    if wanted.gpus:
        found["GPU"] = wanted.gpus
    if wanted.memory_bytes:
        found["memory"] = wanted.memory_bytes
    if wanted.accelerator_type:
        found[f"accelerator_type:{wanted.accelerator_type}"] = 0.001
    return found


def cpus_per_worker(wanted: Resources, nodes: Sequence[Node]) -> int:
    """CPUs of one worker: those asked for, else the most with which all workers have a place, or 1."""
    if wanted.cpus is not None:
        return wanted.cpus
    workers, fitting = wanted.worker_range[1], [node for node in nodes if node.fits(wanted)]
    largest = int(max((node.has.get("CPU", 0) for node in fitting), default=1))
    return next((cpus for cpus in range(largest, 0, -1) if room(wanted, cpus, fitting) >= workers), 1)


def room(wanted: Resources, cpus: int, nodes: Sequence[Node]) -> int:
    """How many workers with so many CPUs have a place."""
    return sum(node.room(wanted, cpus) for node in nodes)


TYPES, LABELS = "types", "labels"


def unplaceable(
    resources: Mapping[str, Resources], nodes: Sequence[Node], knows: frozenset[str] = frozenset({TYPES, LABELS})
) -> Iterator[tuple[str, str]]:
    """What asks for more than there is, by name, each with what is too much: Ray would wait for it forever. Before a
    machine is there, not all is known of it: ``knows`` says whether their GPUs' types and their labels are."""
    for name, asked in resources.items():
        wanted = _comparable(asked, knows)
        fewest, cpus = wanted.worker_range[0], cpus_per_worker(wanted, nodes)
        if (places := room(wanted, cpus, nodes)) < fewest:
            has = "; ".join(str(node) for node in nodes)
            yield name, f"{_asked(wanted, fewest, cpus)}; there is room for {places} on nodes with: {has}"


def _comparable(wanted: Resources, knows: frozenset[str]) -> Resources:
    """Without what is not known: the GPUs' type and the labels that Ray gives by it, or all labels."""
    if TYPES in knows:
        return wanted
    labels = {key: value for key, value in wanted.label_selector.items() if not key.startswith("ray.io/")}
    return wanted.model_copy(update={"accelerator_type": None, "label_selector": labels if LABELS in knows else {}})


def _asked(wanted: Resources, workers: int, cpus: int) -> str:
    """What a stage asks for, for people."""
    asked = [f"{cpus} CPUs"]
    if wanted.gpus:
        asked.append(f"{wanted.gpus:g} GPUs")
    if wanted.memory_gib:
        asked.append(f"{wanted.memory_gib:g} GiB")
    if wanted.accelerator_type:
        asked.append(f"accelerator_type {wanted.accelerator_type}")
    asked += [f"label {name}: {condition}" for name, condition in wanted.label_selector.items()]
    return f"{workers} workers with {', '.join(asked)} each"

"""Where workers have a place on the machines of a cluster."""

from __future__ import annotations

import pytest

from stages.base import Resources, RolloutResources, StageError, TrainResources
from stages.io import nodes
from stages.io.nodes import Node, cpus_per_worker, unplaceable


def machines(*cpus: float) -> list[Node]:
    return [Node(f"10.0.0.{number}", {"CPU": each}) for number, each in enumerate(cpus)]


LARGE = Node("10.0.1.1", {"CPU": 16, "GPU": 8, "memory": 64 << 30, "accelerator_type:H100": 1.0}, {"zone": "a"})
SMALL = Node("10.0.1.2", {"CPU": 4, "GPU": 1, "memory": 8 << 30, "accelerator_type:T4": 1.0}, {"zone": "b"})


@pytest.mark.parametrize(
    ("workers", "cpus", "each"),
    [(1, [8], 8), (2, [8], 4), (3, [8], 2), (4, [2], 1), ((1, 3), [8], 2), (2, [8, 8, 8], 8), (3, [8, 8, 8], 8),
     (4, [8, 8, 8], 4), (6, [8, 8, 8], 4), (7, [8, 8, 8], 2), (2, [16, 2], 8), (3, [16, 2], 5), (99, [4, 4], 1),
     (1, [], 1), (1, [0], 1)],
)  # fmt: skip
def test_workers_share_machines_such_that_each_has_a_place_on_one(
    workers: int | tuple[int, int], cpus: list[float], each: int
) -> None:
    assert cpus_per_worker(TrainResources(workers=workers), machines(*cpus)) == each
    assert cpus_per_worker(TrainResources(workers=workers, cpus=3), machines(*cpus)) == 3


def test_only_machines_of_the_right_kind_count_for_the_cpus_of_a_worker() -> None:
    assert cpus_per_worker(Resources(), [LARGE, SMALL]) == 16
    assert cpus_per_worker(Resources(accelerator_type="T4"), [LARGE, SMALL]) == 4
    assert cpus_per_worker(Resources(gpus=1, workers=9), [LARGE, SMALL]) == 2
    assert cpus_per_worker(Resources(memory_gib=30, workers=2), [LARGE, SMALL]) == 8


@pytest.mark.parametrize(
    ("wanted", "room"),
    [
        (Resources(cpus=1), 20),
        (Resources(cpus=3), 6),
        (Resources(cpus=1, gpus=1), 9),
        (Resources(cpus=1, gpus=0.5), 18),
        (Resources(cpus=1, gpus=0.3), 19),
        (Resources(cpus=1, gpus=3), 2),
        (RolloutResources(cpus=2, tensor_parallel=4), 2),
        (Resources(cpus=1, memory_gib=7), 10),
        (Resources(cpus=1, accelerator_type="T4"), 4),
        (Resources(cpus=1, accelerator_type="A100"), 0),
        (Resources(cpus=1, label_selector={"zone": "a"}), 16),
        (Resources(cpus=1, label_selector={"zone": "!a"}), 4),
        (Resources(cpus=1, label_selector={"zone": "in(a, b)"}), 20),
        (Resources(cpus=1, label_selector={"zone": "!in(a,c)"}), 4),
        (Resources(cpus=1, label_selector={"rack": "1"}), 0),
        (Resources(cpus=1, label_selector={"rack": "!1"}), 20),
    ],
)
def test_workers_have_a_place_where_all_they_ask_for_is(wanted: Resources, room: int) -> None:
    most = wanted.model_copy(update={"workers": max(room, 1)})
    assert dict(unplaceable({"judge": most}, [LARGE, SMALL])) == {} or not room
    more = wanted.model_copy(update={"workers": room + 1})
    assert f"there is room for {room} on" in dict(unplaceable({"judge": more}, [LARGE, SMALL]))["judge"]


def test_what_has_no_place_is_said_with_what_there_is() -> None:
    wanted = Resources(cpus=2, gpus=2, memory_gib=9, accelerator_type="T4", label_selector={"zone": "b"})
    assert dict(unplaceable({"rollout": wanted, "judge": Resources()}, [LARGE, SMALL])) == {
        "rollout": "1 workers with 2 CPUs, 2 GPUs, 9 GiB, accelerator_type T4, label zone: b each; there is room for 0 "
        "on nodes with: 16 CPUs, 8 GPUs H100, 64.0 GiB, zone=a; 4 CPUs, 1 GPUs T4, 8.0 GiB, zone=b"
    }


class Group:
    """A placement group that is ready, with another machine, or never."""

    def __init__(self, ready: bool) -> None:
        self.ready = ready
        self.removed = False
        self.bundles: list[dict[str, float]] = []
        self.selectors: list[dict[str, str]] | None = None

    def make(self, bundles: list[dict[str, float]], bundle_label_selector: list[dict[str, str]] | None) -> Group:
        self.bundles, self.selectors = bundles, bundle_label_selector
        return self

    def wait(self, seconds: float) -> bool:
        assert seconds == 5
        return self.ready

    def remove(self, group: Group) -> None:
        assert group is self
        self.removed = True


@pytest.mark.parametrize("ready", [True, False])
def test_machines_that_come_on_demand_are_asked_for_and_waited_for(
    ready: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, said = Group(ready), list[str]()
    monkeypatch.setattr("ray.util.placement_group", group.make)
    monkeypatch.setattr("ray.util.remove_placement_group", group.remove)
    head, big = nodes.Node("head", {"CPU": 0}), nodes.Node("big", {"CPU": 8, "GPU": 4}, {"zone": "far"})
    machines = [head]
    monkeypatch.setattr(nodes, "of_cluster", lambda: [head, big] if group.removed and ready else machines)
    monkeypatch.setattr(nodes, "_patience", 0.0)
    monkeypatch.setattr(nodes, "_say", print)
    wanted = Resources(workers=2, gpus=2, memory_gib=1, accelerator_type="H100", label_selector={"zone": "far"})
    assert nodes.for_workers(wanted) == [head]  # nothing is waited for
    assert not said
    nodes.wait_for(5, said.append)
    if ready:
        assert nodes.for_workers(wanted) == [head, big]
    else:
        with pytest.raises(StageError, match=r"no machines came within 5 s .*2 workers with 1 CPUs, 2 GPUs, 1 GiB"):
            nodes.for_workers(wanted)
    assert group.removed
    assert group.bundles == [{"CPU": 1, "GPU": 2, "memory": 2**30, "accelerator_type:H100": 0.001}] * 2
    assert group.selectors == [{"zone": "far"}] * 2
    assert said == ["waiting for machines: 2 workers with 1 CPUs, 2 GPUs, 1 GiB, accelerator_type H100, "
                    "label zone: far each; there is room for 0 on nodes with: 0 CPUs, 0 GPUs"]  # fmt: skip


def test_what_a_machine_does_not_tell_of_its_memory_is_no_reason_to_refuse() -> None:
    assert not dict(nodes.unplaceable({"train": Resources(memory_gib=64)}, [nodes.Node("one", {"CPU": 1})]))
    assert dict(nodes.unplaceable({"train": Resources(memory_gib=64)}, [nodes.Node("one", {"CPU": 1, "memory": 1})]))

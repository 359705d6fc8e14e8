"""The gradient of one optimizer step: the same however it is cut up, and for whom it is worked out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.forward.logprobs import ResponseLogprobs
from stages.core.forward.packing import Layout
from stages.core.losses.inputs import loss_input
from stages.core.losses.objective import Objective
from stages.core.tokens.pair import EncodedPair
from stages.train.config import TrainConfig
from stages.train.gradients import MicroBatchError, StepData, accumulate, load_step
from stages.train.sums import Sums
from stages.train.worker import Worker
from tests import zoo
from tests.memory import MemoryData, encoded, random_pairs
from tests.workers import Group, Replica

LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss": "sigmoid"},
    "ipo": {"loss": "ipo"},
    "simpo": {"loss": "simpo"},
    "kto": {"loss": "kto"},
    "bco": {"loss": "bco"},
    "aot": {"loss": "aot"},
    "several": {"loss": [{"use": "sigmoid"}, {"use": "ipo", "weight": 0.1}], "sft_weight": 0.5, "wpo": True},
    "several, coupled": {"loss": ["aot", "kto"], "sft_weight": 0.5, "wpo": True},
}


def fp32(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"precision": "fp32", "beta": 0.05, **changes})


def nearby(seed: int = 7) -> Any:
    """A model that is not the policy, but not far from it: losses have slopes of their own. This one's likelihood of
    others' answers is less than the policy's, so that KTO's z0 is not 0."""
    model = zoo.eager()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


def data(count: int, unpaired: bool = False) -> MemoryData:
    pairs = random_pairs(count, longest=12)
    weights, tasks = (1.0, 0.25, 2.0), ("", "maths", "safety")
    pairs = [replace(pair, weight=weights[i % 3], task=tasks[i % 3]) for i, pair in enumerate(pairs)]
    if unpaired:
        nothing: dict[str, Any] = {"chosen_ids": []}
        pairs[1::4] = [replace(pair, **nothing) for pair in pairs[1::4]]
        nothing = {"rejected_ids": []}
        pairs[2::4] = [replace(pair, **nothing) for pair in pairs[2::4]]
    return MemoryData(pairs).scored_by(nearby())


def scorer(layout: Layout = "shared") -> ResponseLogprobs:
    return ResponseLogprobs(zoo.eager(), layout, "fp32")


def gradient(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def step(
    model: torch.nn.Module,
    subject: MemoryData,
    config: TrainConfig,
    worker: Worker | None = None,
    layout: Layout = "shared",
) -> tuple[dict[str, float], list[str]]:
    """One step over all of ``subject``."""
    worker, objective = worker or Worker(), Objective(config)
    return read(accumulate(model, load(subject, worker, objective, layout), objective, worker))


def read(sums: Sums) -> tuple[dict[str, float], list[str]]:
    """The metrics of a step, and the pairs that are not finite."""
    return sums.read()[0], sums.bad()


def load(subject: MemoryData, worker: Worker, objective: Objective, layout: Layout = "shared") -> StepData:
    return load_step(subject, range(len(subject)), worker, layout, objective.needs_kl)


def by_definition(subject: MemoryData, config: TrainConfig, model: Any = None) -> tuple[float, Tensor]:
    """The mean loss and its gradient, by autograd through the model's own forward pass of every sequence alone."""
    model, objective = model or zoo.eager(), Objective(config)
    sums, confidences = [], []
    for pair in subject.items:
        for ids in (pair.chosen_ids, pair.rejected_ids):
            logits = model(input_ids=torch.tensor([[*pair.prompt_ids, *ids]])).logits[0, len(pair.prompt_ids) - 1 : -1]
            logged = logits.log_softmax(-1)
            tokens = logged[torch.arange(len(ids)), ids] if ids else logged.new_zeros(0)
            sums.append(tokens.sum())
            confident = tokens - logged.exp().square().sum(-1).log()
            confidences.append(confident.mean().detach() if ids else torch.zeros(()))
    kl = None
    if objective.needs_kl:
        ratios = []
        for pair, ref in zip(subject.mismatched(range(len(subject))), subject.logprobs[2], strict=True):
            logits = model(input_ids=torch.tensor([[*pair.prompt_ids, *pair.chosen_ids]])).logits[0]
            logged = logits[len(pair.prompt_ids) - 1 : -1].log_softmax(-1)
            ratios.append(logged[torch.arange(len(pair.chosen_ids)), pair.chosen_ids].sum() - ref)
        kl = torch.stack(ratios).mean().detach()
        assert kl > 0.2
    x = loss_input(subject.items, torch.stack(sums).detach(), torch.stack(confidences), subject.logprobs, kl)
    both = torch.stack(sums).view(-1, 2)
    loss = objective(replace(x, chosen=both[:, 0], rejected=both[:, 1]), subject.items).losses.mean()
    loss.backward()
    return float(loss.detach()), gradient(model)


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_gradient_of_the_mean_loss_over_the_pairs(name: str) -> None:
    subject, config, model = data(5), fp32(**LOSSES[name]), scorer()
    means, bad = step(model, subject, config, Worker(micro_batch_tokens=60))
    loss, expected = by_definition(subject, config)
    assert means["loss"] == pytest.approx(loss, rel=1e-4)
    assert means["pairs"] == 5
    assert not bad
    assert expected.norm() > 1e-2
    assert (gradient(model) - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_rows_with_one_response_count_as_rows(name: str) -> None:
    subject, config, model = data(6, unpaired=True), fp32(loss=name), scorer()
    means, _ = step(model, subject, config)
    loss, expected = by_definition(subject, config)
    assert means["loss"] == pytest.approx(loss, rel=1e-4)
    assert means["pairs"] == 6
    assert (gradient(model) - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("name", ["several", "several, coupled"])
def test_it_is_that_for_models_whose_head_is_more_than_a_product(name: str) -> None:
    """Granite scales its logits."""
    subject, config = data(5), fp32(**LOSSES[name])
    subject = subject.scored_by(zoo.model("granite", seed=1), "padded")
    subject.logprobs[2] -= 50  # so that KTO's z0 is not 0
    model = ResponseLogprobs(zoo.model("granite"), "padded", "fp32")
    means, _ = step(model, subject, config, Worker(micro_batch_tokens=90), "padded")
    loss, expected = by_definition(subject, config, zoo.model("granite"))
    assert means["loss"] == pytest.approx(loss, rel=1e-4)
    assert (gradient(model) - expected).norm() < 1e-4 * expected.norm()


SHARES = [
    pytest.param(8, 2, id="even shares"),
    pytest.param(7, 2, id="one worker has a pair more"),
    pytest.param(1, 2, id="a batch smaller than the workers"),
    pytest.param(2, 4, id="two of four workers have nothing"),
]


@pytest.mark.parametrize("tokens", [30, 10**6])
@pytest.mark.parametrize(("pairs", "world"), SHARES)
@pytest.mark.parametrize("name", ["sigmoid", "kto", "several, coupled"])
def test_workers_together_have_the_gradient_and_the_metrics_of_one(
    name: str, pairs: int, world: int, tokens: int
) -> None:
    subject, config = data(pairs), fp32(**LOSSES[name])
    alone = scorer()
    expected, _ = step(alone, subject, config)
    group = Group(world)
    replicas = [Replica(scorer(), group, rank) for rank in range(world)]

    def work(rank: int) -> dict[str, float]:
        worker = Worker(rank, world, micro_batch_tokens=tokens, all_sum=partial(group.all_sum, rank))
        return step(replicas[rank], subject, config, worker)[0]

    for means in group.run(work):
        assert means == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for replica in replicas:
        assert (gradient(replica) - gradient(alone)).norm() < 1e-4 * gradient(alone).norm()
    assert gradient(alone).norm() > 1e-3


@pytest.mark.parametrize("name", ["sigmoid", "kto", "aot"])
def test_workers_communicate_gradients_once_a_step(name: str) -> None:
    """Rank 0 of two holds four of the eight pairs, here a micro-batch each; only the last one is exchanged."""
    model = Replica(scorer(), Group(1), 0)
    step(model, data(8), fp32(**LOSSES[name]), Worker(0, 2, micro_batch_tokens=1))
    assert model.quiet == 3


class OnePrompt(MemoryData):
    """Pairs of which none has another's prompt."""

    def mismatched(self, indices: Sequence[int]) -> list[EncodedPair]:
        return []


def test_without_another_prompt_ktos_divergence_is_zero() -> None:
    """As if every other answer had become less likely: z0 is at least 0."""
    subject, config = data(4, unpaired=True), fp32(loss="kto")
    low, high = (
        MemoryData(subject.items, torch.stack([*subject.logprobs[:2], torch.full((4,), logp)])) for logp in (-1e3, 1e4)
    )
    work = load(OnePrompt(low.items, low.logprobs), Worker(), Objective(config))
    assert not work.mismatched
    found, _ = read(accumulate(scorer(), work, Objective(config), Worker()))
    assert found["loss"] == pytest.approx(step(scorer(), high, config)[0]["loss"], rel=1e-6)
    assert abs(found["loss"] - step(scorer(), low, config)[0]["loss"]) > 0.01


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("tokens", [30, 10**6])
def test_a_step_is_read_into_micro_batches_of_the_workers_own_pairs(layout: Layout, tokens: int) -> None:
    subject, objective = data(9), Objective(fp32(loss="kto"))
    for rank in range(2):
        work = load(subject, Worker(rank, 2, micro_batch_tokens=tokens), objective, layout)
        assert work.pairs == subject.items
        assert torch.equal(work.reference, subject.logprobs)
        assert all(micro.weight == 1 for micro in work.micro)
        for groups, items in ((work.micro, subject.items), (work.mismatched, subject.mismatched(range(9)))):
            places = [place for micro in groups for place in micro.places]
            assert sorted(places) == list(range(rank, 9, 2))
            assert [pair for micro in groups for pair in micro.pairs] == [items[place] for place in places]
            assert all(micro.tensors.pairs == len(micro.places) for micro in groups)
            assert (len(groups) == 1) is (tokens == 10**6)
            assert all(len(micro.places) == 1 or micro.tensors.ids.numel() <= tokens for micro in groups)


def test_a_worker_without_a_pair_goes_through_the_first_and_counts_nothing() -> None:
    subject, objective = data(2), Objective(fp32())
    work = load(subject, Worker(2, 3), objective)
    assert [(micro.places, micro.weight) for micro in work.micro] == [([0], 0)]
    assert not work.mismatched
    model = scorer()
    totals: list[Tensor] = []
    worker = Worker(2, 3, all_sum=lambda value: totals.append(value) or torch.ones_like(value))
    accumulate(model, work, objective, worker)
    assert totals[-1].eq(0).all()
    assert gradient(model).eq(0).all()


class Counting(Replica):
    """Counts forward passes."""

    passes = 0

    def forward(self, *arguments: Any) -> Any:
        self.passes += 1
        return super().forward(*arguments)


@pytest.mark.parametrize(("world", "pairs"), [(2, 9), (3, 2)])
@pytest.mark.parametrize("name", ["sigmoid", "kto", "bco"])
def test_workers_in_lockstep_make_equally_many_passes_to_the_same_end(name: str, world: int, pairs: int) -> None:
    """Sharded weights need it; the gradient and the means are those of a worker alone."""
    subject, config, alone = data(pairs), fp32(**LOSSES[name]), scorer()
    long = encoded(range(3, 60), range(60, 90), range(90, 100))  # always a micro-batch of its own
    subject = MemoryData([long, *subject.items[1:]]).scored_by(nearby())
    expected, _ = step(alone, subject, config)
    passes = {}
    for lockstep in (False, True):
        group = Group(world)
        replicas = [Counting(scorer(), group, rank) for rank in range(world)]

        def work(
            rank: int, group: Group = group, replicas: list[Counting] = replicas, lockstep: bool = lockstep
        ) -> dict[str, float]:
            worker = Worker(rank, world, micro_batch_tokens=60, all_sum=partial(group.all_sum, rank), lockstep=lockstep)
            return step(replicas[rank], subject, config, worker)[0]

        for means in group.run(work):
            assert means == pytest.approx(expected, rel=1e-4, abs=1e-5)
        for replica in replicas:
            assert (gradient(replica) - gradient(alone)).norm() < 1e-4 * gradient(alone).norm()
        passes[lockstep] = [replica.passes for replica in replicas]
    assert set(passes[True]) == {max(passes[False])}
    assert len(set(passes[False])) > 1 or pairs < world


def test_a_repeated_micro_batch_names_no_pair_twice() -> None:
    subject = data(3)
    subject.logprobs[0, 1] = torch.nan
    worker = Worker(1, 2, micro_batch_tokens=1, lockstep=True)
    work = load(subject, worker, Objective(fp32()))
    assert [micro.places for micro in work.micro] == [[1], [1]]
    assert step(scorer(), subject, fp32(), worker)[1] == [subject.items[1].pair_id]


def test_a_pair_preferred_with_probability_zero_is_a_pair_the_other_way_round() -> None:
    pair = random_pairs(1)[0]
    reverse = encoded(pair.prompt_ids, pair.rejected_ids, pair.chosen_ids)
    gradients = []
    for item in (replace(pair, probability=0.0), reverse, pair):
        model = scorer()
        step(model, MemoryData([item]).scored_by(zoo.eager()), fp32())
        gradients.append(gradient(model))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[0], -gradients[2], rtol=1e-3, atol=1e-5)


def test_what_a_loss_sees_by_hand() -> None:
    """Of two pairs: chosen and rejected in turn."""
    first = encoded([1], [2], [4])
    second = encoded([1], [2, 3], [4, 5, 6], p=0.25)
    reference = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    x = loss_input([first, second], torch.arange(4.0), 10 + torch.arange(4.0), reference, torch.tensor(0.5))
    assert (x.chosen.tolist(), x.rejected.tolist()) == ([0, 2], [1, 3])
    assert (x.ref_chosen.tolist(), x.ref_rejected.tolist()) == ([1, 2], [3, 4])
    assert (x.chosen_tokens.tolist(), x.rejected_tokens.tolist()) == ([1, 2], [1, 3])
    assert x.chosen_confidence is not None
    assert x.rejected_confidence is not None
    assert (x.chosen_confidence.tolist(), x.rejected_confidence.tolist()) == ([10, 12], [11, 13])
    assert x.probability.tolist() == [1, 0.25]
    assert x.kl == 0.5
    assert x.chosen.requires_grad
    assert x.chosen.is_leaf


def test_a_pair_of_weight_two_is_the_pair_twice() -> None:
    subject, config = data(3), fp32()
    doubled = MemoryData([replace(p, weight=w) for p, w in zip(subject.items, (1, 2, 1), strict=True)])
    twice = MemoryData([replace(subject.items[i], weight=1) for i in (0, 1, 1, 2)])
    models = [scorer(), scorer()]
    losses = []
    for model, each in zip(models, (doubled, twice), strict=True):
        means, _ = step(model, each.scored_by(nearby()), config)
        losses.append(means["loss"] * len(each))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    expected = gradient(models[1]) * 4 / 3  # means over four pairs and over three
    assert (gradient(models[0]) - expected).norm() < 1e-4 * expected.norm()


def test_tasks_are_measured_apart() -> None:
    subject, config = data(6), fp32(beta=2.0)
    means, _ = step(scorer(), subject, config)
    for task in ("maths", "safety"):
        own = [index for index, pair in enumerate(subject.items) if pair.task == task]
        alone = MemoryData([subject.items[index] for index in own], subject.logprobs[:, own])
        expected, _ = step(scorer(), alone, config)
        assert means[f"task/{task}/pairs"] == expected["pairs"] == 2
        for name in ("loss", "reward_accuracy", "reward_margin"):
            assert means[f"task/{task}/{name}"] == pytest.approx(expected[name], rel=1e-4)
    assert not any(name.startswith("task//") for name in means)
    assert means["task/maths/loss"] != means["task/safety/loss"]


def test_parts_of_the_objective_are_reported() -> None:
    config = fp32(loss=[{"use": "sigmoid", "weight": 2.0}, {"use": "hinge", "weight": 0.5}], sft_weight=0.25)
    plain = MemoryData([replace(pair, weight=1.0) for pair in data(6).items]).scored_by(nearby())
    means, _ = step(scorer(), plain, config, Worker(micro_batch_tokens=60))
    parts = 2 * means["loss/sigmoid"] + 0.5 * means["loss/hinge"] + 0.25 * means["sft"]
    assert means["loss"] == pytest.approx(parts)
    assert "wpo_weight" in step(scorer(), data(2), fp32(wpo=True))[0]


@pytest.mark.parametrize(("name", "there"), [("sigmoid", True), ("aot", True), ("simpo", False)])
def test_a_divergence_is_measured_only_against_a_reference(name: str, there: bool) -> None:
    assert ("kl" in step(scorer(), data(3), fp32(**LOSSES[name]))[0]) is there


def test_the_divergence_is_a_mean_over_the_responses_that_are_there() -> None:
    subject = data(4, unpaired=True)
    means, _ = step(scorer(), subject, fp32(loss="kto"))
    own = MemoryData(subject.items).scored_by(zoo.eager()).logprobs
    ratios = (own - subject.logprobs)[:2]  # second row: rejected only, third: chosen only
    expected = (ratios[:, 0].mean() + ratios[1, 1] + ratios[0, 2] + ratios[:, 3].mean()) / 4
    assert ratios[0, 1] == ratios[1, 2] == 0
    assert means["kl"] == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("tokens", [30, 10**6])
@pytest.mark.parametrize("name", ["sigmoid", "kto"])
def test_pairs_whose_loss_is_not_finite_are_told(name: str, tokens: int) -> None:
    subject = data(6)
    subject.logprobs[0, 2] = torch.nan
    subject.logprobs[1, 5] = torch.inf if name == "sigmoid" else torch.nan
    means, bad = step(scorer(), subject, fp32(**LOSSES[name]), Worker(micro_batch_tokens=tokens))
    assert not torch.isfinite(torch.tensor(means["loss"]))
    assert sorted(bad) == sorted(subject.items[place].pair_id for place in (2, 5))


class Crowded(torch.nn.Module):
    """Memory for so many tokens and no more."""

    def __init__(self, error: Callable[[], Exception], backward: bool = False) -> None:
        super().__init__()
        self.module, self.error, self.backward = scorer(), error, backward

    def forward(self, batch: Any, *others: Any) -> Any:
        crowded = batch.ids.numel() > 32
        if crowded and not self.backward:
            raise self.error()
        scored = self.module(batch, *others)
        if crowded and scored.handle.requires_grad:
            scored.handle.register_hook(self._fail)
        return scored

    def _fail(self, gradient: Tensor) -> None:
        raise self.error()


ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "cpu": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    "python": MemoryError,
}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("error", ERRORS)
def test_pairs_that_do_not_fit_in_memory_are_named(error: str, backward: bool) -> None:
    """Two pairs of 16 tokens fit, the third pair of 40 does not."""
    pairs = [
        encoded([5] * 8, [6] * 4, [7] * 4),
        encoded([8] * 8, [9] * 4, [10] * 4),
        encoded([11] * 8, [12] * 16, [13] * 16),
    ]
    model = Crowded(ERRORS[error], backward)
    with pytest.raises(MicroBatchError) as caught:
        step(model, MemoryData(pairs, torch.zeros(3, 3)), fp32(), Worker(micro_batch_tokens=32))
    assert str(caught.value) == f"out of memory in a micro-batch of 48 tokens, 1 pairs: {pairs[2].pair_id}"


@pytest.mark.parametrize("name", ["kto", "aot"])
def test_pairs_that_do_not_fit_are_named_in_passes_without_gradient_too(name: str) -> None:
    pairs: list[EncodedPair] = [encoded([n] * 3, [n] * 3, [n] * 3) for n in range(5, 19)]
    model = Crowded(ERRORS["cuda"])
    with pytest.raises(MicroBatchError, match="14 pairs") as caught:
        step(model, MemoryData(pairs, torch.zeros(3, 14)), fp32(**LOSSES[name]))
    assert str(caught.value).count(", ") == 10  # ten are enough


def test_other_errors_are_left_as_they_are() -> None:
    model = Crowded(lambda: RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        step(model, data(9), fp32())

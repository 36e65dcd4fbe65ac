"""Healing without labels, on small networks that really know the digits."""

from __future__ import annotations

import copy
import math
import time

import pytest
import torch
from torch import Tensor, nn

from lrexport.data.datasets import load_data
from lrexport.data.unlabelled import Given
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.repair.parts import Part, parts_of
from lrexport.lowrank.repair.reconstruct import reconstruct
from lrexport.tasks.fidelity import AGREEMENT, SQNR
from lrexport.torch_tools.batch import Batch, BatchLike
from lrexport.workflow import healing
from lrexport.workflow.healing import Effort, _Healing, heal, measured_fidelity
from tests.lowrank.repair.test_reconstruct import at_rank

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(x + self.norms[1](self.second(inner)))


class DigitsNet(nn.Module):
    """(B, 1, 8, 8) → (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(1, 16, 3, padding=1), nn.Sequential(Block(16), Block(16))
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.blocks(torch.relu(self.stem(x))).mean((2, 3))))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    ((batch, labels),) = load_data("digits", SHAPE).train.batches(5000, CPU)
    return batch.only, labels


@pytest.fixture(scope="module")
def dense(digits: tuple[Tensor, Tensor]) -> nn.Module:
    torch.manual_seed(0)
    network, (images, labels) = DigitsNet().train(), digits
    epochs, size = 8, 64
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[index]), labels[index]).backward()
            optimizer.step()
    network.eval().zero_grad()
    with torch.no_grad():
        assert float((network(images).argmax(1) == labels).float().mean()) > 0.9
    return network


def unlabelled(inputs: BatchLike) -> Given:
    return Given(Batch.of(inputs), CPU, seed=0)


def compressed(dense: nn.Module, images: Tensor, rank: int = 4) -> nn.Module:
    """The network with pairs of ``rank``, refitted to the images as compress does."""
    svd = decompose(copy.deepcopy(dense), SHAPE, keep=["stem", "head"])
    plan = at_rank(svd, rank)
    network = fold(svd, plan)
    reconstruct(network, svd, plan, images)
    return network.eval()


def error(values: dict[str, float]) -> float:
    """The power of the error relative to that of the output."""
    return 10 ** (-values[SQNR] / 10)


def test_the_error_of_a_reconstructed_network_falls_to_less_than_half_on_inputs_it_never_saw(
    dense: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, _ = digits
    learnt, judged, fresh = images[:700], images[700:900], unlabelled(images[900:])
    network = compressed(dense, learnt)
    before = measured_fidelity(network, dense, fresh)
    healed = heal(network, dense, unlabelled(learnt), unlabelled(judged), Effort(steps=60))
    after = measured_fidelity(network, dense, fresh)
    assert error(after) < 0.5 * error(before)
    assert after[AGREEMENT] >= before[AGREEMENT]
    assert healed.healed[SQNR] > healed.repaired[SQNR] + 3
    assert healed.complete
    assert 0 < healed.kept <= healed.parts == 7  # four pairs, two blocks and the network
    assert not network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_the_same_seed_heals_to_the_same_network_and_another_to_another(
    dense: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, _ = digits
    start = compressed(dense, images[:300])

    def healed(seed: int) -> dict[str, Tensor]:
        network = copy.deepcopy(start)
        torch.manual_seed(torch.seed() % 1000)  # the caller's random numbers do not matter
        heal(network, dense, unlabelled(images[:300]), unlabelled(images[300:400]), Effort(steps=4, seed=seed))
        return network.state_dict()

    first, again, other = healed(1), healed(1), healed(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_dense_network_and_statistics_and_the_caller_s_random_numbers_stay_as_they_are(
    dense: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, _ = digits
    network, weights = compressed(dense, images[:300]), copy.deepcopy(dense.state_dict())
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    random = torch.get_rng_state()
    heal(network, dense, unlabelled(images[:300]), unlabelled(images[300:400]), Effort(steps=4))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, weights[name]) for name, value in dense.state_dict().items())
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in network.named_buffers())
    assert all(parameter.grad is None for parameter in dense.parameters())


def test_what_does_not_help_on_held_out_inputs_is_undone(
    dense: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = digits
    network = compressed(dense, images[:300])
    weights = copy.deepcopy(network.state_dict())
    monkeypatch.setattr(healing, "_RATE", 10.0)  # destroys whatever it trains
    monkeypatch.setattr(healing, "_LEAST_RATES", dict.fromkeys(healing._LEAST_RATES, 1.0))
    healed = heal(network, dense, unlabelled(images[:300]), unlabelled(images[300:400]), Effort(steps=4))
    assert healed.kept == 0
    assert healed.healed == healed.repaired
    assert healed.rates["network"] < 10
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_a_deep_network_that_the_first_rate_destroys_heals_at_a_lower_one_that_the_result_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    depth, width, rank = 16, 64, 32
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=(2 / width) ** 0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    dense = nn.Sequential(*layers).eval()
    inputs = torch.rand(400, width, generator=generator)
    svd = decompose(copy.deepcopy(dense), (width,))
    plan = at_rank(svd, rank)
    start = fold(svd, plan)
    reconstruct(start, svd, plan, inputs[:200])
    start.eval()
    monkeypatch.setattr(healing, "called_once", lambda parts, *_: parts[-1:])  # the whole network alone
    results = []
    for looks in ((), healing._LOOKS):
        monkeypatch.setattr(healing, "_LOOKS", looks)
        network = copy.deepcopy(start)
        results.append(heal(network, dense, unlabelled(inputs[:250]), unlabelled(inputs[250:]), Effort(steps=8)))
    at_first, followed = results
    assert at_first.kept == 0
    assert followed.kept == 1
    assert followed.healed[SQNR] > followed.repaired[SQNR] + 0.1
    assert followed.rates["network"] < healing._RATE
    assert followed.steps <= at_first.steps
    assert followed.complete


def test_where_the_first_rate_works_looking_at_it_on_the_way_changes_nothing(
    dense: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = digits
    learnt, judged, results = unlabelled(images[:700]), unlabelled(images[700:800]), []
    start = compressed(dense, images[:700])
    monkeypatch.setattr(healing, "called_once", lambda parts, *_: parts[-1:])  # the whole network alone
    for looks in (healing._LOOKS, ()):
        monkeypatch.setattr(healing, "_LOOKS", looks)
        network = copy.deepcopy(start)
        healed = heal(network, dense, learnt, judged, Effort(steps=20))
        results.append((healed.model_copy(update={"seconds": 0.0}), network.state_dict()))
    (looked, weights), (unseen, same) = results
    assert looked == unseen
    assert looked.rates == {"network": healing._RATE}
    assert looked.kept == 1
    assert all(map(torch.equal, weights.values(), same.values()))


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_the_best_state_seen_is_the_one_that_is_kept(
    rate: float, dense: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = digits
    network, judged, seen = compressed(dense, images[:300]), unlabelled(images[300:400]), list[float]()
    fidelity = healing._Truth.fidelity

    def noting(truth: healing._Truth, judged_network: nn.Module) -> dict[str, float]:
        values = fidelity(truth, judged_network)
        seen.append(values[SQNR])
        return values

    monkeypatch.setattr(healing._Truth, "fidelity", noting)
    monkeypatch.setattr(healing, "_RATE", rate)
    healed = heal(network, dense, unlabelled(images[:300]), judged, Effort(steps=4))
    assert healed.healed[SQNR] == max(seen) > seen[0]
    assert measured_fidelity(network, dense, judged) == healed.healed
    assert healed.steps <= 4 * 2 + 2 * 4 + 16  # four pairs, two blocks and the network: runs share a part's steps


def test_without_time_nothing_is_trained_and_the_result_says_so(dense: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    images, _ = digits
    network = compressed(dense, images[:300])
    weights = copy.deepcopy(network.state_dict())
    parts: list[tuple[int, int, Part]] = []
    healed = heal(
        network,
        dense,
        unlabelled(images[:300]),
        unlabelled(images[300:400]),
        Effort(minutes=0),
        lambda done, of, part: parts.append((done, of, part)),
    )
    assert (healed.steps, healed.kept, healed.complete) == (0, 0, False)
    assert [done for done, _, _ in parts] == list(range(healed.parts))
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_after_its_time_healing_runs_neither_network_for_the_parts_that_are_left(
    dense: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, _ = digits
    network, calls = compressed(dense, images[:300]), list[int]()
    hooks = [each.register_forward_pre_hook(lambda *_: calls.append(1)) for each in (network, dense)]
    try:
        healed = heal(network, dense, unlabelled(images[:300]), unlabelled(images[300:400]), Effort(minutes=0))
    finally:
        for hook in hooks:
            hook.remove()
    assert healed.parts == 7
    assert len(calls) < 2 * healed.parts  # before, each part was recorded in both networks, however late it was


@pytest.mark.parametrize(("judgement", "left_out"), [(0.1, set()), (1, {"pair"}), (10, {"pair", "block"})])
def test_parts_that_would_have_hardly_more_time_than_their_judgement_leave_it_to_the_later_ones(
    judgement: float, left_out: set[str], dense: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, _ = digits
    network, inputs = compressed(dense, images[:256]), unlabelled(images[:64])
    session = _Healing(network, dense, inputs, inputs, Effort(minutes=1), lambda *_: None)
    parts = parts_of(network)
    session._leave_out(parts, judgement)
    assert {kind for kind, share in session.shares.items() if not share} == left_out
    last = next(number for number, part in enumerate(parts) if part.kind not in left_out)
    assert session._deadline(parts, last) > time.monotonic() + 2
    assert all(session._deadline(parts, number) <= time.monotonic() for number in range(last))


def test_frozen_weights_are_trained_too_and_stay_marked_as_frozen(dense: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    images, _ = digits
    network = compressed(dense, images[:300]).requires_grad_(False)
    weights = copy.deepcopy(network.state_dict())
    assert heal(network, dense, unlabelled(images[:300]), unlabelled(images[300:400]), Effort(steps=4)).kept
    assert not torch.equal(network.state_dict()["head.weight"], weights["head.weight"])
    assert not any(parameter.requires_grad for parameter in network.parameters())


class Scene(nn.Module):
    """An image and a state → a mask and a depth of very different units, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
        self.state, self.mask, self.depth = nn.Linear(6, 12), nn.Conv2d(12, 2, 1), nn.Conv2d(12, 1, 3, padding=1)

    def forward(self, image: Tensor, state: Tensor) -> dict[str, Tensor]:
        x = self.body(image) + self.state(state)[:, :, None, None]
        return {"mask": self.mask(x), "depth": 1000 * self.depth(x)}


@pytest.mark.slow
def test_a_network_with_two_inputs_and_named_outputs_heals_without_a_task() -> None:
    generator = torch.Generator().manual_seed(0)
    image, state = (torch.randn(200, *shape, generator=generator) for shape in ((3, 10, 10), (6,)))
    torch.manual_seed(0)
    dense = Scene().eval()
    svd = decompose(
        copy.deepcopy(dense), {"image": image[:2], "state": state[:2]}, keep=["body.0", "state", "mask", "depth"]
    )
    network = fold(svd, at_rank(svd, 4)).eval()
    parts = [
        Batch((image[rows], state[rows]), ("image", "state")) for rows in (slice(120), slice(120, 160), slice(160, 200))
    ]
    learnt, judged, fresh = map(unlabelled, parts)
    before = measured_fidelity(network, dense, fresh)
    healed = heal(network, dense, learnt, judged, Effort(steps=60))
    after = measured_fidelity(network, dense, fresh)
    assert set(after) == {SQNR, f"{SQNR} mask", f"{SQNR} depth"}
    assert error(after) < 0.8 * error(before)
    assert healed.kept


def test_a_network_that_gives_nan_can_only_get_better(dense: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    images, _ = digits
    network = compressed(dense, images[:300])
    with torch.no_grad():
        network.get_submodule("head").bias.fill_(math.nan)
    healed = heal(network, dense, unlabelled(images[:300]), unlabelled(images[300:400]), Effort(steps=2))
    assert healed.repaired[SQNR] == healed.healed[SQNR] == -80
    assert healed.kept == 0


def test_a_kind_of_part_that_helps_at_no_rate_is_neither_recorded_nor_trained_any_more(
    dense: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = digits
    network, recorded = compressed(dense, images[:300]), list[str]()
    record = _Healing._record

    def noting(session: _Healing, part: Part, deadline: float) -> object:
        recorded.append(part.kind)
        return record(session, part, deadline)

    monkeypatch.setattr(_Healing, "_record", noting)
    monkeypatch.setattr(_Healing, "_follow", lambda session, kind, _: session.rates.update({kind: session.rates[kind] / 3}))
    heal(network, dense, unlabelled(images[:300]), unlabelled(images[300:400]), Effort(steps=2))
    assert recorded == [*["pair"] * 3, *["block"] * 2, "network"]  # of four pairs, two blocks and the network


def test_healing_works_inside_inference_mode(dense: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    images, _ = digits
    network = compressed(dense, images[:300])
    with torch.inference_mode():
        assert heal(network, dense, unlabelled(images[:300]), unlabelled(images[300:400]), Effort(steps=2)).steps


@pytest.mark.parametrize(("inputs", "steps"), [(300, 8), (1280, 8), (1600, 10)])
def test_the_whole_network_has_more_steps_the_more_inputs_there_are(
    inputs: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    svd = decompose(copy.deepcopy(dense), (6,), keep=["2"])
    network, few = fold(svd, at_rank(svd, 2)).eval(), torch.rand(inputs, 6)
    monkeypatch.setattr(healing, "called_once", lambda parts, *_: parts[-1:])  # the whole network alone
    assert heal(network, dense, unlabelled(few), unlabelled(few[:50]), Effort(steps=2)).steps == steps

"""A graph is compared output by output and channel by channel, each against its own scale, and honest rounding passes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.formats.agreement import Array, ComparedOutputs, Terms, check_agreement
from lrexport.formats.verify import Reference
from lrexport.torch_tools.batch import Batch
from tests.formats.support import exported

TERMS = Terms("the graph", "torch")


def exact() -> list[Array]:
    raise AssertionError("rounding errors were measured where nothing depends on them")


class Head(nn.Module):
    """(B, 3, H, W) → (B, 4 + 3, H · W), or with the channels last: boxes in pixels beside scores from 0 to 1."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.box, self.scores, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 3, 1), last

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.box(x).sigmoid() * 640, self.scores(x).sigmoid()], 1).flatten(2)
        return both.mT if self.last else both


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_a_score_that_is_wrong_beside_pixels_is_found_on_whichever_axis_the_channels_are(last: bool) -> None:
    right = Head(last).eval()
    wrong = copy.deepcopy(right)
    wrong.scores.bias.data[1] += 0.002
    images = {"noise": Batch.of(torch.randn(1, 3, 8, 8))}
    assert Reference(right, images).compare(exported(right, (3, 8, 8))).relative_error <= 1e-5
    axis = 2 if last else 1
    with pytest.raises(InputError, match=rf"differs from torch by .* in slice 5 of axis {axis}, whose largest value is 0\."):
        Reference(right, images).compare(exported(wrong, (3, 8, 8)))


class Cancelling(nn.Module):
    """Values near 0 that come from large ones, beside values near 1."""

    def forward(self, x: Tensor) -> Tensor:
        small = (x + 1).mean((2, 3), keepdim=True) - x.mean((2, 3), keepdim=True) - 1
        dead = torch.relu(-x.square())
        return torch.cat([x, small.expand_as(x), dead, torch.softmax(50 * x, 1)], 1)


def test_rounding_where_values_cancel_out_dead_channels_and_vanishing_probabilities_pass() -> None:
    network = Cancelling().eval()
    inputs = {f"noise {seed}": Batch.of(torch.randn(1, 3, 16, 16)) for seed in range(3)}
    found = Reference(network, inputs).compare(exported(network, (3, 16, 16)))
    assert found.relative_error <= 1e-4
    small = network(inputs["noise 0"].only)[:, 3:6]
    assert 0 < float(small.abs().max()) < 1e-5  # what is exactly 0 there is rounded to something else


class Probabilities(nn.Module):
    """One sigmoid of about 0.5, and one of about -17, which ONNX Runtime rounds to float32's last place at 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x - torch.tensor([0.0, 17.0]).view(1, 2, 1, 1))


def test_probabilities_too_small_for_onnx_runtimes_sigmoid_pass_and_larger_ones_do_not() -> None:
    network = Probabilities().eval()
    inputs = {f"noise {seed}": Batch.of(0.1 * torch.randn(1, 2, 8, 8)) for seed in range(2)}
    assert 0 < float(network(inputs["noise 0"].only)[:, 1].max()) < 1e-7
    assert Reference(network, inputs).compare(exported(network, (2, 8, 8))).relative_error < 1e-5
    wrong = copy.deepcopy(network)
    wrong.forward = lambda x: torch.sigmoid(x - torch.tensor([0.0, 12.0]).view(1, 2, 1, 1))  # type: ignore[method-assign]
    with pytest.raises(InputError, match="in slice 1 of axis 1"):
        Reference(network, inputs).compare(exported(wrong, (2, 8, 8)))


class Single(nn.Module):
    """float32 whatever it is given, so that its rounding can only be measured by changing the last bits of an input."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, torch.ones(2, 3, 3, 3)) - 1e-3


def test_a_network_that_cannot_run_in_double_precision_is_compared_all_the_same() -> None:
    network = Single().eval()
    assert (
        Reference(network, {"noise": Batch.of(torch.randn(1, 3, 8, 8))}).compare(exported(network, (3, 8, 8))).where
        == "noise"
    )


def test_a_network_that_gives_nan_is_named_unless_the_input_is_extreme() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    network.forward = lambda x: torch.log(x.flatten(1) - 5)  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"the network returns NaN for noise: 4 of 4 values"):
        Reference(network, {"noise": Batch.of(torch.zeros(1, 4))})
    Reference(network, {"large": Batch.of(torch.full((1, 4), 9.0))}, {"zeros": Batch.of(torch.zeros(1, 4))})


@pytest.mark.parametrize(
    ("found", "passes"),
    [
        ([1.0, -np.inf, np.nan], True),
        ([1.0, np.inf, np.nan], False),
        ([1.0, -np.inf, 0.0], False),
        ([1.0, 3.0, np.nan], False),
    ],
)
def test_infinity_and_nan_agree_with_themselves_alone(found: list[float], passes: bool) -> None:
    pair = ComparedOutputs("x", np.array([[1.0, -np.inf, np.nan]]), np.array([found]))
    if passes:
        assert check_agreement([pair], exact, TERMS).relative_error == 0
    else:
        with pytest.raises(InputError, match="differs from torch by inf of the largest output on x, at output"):
            check_agreement([pair], exact, TERMS)


@pytest.mark.parametrize(("size", "passes"), [(1e-21, True), (1e-12, False)])
def test_a_slice_that_is_nothing_beside_the_others_may_be_rounded_to_zero(size: float, passes: bool) -> None:
    pair = ComparedOutputs("x", np.array([[1.0, size]]), np.array([[1.0, 0.0]]))
    if passes:
        assert check_agreement([pair], exact, TERMS).relative_error == size
    else:
        with pytest.raises(InputError, match="in slice 1 of axis 1"):
            check_agreement([pair], list, TERMS)


def test_the_output_is_named_where_there_are_several() -> None:
    pair = ComparedOutputs("x", np.ones((1, 2)), np.array([[1.0, 1.1]]))
    with pytest.raises(InputError, match=r"at output 'boxes' \(0, 1\): 1\.1 instead of 1"):
        check_agreement([pair], list, TERMS, "boxes")


@pytest.mark.parametrize(("lenient", "roundings", "passes"), [(False, 3, True), (False, 6, False), (True, 6, True)])
def test_a_whole_output_may_differ_by_a_few_of_the_rounding_errors_that_torch_has(
    lenient: bool, roundings: int, passes: bool
) -> None:
    wanted, rounding = np.array([[1.0, -1.0]]), np.array([[1e-4, 0.5e-4]])
    pair = ComparedOutputs("x", wanted, wanted + np.array([[1e-4 + roundings * 1e-4, 0.0]]))
    terms = Terms("the graph", "torch", lenient=lenient)
    if passes:
        assert check_agreement([pair], lambda: [rounding], terms).relative_error == (0 if lenient else pytest.approx(4e-4))
    else:
        with pytest.raises(InputError, match=r"At most 0\.0005 is allowed"):
            check_agreement([pair], lambda: [rounding], terms)


def test_a_channel_is_measured_by_its_size_over_all_inputs() -> None:
    small, large = np.array([[1.0, 1e-6]]), np.array([[1.0, 1.0]])
    pairs = [ComparedOutputs("small", small, small + np.array([[0, 5e-5]])), ComparedOutputs("large", large, large)]
    check_agreement(pairs, exact, TERMS)
    with pytest.raises(InputError, match="in slice 1 of axis 1"):
        check_agreement(pairs[:1], list, TERMS)


@settings(max_examples=60, deadline=None)
@given(
    scales=st.lists(st.floats(-6, 4), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
    axis=st.integers(1, 3),
    channel=st.integers(0, 3),
    large=st.booleans(),
)
def test_an_error_of_a_slice_passes_just_when_it_is_small_beside_the_slice(
    scales: list[float], seed: int, axis: int, channel: int, large: bool
) -> None:
    random = np.random.default_rng(seed)
    shape = [2, 5, 5, 5]
    shape[axis] = len(scales)
    sizes = np.moveaxis(10.0 ** np.array(scales).reshape(-1, 1, 1, 1), 0, axis)
    wanted = sizes * random.uniform(0.5, 1, shape)
    noise = wanted * random.uniform(-1e-6, 1e-6, shape)
    found = wanted + noise
    channel %= len(scales)
    place = tuple(channel if number == axis else 0 for number in range(4))
    largest = np.moveaxis(wanted, axis, 0)[channel].max()
    found[place] = wanted[place] + largest * (3e-4 if large else 0.5e-4)

    def rounding() -> list[Array]:
        return [np.abs(noise)]

    if large:
        with pytest.raises(InputError, match="differs from torch"):
            check_agreement([ComparedOutputs("x", wanted, found)], rounding, TERMS)
    else:
        check_agreement([ComparedOutputs("x", wanted, found)], rounding, TERMS)

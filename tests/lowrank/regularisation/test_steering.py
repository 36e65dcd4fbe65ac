"""How strengths follow the energy beyond a layer's rank."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.lowrank.factors.svd_form import factors
from lrexport.lowrank.regularisation.regularisers import losses
from lrexport.lowrank.regularisation.steering import INITIAL, LAST, STRONGEST, WEAKEST, SteeredRegularisers


def made(*, steps: int = 800, rank: int = 3, dense: str = "2") -> tuple[SVDNetwork, SteeredRegularisers]:
    torch.manual_seed(0)
    layers = (nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3))
    svd = decompose(nn.Sequential(*layers), (4, 9, 9))
    ranks = {name: rank for name in svd.layers if name != dense}
    return svd, SteeredRegularisers(svd, ranks, steps, 1.0, "hoyer")


def keep(svd: SVDNetwork, name: str, share: float) -> None:
    """Make the values beyond the third, which are the smaller ones, hold this share of the energy, at most 0.7."""
    singular = factors(svd.network.get_submodule(name))[1]
    with torch.no_grad():
        singular[..., :3], singular[..., 3:] = 1.0, math.sqrt(3 * share / (1 - share) / (singular.shape[-1] - 3))


def test_energy_beyond_the_rank_is_that_of_the_kernel_s_matrix_and_none_where_the_layer_stays_dense() -> None:
    svd, steered = made()
    kernel = svd.network.get_submodule("0").weight.detach().numpy()
    values = np.linalg.svd(kernel.transpose(0, 2, 1, 3).reshape(24, 12), compute_uv=False)
    assert steered.beyond()[0].item() == pytest.approx((values[3:] ** 2).sum() / (values**2).sum(), rel=1e-5)
    grouped = svd.network.get_submodule("1").weight.detach().numpy().reshape(2, 4, 4, 3, 3)
    each = [np.linalg.svd(part.transpose(0, 2, 1, 3).reshape(12, 12), compute_uv=False) ** 2 for part in grouped]
    wanted = sum(part[3:].sum() for part in each) / sum(part.sum() for part in each)
    assert steered.beyond()[1].item() == pytest.approx(wanted, rel=1e-5)
    assert steered.beyond()[2].item() == 0
    assert steered.strengths.tolist() == pytest.approx([INITIAL, INITIAL, 0])


def test_it_does_not_matter_where_a_column_s_length_stands() -> None:
    svd, steered = made()
    before = steered.beyond()
    left, singular, right = factors(svd.network.get_submodule("0"))
    with torch.no_grad():
        left.mul_(torch.linspace(0.5, 2, 12))
        right.mul_(3)
        singular.div_(3 * torch.linspace(0.5, 2, 12)).neg_()
    torch.testing.assert_close(steered.beyond(), before)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.02, 0.7), st.floats(0.02, 0.7), st.integers(100, 2000))
def test_a_strength_grows_where_there_is_more_energy_than_the_path_allows_and_falls_where_less(
    before: float, now: float, steps: int
) -> None:
    svd, _ = made()
    keep(svd, "0", before)
    steered = SteeredRegularisers(svd, {"0": 3}, steps, 0.0, "hoyer")
    keep(svd, "0", now)
    steered()
    change = steered.strengths[0].item() / INITIAL
    off = max(-2.0, min(2.0, math.log(now / before)))
    assert change == pytest.approx(math.exp(10 * 8 / steps * off), rel=1e-3) or change in (
        pytest.approx(WEAKEST / INITIAL),
        pytest.approx(STRONGEST / INITIAL),
    )


def test_the_path_ends_at_what_may_be_dropped_before_training_does() -> None:
    svd, _ = made()
    keep(svd, "0", 0.5)
    steered = SteeredRegularisers(svd, {"0": 3}, 400, 0.0, "hoyer")
    keep(svd, "0", LAST)
    for _ in range(300):
        steered()
    low = steered.strengths[0].item()
    assert low == pytest.approx(WEAKEST)  # far below the path until here, and on it from now on
    for _ in range(100):
        steered()
    assert steered.strengths[0].item() == pytest.approx(low)
    keep(svd, "0", 0.7)
    for _ in range(400):
        steered()
    assert steered.strengths[0].item() == pytest.approx(STRONGEST)
    assert steered.strengths[1].item() == 0


def test_the_loss_is_that_of_the_strengths_it_has_steered_to() -> None:
    svd, steered = made(steps=40)
    keep(svd, "0", 0.7)
    found = steered()
    torch.testing.assert_close(found, losses(svd, 1.0, steered.strengths, "hoyer"))
    assert steered.strengths[0].item() > INITIAL


def test_it_goes_on_from_its_buffers_as_if_it_had_never_stopped() -> None:
    def train(svd: SVDNetwork, steered: SteeredRegularisers, steps: int) -> None:
        optimizer = torch.optim.SGD(svd.network.parameters(), 0.02)
        for _ in range(steps):
            optimizer.zero_grad()
            steered().backward()
            optimizer.step()

    one, through = made(steps=60)
    train(one, through, 37)
    other, again = made(steps=60)
    other.network.load_state_dict(one.network.state_dict())
    again.load_state_dict(through.state_dict())
    for svd, steered in ((one, through), (other, again)):
        train(svd, steered, 23)
    assert torch.equal(through.strengths, again.strengths)
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True))
    assert float(through.beyond().max()) < 0.1 * float(through.first.max())
    summary = through.summary()
    assert summary.energy_dropped == float(through.beyond().max())
    assert summary.weakest <= summary.strongest

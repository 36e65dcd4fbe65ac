"""Steps of SGD in U and V are as long as those of dense training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.exact_svd import exact_svd
from lrexport.lowrank.factors.fold import fold_layer
from lrexport.lowrank.factors.svd_form import factors
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.schemes import SCHEMES, Scheme, schemes_of
from lrexport.training.optimizers import make_optimizer
from lrexport.training.scaling import scale_gradients
from tests.lowrank.layers.drawn import layers

RATE = 1e-4


def layer_of(spectrum: Tensor) -> nn.Conv2d:
    """A 1×1 convolution in SVD form with these singular values."""
    torch.manual_seed(0)
    count = len(spectrum)
    net = nn.Sequential(nn.Conv2d(count + 4, count, 1, bias=False, dtype=torch.float64))
    decompose(net, (count + 4, 2, 2))
    with torch.no_grad():
        factors(net[0])[1].copy_(spectrum)
    return net[0]


def step(layer: nn.Conv2d, gradient: Tensor, scaled: bool, kind: Any = "sgd") -> Tensor:
    """What one step changes in the kernel, whose gradient is ``gradient``, over the learning rate."""
    before = layer.weight.detach().clone()
    optimizer = make_optimizer(layer, kind, RATE, 0.9, 0.0, scaled)
    (layer.weight * gradient).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return (layer.weight.detach() - before) / RATE


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=2, max_size=6), st.integers(0, 99))
def test_a_step_moves_the_kernel_at_most_three_times_as_far_as_a_dense_one(spectrum: list[float], seed: int) -> None:
    layer = layer_of(torch.tensor(spectrum, dtype=torch.float64))
    gradient = torch.randn(layer.weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    # Three projections of the gradient, one each for U, s and V, none of them longer than itself.
    assert step(layer, gradient, scaled=True).norm() <= 3.01 * gradient.norm()


def test_plain_sgd_moves_it_by_the_square_of_the_singular_values() -> None:
    spectrum = torch.full((6,), 5.0, dtype=torch.float64)
    gradient = torch.randn(6, 10, 1, 1, dtype=torch.float64)
    assert step(layer_of(spectrum), gradient, scaled=False).norm() > 20 * gradient.norm()
    # All energies equal: s² over s² + s², so half a dense step from U, half a projected one from V, and that of s.
    layer = layer_of(spectrum)
    left, _, right = (part.detach().clone() for part in factors(layer))
    plain = gradient.flatten(1)
    wanted = -(plain @ right @ right.T + left @ left.T @ plain) / 2
    wanted -= left @ torch.diag((left.T @ plain @ right).diagonal()) @ right.T
    torch.testing.assert_close(step(layer, gradient, scaled=True).flatten(1), wanted, atol=1e-2, rtol=1e-2)


def test_no_gradient_gets_longer_and_the_one_of_s_stays() -> None:
    layer = layer_of(torch.tensor([0.3, 0.1, 0.0], dtype=torch.float64))
    for part in factors(layer):
        part.grad = torch.ones_like(part)
    scale_gradients(layer)
    assert all(torch.equal(part.grad, torch.ones_like(part)) for part in factors(layer) if part.grad is not None)
    layer = layer_of(torch.tensor([3.0, 1.0], dtype=torch.float64))
    for part in factors(layer):
        part.grad = torch.ones_like(part)
    scale_gradients(layer)
    left, singular, right = (part.grad for part in factors(layer))
    assert left is not None
    assert right is not None
    for side in (left, right):
        assert torch.allclose(side, torch.tensor([1 / 14, 1 / 6], dtype=torch.float64).expand_as(side))
    assert torch.equal(singular, torch.ones(2, dtype=torch.float64))


def test_layers_that_share_their_kernel_are_scaled_once() -> None:
    first, second = (nn.Conv2d(6, 6, 1, bias=False) for _ in range(2))
    second.weight = first.weight
    net = nn.Sequential(first, second)
    decompose(net, (6, 2, 2))
    with torch.no_grad():
        factors(net[0])[1].fill_(2)
    net(torch.randn(1, 6, 2, 2)).sum().backward()
    held = factors(net[0])[0].grad
    assert held is not None
    before = held.clone()
    scale_gradients(net)
    torch.testing.assert_close(held, before / 8)


def test_where_plain_sgd_diverges_scaled_steps_find_the_kernel() -> None:
    torch.manual_seed(0)
    wanted = torch.randn(6, 10, 1, 1, dtype=torch.float64) * 3
    ends = {}
    for scaled in (True, False):
        layer = layer_of(torch.full((6,), 5.0, dtype=torch.float64))
        optimizer = make_optimizer(layer, "sgd", 0.05, 0.0, 0.0, scaled)
        for _ in range(1000):
            optimizer.zero_grad()
            (layer.weight - wanted).square().sum().backward()
            optimizer.step()
        ends[scaled] = (layer.weight - wanted).norm().item()
    assert ends[True] < 1e-3
    assert not ends[False] < 1e-3  # NaN, too


@settings(max_examples=60, deadline=None)
@given(layers(), st.data())
def test_halves_of_a_pair_are_scaled_by_what_the_other_half_has_in_each_rank(drawn: tuple[Any, Tensor], data: Any) -> None:
    layer = drawn[0].double()
    scheme: Scheme = data.draw(st.sampled_from(schemes_of(spec_of(layer))))
    values = exact_svd(SCHEMES[scheme].matrix(layer.weight, spec_of(layer)))[1].detach()
    values = values if values.ndim == 2 else values[None]
    pair = fold_layer(layer, scheme, values.shape[-1])
    net = nn.Sequential(pair, nn.Conv2d(3, 3, 1).double())
    for parameter in net.parameters():
        parameter.grad = parameter.detach().clone()
    untouched = net[1].weight.grad.clone()
    scale_gradients(net)
    # With the root of s on either side both halves have energy s in a rank.
    wanted = values / (values + values.mean(-1, keepdim=True)).clamp_min(1).square()
    for half, is_first in zip(pair, (True, False), strict=True):
        spec = spec_of(half)
        gradient = half.weight.grad.square().unflatten(0, (spec.groups, -1))
        channels = (1 if spec.transposed else 0) if is_first else (0 if spec.transposed else 1)
        others = [axis for axis in range(1, gradient.ndim) if axis != channels + 1]
        torch.testing.assert_close(gradient.sum(others) if others else gradient, wanted)
    assert torch.equal(net[1].weight.grad, untouched)
    if layer.bias is not None:
        assert torch.equal(pair.second.bias.grad, layer.bias)


@pytest.mark.parametrize("scaled", [True, False])
def test_adam_has_a_scale_of_its_own(scaled: bool) -> None:
    changes = step(layer_of(torch.tensor([3.0, 1.0], dtype=torch.float64)), torch.ones(2, 6, 1, 1), scaled, "adam")
    again = step(layer_of(torch.tensor([3.0, 1.0], dtype=torch.float64)), torch.ones(2, 6, 1, 1), not scaled, "adam")
    assert torch.equal(changes, again)

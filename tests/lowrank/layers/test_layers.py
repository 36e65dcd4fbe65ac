"""Every kind of layer: the same function at full rank, the best approximation below it, costs as counted by fvcore."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lrexport.lowrank.eligibility.factorisable import Factorisable
from lrexport.lowrank.eligibility.inspection import inspect_layers
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.exact_svd import exact_svd
from lrexport.lowrank.factors.fold import build_pair, fold, fold_layer
from lrexport.lowrank.factors.svd_form import attach, factors
from lrexport.lowrank.layers.kernels import PLAIN, TRANSPOSED, spec_of
from lrexport.lowrank.layers.schemes import CONV_SCHEMES, SCHEMES, scheme_for, schemes_of
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.plan import Scheme
from tests.conftest import relative_error
from tests.lowrank.layers.drawn import layers

TOLERANCE = 1e-5  # float32, largest error relative to the output's scale


@pytest.mark.parametrize("kind", [*PLAIN, *TRANSPOSED], ids=lambda kind: kind.__name__)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_layer_folded_at_full_rank_is_the_same_function(kind: type[nn.Module], data: st.DataObject) -> None:
    layer, images = data.draw(layers((kind,)))
    wanted = layer(images)
    scheme = data.draw(st.sampled_from(schemes_of(spec_of(layer))))
    bias = layer.bias
    attach(layer, scheme)
    assert relative_error(layer(images), wanted) <= TOLERANCE
    pair = fold_layer(layer, scheme, SCHEMES[scheme].full_rank(spec_of(layer)))
    found = pair(images)
    assert found.shape == wanted.shape
    assert relative_error(found, wanted) <= TOLERANCE
    assert {half.groups for half in pair} == {layer.groups}
    assert pair.first.bias is None
    assert (pair.second.bias is None) == (bias is None)


@settings(max_examples=60, deadline=None)
@given(drawn=layers())
def test_a_kernel_is_its_matrix_in_another_shape(drawn: tuple[Any, Tensor]) -> None:
    layer, _ = drawn
    spec = spec_of(layer)
    assert spec.weight_shape == layer.weight.shape
    for scheme in CONV_SCHEMES:
        matrix = SCHEMES[scheme].matrix(layer.weight, spec)
        assert matrix.shape == (*((layer.groups,) if layer.groups > 1 else ()), *SCHEMES[scheme].matrix_shape(spec))
        assert torch.equal(SCHEMES[scheme].kernel(matrix, spec), layer.weight)


@settings(max_examples=40, deadline=None)
@given(drawn=layers(), data=st.data())
def test_the_macs_and_weights_of_a_pair_are_the_facts_times_the_rank(drawn: tuple[Any, Tensor], data: st.DataObject) -> None:
    layer, images = drawn
    network, shape = nn.Sequential(layer), tuple(images.shape[1:])
    asked = data.draw(st.sampled_from(CONV_SCHEMES))
    fact = inspect_layers(network, shape, asked)["0"]
    assert fact.dense_macs == count_torch_macs(network, shape).total
    assert fact.shape == layer.weight.shape
    if isinstance(fact, Factorisable):
        for scheme, facts in fact.schemes.items():
            rank = data.draw(st.integers(1, facts.full_rank))
            pair = fold_layer(layer, scheme, rank)
            assert count_torch_macs(pair, shape).total == rank * facts.macs_per_rank
            assert sum(half.weight.numel() for half in pair) == rank * facts.params_per_rank
            assert facts.macs_per_rank < fact.dense_macs
    elif layer.groups == 1 or layer.groups < layer.in_channels:
        assert fact.kind == "costly"


@settings(max_examples=60, deadline=None)
@given(drawn=layers(), data=st.data())
def test_truncation_is_the_best_approximation_in_every_group(drawn: tuple[Any, Tensor], data: st.DataObject) -> None:
    layer, _ = drawn
    spec = spec_of(layer)
    scheme = data.draw(st.sampled_from(schemes_of(spec)))
    matrix = SCHEMES[scheme].matrix(layer.weight.detach(), spec)
    rank = data.draw(st.integers(1, SCHEMES[scheme].full_rank(spec)))
    attach(layer, scheme)
    left, right = as_factors(fold_layer(layer, scheme, rank), layer, scheme)
    lost = torch.linalg.svdvals(matrix)[..., rank:].norm(dim=-1)
    torch.testing.assert_close((left @ right - matrix).norm(dim=(-2, -1)), lost, atol=1e-4, rtol=1e-4)  # Eckart–Young


def as_factors(pair: nn.Sequential, layer: Any, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """left (…, rows, r) and right (…, r, columns) of a pair, read back from its weights."""
    spec = spec_of(layer)
    weights = [half.weight.detach() for half in pair]
    rows, columns = SCHEMES[scheme].matrix_shape(spec)
    g = spec.groups
    first, second = (w.unflatten(0, (g, -1)) for w in weights)
    axes = [isinstance(half, TRANSPOSED) for half in pair]
    first, second = (w.transpose(1, 2) if t else w for w, t in zip((first, second), axes, strict=True))
    right = first.reshape(g, first.shape[1], columns)
    left = second.transpose(2, -1) if second.ndim == 3 else second.flatten(3).transpose(2, 3)
    left = left.reshape(g, rows, -1)
    return (left, right) if g > 1 else (left[0], right[0])


@settings(max_examples=40, deadline=None)
@given(drawn=layers(), data=st.data())
def test_a_pair_can_be_built_from_factors_of_any_scheme(drawn: tuple[Any, Tensor], data: st.DataObject) -> None:
    layer, images = drawn
    wanted, spec = layer(images), spec_of(layer)
    held, asked = (data.draw(st.sampled_from(schemes_of(spec))) for _ in range(2))
    if data.draw(st.booleans()):
        attach(layer, held)
    left, singular, right, _ = exact_svd(SCHEMES[asked].matrix(layer.weight.detach().double(), spec))
    pair = build_pair(layer, asked, left * singular.unsqueeze(-2), right.mT)
    assert pair.first.weight.dtype == torch.float32
    assert relative_error(pair(images), wanted) <= TOLERANCE
    assert relative_error(fold_layer(layer, asked, left.shape[-1])(images), wanted) <= TOLERANCE


def test_a_grouped_layer_in_svd_form_has_factors_for_every_group() -> None:
    layer = nn.Conv2d(12, 16, 3, groups=4)
    attach(layer, "channel")
    left, singular, right = factors(layer)
    assert (left.shape, singular.shape, right.shape) == ((4, 4, 4), (4, 4), (4, 27, 4))
    assert (singular.diff(dim=-1) <= 0).all()


def test_a_grouped_pair_has_its_rank_in_every_group() -> None:
    first, second = fold_layer(nn.Conv2d(12, 16, 3, groups=4), "channel", 2)
    assert (first.out_channels, first.groups, second.in_channels, second.groups) == (8, 4, 8, 4)


@pytest.mark.parametrize(
    ("layer", "halves"),
    [
        (nn.Conv2d(8, 8, 3), [(1, 3), (3, 1)]),  # the paper's order
        (nn.Conv2d(8, 8, 3, stride=(2, 1)), [(3, 1), (1, 3)]),  # the axis with the smaller stride is cheaper to postpone
        (nn.Conv3d(8, 8, 3), [(1, 3, 3), (3, 1, 1)]),
        (nn.Conv3d(8, 8, (1, 3, 3)), [(1, 1, 3), (1, 3, 1)]),
        (nn.Conv3d(8, 8, (3, 3, 3), stride=(2, 1, 1)), [(3, 1, 3), (1, 3, 1)]),
    ],
)
def test_spatial_splits_off_the_axis_that_pays(layer: Any, halves: list[tuple[int, ...]]) -> None:
    assert [half.kernel_size for half in SCHEMES["spatial"].pair(layer, 2)] == halves


@pytest.mark.parametrize(
    ("layer", "admitted"),
    [
        (nn.Linear(4, 4), ("linear",)),
        (nn.Conv2d(4, 4, 1), ("channel",)),
        (nn.Conv1d(4, 4, 3), ("channel", "input-channel")),
        (nn.Conv2d(4, 4, (1, 5)), ("channel", "input-channel")),
        (nn.ConvTranspose3d(4, 4, (1, 2, 2)), CONV_SCHEMES),
    ],
)
def test_a_kernel_along_one_axis_has_no_spatial_scheme_of_its_own(layer: Any, admitted: tuple[Scheme, ...]) -> None:
    spec = spec_of(layer)
    assert schemes_of(spec) == admitted
    assert scheme_for(spec, "spatial") == ("spatial" if "spatial" in admitted else admitted[0])
    assert scheme_for(spec, "input-channel") == ("input-channel" if "input-channel" in admitted else admitted[0])


def test_halves_of_transposed_layers_are_transposed_where_they_have_an_axis() -> None:
    layer = nn.ConvTranspose2d(8, 6, 4, 2, 1)
    kinds = {scheme: [type(half).__name__ for half in SCHEMES[scheme].pair(layer, 2)] for scheme in CONV_SCHEMES}
    assert kinds == {
        "spatial": ["ConvTranspose2d", "ConvTranspose2d"],
        "channel": ["ConvTranspose2d", "Conv2d"],
        "input-channel": ["Conv2d", "ConvTranspose2d"],
    }


class Mixed(nn.Module):
    """Every kind of layer in one network, (6, 8, 8) to rows."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(6, 24, 3, padding=1, groups=2, padding_mode="reflect")
        self.depthwise = nn.Conv2d(24, 24, 3, padding="same", groups=24)
        self.up = nn.ConvTranspose2d(24, 16, 4, 2, 1)
        self.line = nn.Conv1d(16, 24, 5, stride=2, dilation=2)
        self.deep = nn.Conv3d(24, 16, 3, padding=(1, 0, 2), bias=False)
        self.query = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.depthwise(torch.relu(self.grouped(x))))
        x = self.deep(self.line(x.flatten(2))[..., :120].unflatten(2, (4, 5, 6)))
        rows = x.flatten(2).mT
        return torch.softmax(self.query(rows) @ rows.mT, -1) @ rows


@pytest.mark.parametrize("scheme", [*CONV_SCHEMES, "auto"])
def test_a_network_of_every_kind_is_folded_exactly_and_counted(scheme: Any) -> None:
    network, images = Mixed().eval(), torch.randn(2, 6, 8, 8)
    wanted = network(images)
    total = count_torch_macs(network, (6, 8, 8)).total
    svd = decompose(network, (6, 8, 8), scheme, total_macs=total)
    assert (set(svd.layers), set(svd.dense)) == ({"grouped", "up", "line", "deep", "query"}, {"depthwise"})
    assert svd.dense_macs == total
    assert relative_error(network(images), wanted) <= TOLERANCE
    for name, layer in svd.layers.items():
        pair = fold_layer(network.get_submodule(name), layer.scheme, layer.full_rank)
        parent = fold(svd, {})
        setattr(parent, name, pair)
        assert relative_error(parent(images), wanted) <= TOLERANCE
    assert prod(svd.layers["up"].shape) == 24 * 16 * 16

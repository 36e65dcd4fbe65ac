"""Layers that share a module or a weight: decomposed once, alike at every place after folding and after reloading."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.artifacts import tensors
from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.lowrank.factors.fold import fold, fold_structure
from lrexport.lowrank.factors.svd_form import factors
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.lowrank.regularisation.regularisers import losses
from lrexport.plan import Pair, Plan
from tests.conftest import relative_error

SHAPE = (16, 12, 12)


class Tied(nn.Module):
    """``a`` and ``c`` share a weight, with other strides, dilations and biases; ``b`` is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(16, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.c = nn.Conv2d(16, 16, 3, stride=2, dilation=2, bias=False)
        self.c.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def plan_of_rank(svd: SVDNetwork, rank: int) -> Plan:
    return {
        name: Pair(
            scheme=layer.scheme,
            rank=rank,
            full_rank=layer.full_rank,
            energy_kept=1.0,
            dense_macs=layer.dense_macs,
            macs=rank * layer.macs_per_rank,
            dense_params=layer.dense_params,
            params=rank * layer.params_per_rank + layer.bias_params,
            shape=layer.shape,
        )
        for name, layer in svd.layers.items()
    }


def test_a_tied_weight_is_decomposed_once_and_computes_what_it_did() -> None:
    network, images = Tied().eval(), torch.randn(2, *SHAPE)
    wanted, dense = network(images), count_torch_macs(network, SHAPE).total
    params = sum(parameter.numel() for parameter in network.parameters())
    svd = decompose(network, SHAPE)
    assert list(svd.layers) == ["a", "b"]
    assert svd.layers["a"].names == ("a", "c")
    assert all(mine is theirs for mine, theirs in zip(factors(network.a), factors(network.c), strict=True))
    assert relative_error(network(images), wanted) <= 1e-5
    assert svd.dense_macs == dense
    assert sum(layer.dense_params for layer in svd.layers.values()) == params
    assert len(list(network.parameters())) == 2 * 3 + 2  # U, s, V twice and two biases


def test_both_places_train_the_same_factors() -> None:
    svd = decompose(Tied().train(), SHAPE)
    images = torch.randn(2, *SHAPE)
    optimizer = torch.optim.SGD(svd.network.parameters(), lr=0.01)
    (svd.network(images).square().mean() + losses(svd, 1.0, 0.1)).backward()
    optimizer.step()
    network: Any = copy.deepcopy(svd.network)  # as stages and checkpoints do
    assert torch.equal(network.a.weight, network.c.weight)
    assert factors(network.a)[0] is factors(network.c)[0]
    assert not torch.equal(network.a.weight, network.b.weight)


def test_pairs_of_a_tied_weight_share_theirs_and_are_counted_right() -> None:
    network, images = Tied().eval(), torch.randn(2, *SHAPE)
    wanted = network(images)
    svd = decompose(network, SHAPE)
    folded: Any = fold(svd, plan_of_rank(svd, svd.layers["a"].full_rank))
    assert relative_error(folded(images), wanted) <= 1e-5
    assert folded.a.first.weight is folded.c.first.weight
    assert folded.a.second.weight is folded.c.second.weight
    assert (folded.a.second.bias is not None, folded.c.second.bias) == (True, None)
    assert (folded.c.first.stride, folded.c.second.dilation) == ((1, 2), (2, 1))
    plan = plan_of_rank(svd, 3)
    folded = fold(svd, plan)
    entries = [entry for entry in plan.values() if isinstance(entry, Pair)]
    assert count_torch_macs(folded, SHAPE).total == sum(entry.macs for entry in entries)
    assert sum(parameter.numel() for parameter in folded.parameters()) == sum(entry.params for entry in entries)


def test_a_tied_weight_that_the_plan_leaves_dense_stays_tied() -> None:
    network, images = Tied().eval(), torch.randn(2, *SHAPE)
    wanted = network(images)
    svd = decompose(network, SHAPE)
    folded: Any = fold(svd, {})
    assert folded.a.weight is folded.c.weight
    assert relative_error(folded(images), wanted) <= 1e-5


def test_a_plan_and_saved_weights_rebuild_the_tie(tmp_path: Path) -> None:
    network = Tied().eval()
    svd = decompose(network, SHAPE)
    plan = plan_of_rank(svd, 4)
    folded = fold(svd, plan)
    tensors.save(tmp_path / "model.safetensors", folded.state_dict())
    rebuilt: Any = fold_structure(Tied(), plan)
    rebuilt.load_state_dict(tensors.load(tmp_path / "model.safetensors"))
    assert rebuilt.a.first.weight is rebuilt.c.first.weight
    images = torch.randn(2, *SHAPE)
    assert torch.equal(rebuilt.eval()(images), folded(images))


def test_the_svd_form_of_tied_weights_is_saved_and_loaded() -> None:
    svd = decompose(Tied(), SHAPE)
    other = decompose(Tied(), SHAPE)
    other.network.load_state_dict(svd.network.state_dict())
    images = torch.randn(2, *SHAPE)
    assert torch.equal(other.network.eval()(images), svd.network.eval()(images))


def test_layers_that_would_make_other_matrices_of_a_tied_weight_stay_dense() -> None:
    network = Tied()
    network.c = nn.Conv2d(16, 16, 3, stride=(2, 1))  # spatial would split off the other axis
    network.c.weight = network.a.weight
    svd = decompose(network, SHAPE)
    assert {name: layer.reason for name, layer in svd.dense.items()} == {
        "a": "its weight is shared with c",
        "c": "its weight is shared with a",
    }
    assert svd.dense["a"].dense_params == 16 * 16 * 9 + 16
    assert svd.dense["c"].dense_params == 16  # the weight counts once


def test_a_layer_kept_dense_keeps_those_with_its_weight() -> None:
    svd = decompose(Tied(), SHAPE, keep=("c",))
    assert {name: (layer.kind, layer.reason) for name, layer in svd.dense.items()} == {
        "a": ("kept", "its weight is shared with c, which stays dense"),
        "c": ("kept", "kept dense as asked"),
    }


def test_a_shared_bias_keeps_a_layer_dense() -> None:
    network = Tied()
    network.b.bias = network.a.bias
    assert decompose(network, SHAPE).dense["b"].reason == "its bias is shared with a"


def test_a_module_at_two_places_that_is_also_tied_is_one_layer() -> None:
    class Twice(Tied):
        def __init__(self) -> None:
            super().__init__()
            self.again = nn.ModuleList([self.a])

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.again[0](x))

    network, images = Twice().eval(), torch.randn(2, *SHAPE)
    wanted, dense = network(images), count_torch_macs(network, SHAPE).total
    svd = decompose(network, SHAPE)
    assert svd.layers["a"].names == ("a", "again.0", "c")
    assert svd.dense_macs == dense
    plan = plan_of_rank(svd, svd.layers["a"].full_rank)
    folded: Any = fold(svd, plan)
    assert folded.a is folded.again[0]
    assert folded.a.first.weight is folded.c.first.weight
    assert relative_error(folded(images), wanted) <= 1e-5
    rebuilt: Any = fold_structure(Twice().eval(), plan)
    assert rebuilt.a is rebuilt.again[0]
    rebuilt.load_state_dict(folded.state_dict())
    assert torch.equal(rebuilt(images), folded(images))

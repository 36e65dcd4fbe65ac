"""At full rank the folded network is the network, and a plan alone rebuilds it; single layers are in test_layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrexport.config.goals import Macs
from lrexport.errors import InputError
from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.lowrank.factors.fold import fold, fold_layer, fold_structure
from lrexport.lowrank.factors.svd_form import attach
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.lowrank.selection.costs import plan_layer
from lrexport.lowrank.selection.select import select
from lrexport.networks.cifar_resnet import CifarResNet
from lrexport.plan import Pair, Plan, Scheme
from tests.conftest import SmallNet, relative_error

TOLERANCE = 1e-5  # float32, largest error relative to the output's scale


def full_rank_plan(svd: SVDNetwork) -> Plan:
    return {name: plan_layer(layer, layer.full_rank, 1.0, even_if_costly=True) for name, layer in svd.layers.items()}


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_folded_at_full_rank_is_the_same_function(bias: bool) -> None:
    layer, rows = nn.Linear(7, 5, bias=bias), torch.randn(4, 6, 7)
    wanted = layer(rows)
    attach(layer, "linear")
    assert relative_error(fold_layer(layer, "linear", 5)(rows), wanted) <= TOLERANCE


@pytest.mark.parametrize("scheme", ["spatial", "channel"])
def test_every_layer_of_resnet20_folded_at_full_rank_leaves_the_network_as_it_was(scheme: Scheme) -> None:
    network = CifarResNet(20).eval()
    images = torch.randn(4, 3, 32, 32)
    wanted = network(images)
    svd = decompose(network, (3, 32, 32), scheme)
    assert len(svd.layers) == 20
    assert not svd.dense
    folded = fold(svd, full_rank_plan(svd))
    assert relative_error(folded(images), wanted) <= TOLERANCE
    assert not any("parametrizations" in name for name in folded.state_dict())
    assert {type(module).__module__.split(".")[0] for module in folded.modules()} <= {"torch", "lrexport"}


def test_truncation_is_the_best_approximation_of_that_rank() -> None:
    layer = nn.Conv2d(6, 8, 3)
    matrix = SCHEMES["spatial"].matrix(layer.weight.detach(), spec_of(layer))
    singular = torch.linalg.svdvals(matrix)
    attach(layer, "spatial")
    first, second = fold_layer(layer, "spatial", 5)
    composed = torch.einsum("orh,riw->oihw", second.weight[..., 0], first.weight[:, :, 0])
    error = (SCHEMES["spatial"].matrix(composed, spec_of(layer)) - matrix).norm()
    torch.testing.assert_close(error, singular[5:].norm())  # Eckart–Young


def test_both_halves_carry_the_square_root_of_the_singular_values() -> None:
    layer = nn.Linear(9, 9, bias=False)
    singular = torch.linalg.svdvals(layer.weight.detach())
    attach(layer, "linear")
    first, second = fold_layer(layer, "linear", 4)
    torch.testing.assert_close(first.weight.norm(dim=1), singular[:4].sqrt())
    torch.testing.assert_close(second.weight.norm(dim=0), singular[:4].sqrt())


def test_folding_leaves_the_network_in_svd_form_trainable() -> None:
    svd = decompose(SmallNet(), (3, 12, 12))
    before = set(svd.network.state_dict())
    fold(svd, select(svd, Macs(0.6)).plan)
    assert set(svd.network.state_dict()) == before


def test_a_module_used_in_two_places_is_folded_once_for_both() -> None:
    shared = nn.Conv2d(16, 16, 3, padding=1)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), shared, nn.ReLU(), nn.Sequential(shared)).eval()
    images = torch.randn(2, 3, 10, 10)
    wanted = network(images)
    svd = decompose(network, (3, 10, 10))
    assert svd.layers["1"].names == ("1", "3.0")
    assert svd.layers["1"].dense_macs == 2 * 16 * 16 * 9 * 8 * 8
    folded = fold(svd, full_rank_plan(svd))
    assert folded[1] is folded[3][0]
    assert relative_error(folded(images), wanted) <= TOLERANCE


def test_a_plan_alone_rebuilds_the_folded_network() -> None:
    svd = decompose(SmallNet().eval(), (3, 12, 12))
    plan = select(svd, Macs(0.6)).plan
    folded = fold(svd, plan)
    rebuilt = fold_structure(SmallNet(), plan)
    rebuilt.load_state_dict(folded.state_dict())
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(rebuilt.eval()(images), folded(images))


@pytest.mark.parametrize(
    ("name", "scheme", "rank", "message"),
    [
        ("bodi", "spatial", 1, "the plan has a layer 'bodi', which the network does not have"),
        ("norm", "channel", 1, "the plan factorises 'norm', which is a BatchNorm2d"),
        ("pointwise", "spatial", 1, "the plan factorises 'pointwise' by spatial, which its kernel does not allow"),
        ("body", "channel", 25, "the plan gives 'body' rank 25; its full rank by channel is 24"),
    ],
)
def test_a_plan_that_does_not_fit_the_network_is_refused(name: str, scheme: Scheme, rank: int, message: str) -> None:
    costs = {"dense_macs": 1, "macs": 1, "dense_params": 1, "params": 1}
    planned = Pair(scheme=scheme, rank=rank, full_rank=48, energy_kept=1.0, **costs)
    with pytest.raises(InputError) as caught:
        fold_structure(SmallNet(), {name: planned})
    assert caught.value.message == message


@pytest.mark.parametrize("scheme", ["spatial", "channel", "input-channel"])
def test_channels_that_are_switched_off_leave_no_subnormal_weights(scheme: Scheme) -> None:
    layer, images = nn.Conv2d(6, 8, 3, padding=1), torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        layer.weight[:3] *= 1e-40  # as weight decay leaves them
    assert layer.weight[:3].abs().max() < torch.finfo(torch.float32).tiny
    wanted = layer(images)
    attach(layer, scheme)
    pair = fold_layer(layer, scheme, 5 if scheme == "input-channel" else 8)
    if scheme != "input-channel":
        assert (
            relative_error(fold_layer(layer, scheme, SCHEMES[scheme].full_rank(spec_of(layer)))(images), wanted) <= TOLERANCE
        )
    for half in pair:
        values = half.weight.abs()
        assert not ((values > 0) & (values < torch.finfo(torch.float32).tiny)).any()

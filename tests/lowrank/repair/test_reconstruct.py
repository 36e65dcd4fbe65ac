"""Refitting pairs on the folded network's own activations: closed forms, and what it must leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.repair.least_squares import RIDGE, fit_pair
from lrexport.lowrank.repair.reconstruct import reconstruct
from lrexport.lowrank.selection.costs import plan_layer
from lrexport.plan import Plan, Scheme
from lrexport.torch_tools.batchnorm import batch_statistics


def at_rank(svd: SVDNetwork, rank: int, scheme: Scheme | None = None) -> Plan:
    plan: Plan = dict(svd.dense)
    for name, layer in svd.layers.items():
        plan[name] = plan_layer(layer, rank, 1.0, scheme or layer.scheme, even_if_costly=True)
    return plan


def smooth(count: int, channels: int, size: int, seed: int = 0) -> Tensor:
    """Images in which channels and pixels go together, as in real ones."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator)
    images = torch.einsum("nchw,dc->ndhw", torch.randn(count, channels, size + 2, size + 2, generator=generator), mixing)
    return nn.functional.avg_pool2d(images, 3, 1)


def error(network: nn.Module, images: Tensor, wanted: Tensor) -> float:
    with torch.no_grad():
        return float((network(images) - wanted).square().mean() / wanted.square().mean())


def test_with_one_tap_the_fit_is_reduced_rank_regression() -> None:
    # Closed form (Izenman 1975): the projection of ordinary least squares on the leading directions of its fitted values.
    rows = torch.randn(500, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    wanted = rows @ torch.randn(8, 6, dtype=torch.float64) + torch.randn(500, 6, dtype=torch.float64)
    dense = torch.randn(6, 8, dtype=torch.float64)
    left, right = fit_pair(rows[None, :, None], wanted[None], dense[None], 3)
    # The pull to the dense kernel is as many more rows that it fits exactly.
    pull = (RIDGE * rows.square().mean() * len(rows)).sqrt() * torch.eye(8, dtype=torch.float64)
    rows, wanted = torch.cat([rows, pull]), torch.cat([wanted, pull @ dense.T])
    ordinary = torch.linalg.lstsq(rows, wanted).solution
    _, _, directions = torch.linalg.svd(rows @ ordinary, full_matrices=False)
    kept = directions[:3].T
    torch.testing.assert_close((left @ right)[0].T, ordinary @ kept @ kept.T, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.7, 0.1 + torch.rand(4)], ids=["zero", "alike", "constant"])
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_inputs_that_never_vary_leave_the_pair_as_truncation_has_it(value: float | Tensor, taps: int, groups: int) -> None:
    dense = torch.randn(groups, 6 * taps, 4)
    patches = torch.zeros(groups, 5000, taps, 4) + value
    wanted = torch.einsum("gnsc,gosc->gno", patches, dense.unflatten(1, (-1, taps)))
    left, right = fit_pair(patches, wanted, dense, 2, centred=True)
    u, s, v = torch.linalg.svd(dense, full_matrices=False)
    torch.testing.assert_close((left @ right).float(), u[..., :2] * s[..., None, :2] @ v[..., :2, :], atol=1e-4, rtol=1e-4)


def test_a_mean_far_above_the_spread_of_the_inputs_changes_nothing() -> None:
    spread, dense = torch.randn(1, 5000, 3, 4), torch.randn(1, 18, 4)
    wanted = torch.einsum("gnsc,gosc->gno", spread, dense.unflatten(1, (-1, 3)))
    fits = [fit_pair(spread + mean, wanted, dense, 2, centred=True) for mean in (0.0, 3000.0)]
    torch.testing.assert_close(fits[1][0] @ fits[1][1], fits[0][0] @ fits[0][1], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("scheme", ["spatial", "input-channel", "channel"])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_refitted_pair_is_better_than_the_truncated_one_and_no_small_change_betters_it(
    scheme: Scheme, groups: int
) -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)).eval()
    images = smooth(40, 8, 9)
    svd = decompose(network, (8, 9, 9), scheme)
    with torch.no_grad():
        wanted = svd.network(images)
    plan = at_rank(svd, 2)
    folded = fold(svd, plan)
    before = error(folded, images, wanted)
    found = reconstruct(folded, svd, plan, images)
    after = error(folded, images, wanted)
    assert after < 0.9 * before
    assert found["0"] == pytest.approx(after, rel=1e-3)
    # The second half is the exact optimum for the first: its gradient vanishes, but for the slight pull to the dense kernel.
    loss = (folded(images) - wanted).square().mean() / wanted.square().mean()
    (gradient,) = torch.autograd.grad(loss, folded[0].second.weight)
    assert float((gradient * folded[0].second.weight.detach()).abs().sum()) < 0.02


def test_each_layer_makes_up_for_the_errors_of_those_before_it() -> None:
    network = nn.Sequential(nn.Conv2d(6, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3)).eval()
    images, fresh = smooth(64, 6, 14), smooth(64, 6, 14, seed=1)
    svd = decompose(network, (6, 14, 14))
    plan = at_rank(svd, 7)
    folded = fold(svd, plan)
    apart = copy.deepcopy(folded)
    for name in svd.layers:  # every layer refitted as if all others were exact
        alone = fold(svd, {**{other: layer for other, layer in at_rank(svd, 7).items() if other == name}, **svd.dense})
        reconstruct(alone, svd, {name: plan[name]}, images)
        apart.get_submodule(name).load_state_dict(alone.get_submodule(name).state_dict())
    reconstruct(folded, svd, plan, images)
    with torch.no_grad():
        wanted = svd.network(fresh)
    assert error(folded, fresh, wanted) < error(apart, fresh, wanted)  # on images that neither saw


def test_a_bias_is_corrected_so_that_the_mean_output_is_the_dense_layer_s() -> None:
    network = nn.Sequential(nn.Conv2d(6, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(10 * 49, 12)).eval()
    images = smooth(50, 6, 9) + 1
    svd = decompose(network, (6, 9, 9))
    plan = at_rank(svd, 1)
    folded = fold(svd, plan)
    pairs = {name: weight.clone() for name, weight in folded.state_dict().items() if name.endswith("weight")}
    with torch.no_grad():
        wanted = svd.network(images).mean(0)
        shifted = float((folded(images).mean(0) - wanted).abs().max())
        reconstruct(folded, svd, plan, images, weights=False)
        left = float((folded(images).mean(0) - wanted).abs().max())
    assert left < 1e-4 < shifted
    assert all(torch.equal(folded.state_dict()[name], weight) for name, weight in pairs.items())


def test_outputs_without_a_batchnorm_keep_the_dense_layer_s_standard_deviation() -> None:
    network = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3, groups=2)).eval()
    images = smooth(200, 8, 8)
    svd = decompose(network, (8, 8, 8))
    plan = at_rank(svd, 3)
    folded = fold(svd, plan)
    reconstruct(folded, svd, plan, images)
    with torch.no_grad():
        dense, mine = svd.network(images), folded(images)
    assert error(folded, images, dense) > 0.01  # so that a fit by least squares would vary less
    torch.testing.assert_close(mine.std((0, 2, 3)), dense.std((0, 2, 3)), rtol=1e-3, atol=0)
    torch.testing.assert_close(mine.mean((0, 2, 3)), dense.mean((0, 2, 3)), rtol=0, atol=1e-4)


def test_before_a_batchnorm_the_mean_does_not_matter_and_the_statistics_become_the_images_own() -> None:
    network = nn.Sequential(nn.Conv2d(6, 10, 3, bias=False), nn.BatchNorm2d(10)).eval()
    images = smooth(50, 6, 9) + 3
    svd = decompose(network, (6, 9, 9))
    plan = at_rank(svd, 3)
    folded = fold(svd, plan)
    reconstruct(folded, svd, plan, images)
    with torch.no_grad():
        given = folded[0](images)
    torch.testing.assert_close(folded[1].running_mean, given.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(folded[1].running_var, given.transpose(0, 1).flatten(1).var(1), rtol=1e-3, atol=1e-4)
    assert not folded[1].training
    assert folded[1].momentum == 0.1


def test_a_layer_with_more_taps_than_the_images_determine_keeps_its_weights() -> None:
    network = nn.Sequential(nn.Linear(64, 16)).eval()
    rows = torch.randn(20, 64)  # 20 outputs for 64 taps
    svd = decompose(network, (64,))
    plan = at_rank(svd, 4)
    folded = fold(svd, plan)
    before = copy.deepcopy(folded.state_dict())
    reconstruct(folded, svd, plan, rows)
    assert torch.equal(folded[0].first.weight, before["0.first.weight"])
    assert not torch.equal(folded[0].second.bias, before["0.second.bias"])


def test_a_layer_that_is_called_twice_is_left_alone() -> None:
    shared = nn.Linear(8, 8)
    network = nn.Sequential(shared, nn.ReLU(), shared).eval()
    svd = decompose(network, (8,))
    plan = at_rank(svd, 2)
    folded = fold(svd, plan)
    before = copy.deepcopy(folded.state_dict())
    assert reconstruct(folded, svd, plan, torch.randn(200, 8)) == {}
    assert all(torch.equal(value, before[name]) for name, value in folded.state_dict().items())


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(6, 8, 3, bias=False), nn.Conv3d(6, 8, 2, bias=False), nn.ConvTranspose2d(6, 8, 3, 2, bias=False)],
    ids=str,
)
def test_layers_of_every_kind_are_refitted(layer: nn.Module) -> None:
    axes = len(layer.kernel_size)  # type: ignore[arg-type]
    images = torch.randn(40, 6, *(7,) * axes).cumsum(-1)
    network = nn.Sequential(layer).eval()
    svd = decompose(network, tuple(images.shape[1:]))
    with torch.no_grad():
        wanted = svd.network(images)
    plan = at_rank(svd, 2)
    folded = fold(svd, plan)
    before = error(folded, images, wanted)
    reconstruct(folded, svd, plan, images)
    assert error(folded, images, wanted) < before


def test_what_a_function_in_place_made_of_a_layers_output_is_not_what_the_layer_put_out() -> None:
    errors = []
    for inplace in (False, True):
        torch.manual_seed(0)
        layers = [nn.Conv2d(6, 10, 3, bias=False), nn.ReLU(inplace=inplace), nn.BatchNorm2d(10)]
        network, images = nn.Sequential(*layers).eval(), smooth(50, 6, 9) + 3
        svd = decompose(network, (6, 9, 9))
        plan = at_rank(svd, 3)
        errors.append(reconstruct(fold(svd, plan), svd, plan, images))
    assert errors[0] == errors[1]
    with torch.inference_mode():
        assert reconstruct(fold(svd, plan), svd, plan, images).keys() == errors[0].keys()


def test_a_batchnorm_that_is_given_nothing_keeps_its_statistics() -> None:
    used, unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    for norm in (used, unused):
        norm.running_mean.fill_(5.0)
    with batch_statistics(nn.ModuleList([used, unused])):
        used(torch.randn(8, 3))
    assert float(unused.running_mean.mean()) == 5.0
    assert abs(float(used.running_mean.mean())) < 2


def test_momentum_and_mode_come_back_also_after_a_failure() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3)).eval()

    def fail() -> None:
        with batch_statistics(network):
            assert network[0].training
            raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        fail()
    assert (network[0].momentum, network[0].training) == (0.1, False)

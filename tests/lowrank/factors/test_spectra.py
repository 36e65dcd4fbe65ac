"""What spectra.json holds: numpy's singular values of the kernels, dense and after training."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lrexport.config.goals import Macs
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.spectra import spectra
from lrexport.lowrank.factors.svd_form import factors
from lrexport.lowrank.selection.select import select
from lrexport.plan import Pair


def matrix(weight: torch.Tensor, scheme: str) -> np.ndarray:
    out, into, height, width = weight.shape
    kernel = weight.detach().double()
    if scheme == "spatial":
        kernel = kernel.permute(0, 2, 1, 3).reshape(out * height, into * width)
    return kernel.reshape(len(kernel), -1).numpy()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("every_scheme", [False, True])
def test_values_are_those_of_the_plans_matrices_before_and_after_training(
    small_net: nn.Module, trained: bool, every_scheme: bool
) -> None:
    start = copy.deepcopy(small_net)
    svd = decompose(small_net, (3, 12, 12))
    if trained:
        with torch.no_grad():
            for name in svd.layers:
                for factor in factors(svd.network.get_submodule(name)):
                    factor += 0.05 * torch.randn_like(factor)  # no longer orthogonal, as after training
    plan = select(svd, Macs(0.6), every_scheme=every_scheme).plan
    found = spectra(svd, plan, start if trained else None)["layers"]
    assert set(found) == set(svd.layers)
    now = {name: svd.network.get_submodule(name).weight for name in found}
    for name in ("stem", "body"):
        layer, planned = found[name], plan[name]
        if isinstance(planned, Pair):
            assert layer["scheme"] == planned.scheme
        if layer["scheme"] not in ("spatial", "channel"):
            continue
        dense = np.linalg.svd(matrix(start.get_submodule(name).weight, layer["scheme"]), compute_uv=False)
        after = np.linalg.svd(matrix(now[name], layer["scheme"]), compute_uv=False)
        np.testing.assert_allclose(layer["dense"], dense, rtol=1e-4, atol=1e-6)
        if trained:
            np.testing.assert_allclose(layer["trained"], after, rtol=1e-4, atol=1e-6)
        else:
            assert layer["trained"] is None


def test_groups_are_one_spectrum_of_the_same_energy() -> None:
    layer = nn.Conv2d(16, 16, 3, groups=2, padding=1, bias=False)
    weight = layer.weight.detach().clone()
    svd = decompose(nn.Sequential(layer), (16, 8, 8))
    (found,) = spectra(svd, {})["layers"].values()
    assert len(found["dense"]) == 24  # 8·3 × 8·3 in either group
    assert sum(value**2 for value in found["dense"]) == pytest.approx(float(weight.square().sum()), rel=1e-3)

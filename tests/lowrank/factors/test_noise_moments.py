"""Without data energy is weighted by the inputs that layers have for noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrexport import Macs
from lrexport.lowrank.factors import noise_moments
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.moments import every_scheme_of, input_moments
from lrexport.lowrank.factors.noise_moments import NoiseMoments
from lrexport.lowrank.selection.problem import Problem
from lrexport.lowrank.selection.select import select
from lrexport.torch_tools.smooth_noise import smooth_noise


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(16, 24, 3)
    )


def test_moments_of_some_layers_at_a_time_are_those_of_all_with_a_white_part(monkeypatch: pytest.MonkeyPatch) -> None:
    svd = decompose(_network(), (3, 12, 12))
    schemes = every_scheme_of(svd)
    whole = dict(NoiseMoments(svd, schemes))
    monkeypatch.setattr(noise_moments, "_MOST_BYTES", 1)
    some = NoiseMoments(svd, schemes)
    noise = smooth_noise(svd.signature, 8, torch.zeros(1))
    measured = input_moments(svd, [noise[start : start + 4] for start in range(0, 8, 4)], schemes)
    assert list(some) == list(whole) == list(svd.layers)
    for name, by_scheme in whole.items():
        assert by_scheme.keys() == measured[name].keys() == some[name].keys()
        for scheme, moment in by_scheme.items():
            plain = measured[name][scheme]
            white = plain.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(plain.shape[-1])
            torch.testing.assert_close(moment, plain + white, rtol=0.15, atol=0.15 * float(white.max()))
            torch.testing.assert_close(some[name][scheme], moment, rtol=0.15, atol=0.15 * float(white.max()))
    assert "nothing" not in some


def test_a_layer_without_finite_or_any_input_counts_by_its_own_energy() -> None:
    network = _network()
    with torch.no_grad():
        network[0].bias.fill_(-1e9)  # the ReLU after it gives zeros
    svd = decompose(network, (3, 12, 12))
    moments = NoiseMoments(svd, every_scheme_of(svd))
    assert moments["0"]
    assert moments["2"] == {}
    assert Problem(svd, moments=moments).truncations.keys() == svd.layers.keys()


def test_pairs_lose_less_of_what_layers_really_get() -> None:
    network = _network()
    with torch.no_grad():  # a mean that the next layer sees on every input, which random kernels hardly have
        network[2].bias.add_(2.0)
        network[4].weight.sub_(network[4].weight.mean((1, 2, 3), keepdim=True))
        network[4].weight.add_(0.05)
    svd = decompose(network, (3, 12, 12))
    moments = NoiseMoments(svd, {name: (layer.scheme,) for name, layer in svd.layers.items()})
    made, alone = (fold(svd, select(svd, Macs(0.6), moments=each)) for each in (moments, None))
    (inputs,) = smooth_noise(svd.signature, 64, torch.zeros(1), seed=5).tensors
    with torch.no_grad():
        wanted = network(inputs)
        ours, theirs = ((each(inputs) - wanted).square().mean() for each in (made, alone))
    assert ours < theirs

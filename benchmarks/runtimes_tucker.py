"""Tucker-2 (1×1, k×k, 1×1) beside the pairs of lrexport at half of a layer's MACs: its time and the energy that it keeps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.schemes import CONV_SCHEMES, SCHEMES
from lrexport.measure.latency import measure
from lrexport.measure.layer_models import COPIES, layer_model
from lrexport.measure.statistics import spread
from lrexport.measure.targets import MeasuringJob, Target
from lrexport.torch_tools.tracing import LayerCall

LAYERS = ((64, 56), (256, 14))  # channels, height and width; 3 × 3
SHARE = 0.5  # of the layer's MACs
GRAIN = 4
ITERATIONS = 20
DENSE, TUCKER = "dense", "Tucker-2"
_AMONG = 32 << 20  # bytes between two uses of a layer's weights, as in a network


@dataclass(frozen=True)
class Form:
    """A layer, or what is in its place at no more than SHARE of its MACs."""

    name: str
    layers: nn.Sequential
    share: float


def forms(channels: int) -> Iterator[Form]:
    """The dense layer, its pairs and the triple, each with the largest ranks on the grain."""
    layer = nn.Conv2d(channels, channels, 3, padding=1)
    dense = _weights(layer)
    yield Form(DENSE, nn.Sequential(layer), 1.0)
    for scheme in CONV_SCHEMES:
        rank = int(SHARE * dense / SCHEMES[scheme].params_per_rank(spec_of(layer)))
        pair = nn.Sequential(*SCHEMES[scheme].pair(layer, rank - rank % GRAIN))
        yield Form(f"{scheme}, rank {rank - rank % GRAIN}", pair, _weights(*pair) / dense)
    given, made = tucker_ranks(channels, channels, 9, GRAIN)
    triple = nn.Sequential(
        nn.Conv2d(channels, given, 1, bias=False),
        nn.Conv2d(given, made, 3, padding=1, bias=False),
        nn.Conv2d(made, channels, 1),
    )
    yield Form(f"{TUCKER}, ranks {given} and {made}", triple, _weights(*triple) / dense)


def _weights(*layers: nn.Module) -> int:
    """Weights of convolutions of stride 1: at one position, as many MACs."""
    return sum(layer.weight.numel() for layer in layers)


def tucker_ranks(given: int, made: int, taps: int, grain: int) -> tuple[int, int]:
    """Ranks of both modes, at most a grain apart in their shares, with the most weights within SHARE of the layer's."""
    best, most = (grain, grain), 0
    for first in range(grain, given + 1, grain):
        for second in {first * made // given, first * made // given + grain}:
            weights = given * first + taps * first * second + second * made
            if second <= made and second % grain == 0 and most < weights <= SHARE * taps * given * made:
                best, most = (first, second), weights
    return best


def times(channels: int, size: int, target: Target, rounds: int) -> list[dict[str, object]]:
    """Each form's share of the layer's MACs and time, with quartiles over rounds: slopes between numbers of copies."""
    made = list(forms(channels))
    call = LayerCall(1, (size, size), (size, size))
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for form in made:
            for copies in COPIES:
                paths[f"{form.name} x{copies}"] = path = Path(folder) / f"{len(paths)}.onnx"
                path.write_bytes(layer_model(form.layers, call, copies).SerializeToString())
        samples = measure(paths, None, MeasuringJob((), rounds, evict_bytes=_AMONG), target).samples_ms
    few, many = COPIES
    slopes = {
        form.name: (np.array(samples[f"{form.name} x{many}"]) - np.array(samples[f"{form.name} x{few}"])) / (many - few)
        for form in made
    }
    dense = np.median(slopes[DENSE])
    rows: list[dict[str, object]] = []
    for form in made:
        found = spread(list(slopes[form.name] / dense))
        rows.append({"form": form.name, "macs": form.share, "ratio": found.p50, "iqr": [found.p25, found.p75]})
    return rows


@torch.no_grad()
def energies(network: nn.Module) -> list[dict[str, object]]:
    """Shares of energy dropped at SHARE of the MACs, ranks not on a grain, means over the network's 3×3 layers by width."""
    found: dict[int, list[dict[str, float]]] = {}
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.in_channels == layer.out_channels:
            found.setdefault(layer.in_channels, []).append(_dropped(layer))
    return [
        {"channels": width, "layers": len(rows), **{name: float(np.mean([row[name] for row in rows])) for name in rows[0]}}
        for width, rows in found.items()
    ]


def _dropped(layer: nn.Conv2d) -> dict[str, float]:
    spec, kernel = spec_of(layer), layer.weight.double()
    total, dropped = float(kernel.square().sum()), dict[str, float]()
    for scheme in CONV_SCHEMES:
        rank = int(SHARE * kernel.numel() / SCHEMES[scheme].params_per_rank(spec))
        values = torch.linalg.svdvals(SCHEMES[scheme].matrix(kernel, spec))
        dropped[scheme] = float(values[rank:].square().sum()) / total
    given, made = tucker_ranks(layer.in_channels, layer.out_channels, 9, 1)
    dropped[TUCKER] = 1 - tucker_energy(kernel, made, given) / total
    return dropped


def tucker_energy(kernel: Tensor, made: int, given: int) -> float:
    """Energy of the kernel's (O, I, k, k) best projection on ``made`` output and ``given`` input directions, by HOOI.

    Source: De Lathauwer et al. 2000, "On the best rank-1 and rank-(R1, …, RN) approximation of higher-order tensors".
    """
    taps = kernel.flatten(2)
    right = _leading(taps.transpose(0, 1).flatten(1), given)
    for _ in range(ITERATIONS):
        left = _leading(torch.einsum("oit,ir->ort", taps, right).flatten(1), made)
        right = _leading(torch.einsum("oit,or->irt", taps, left).flatten(1), given)
    return float(torch.einsum("oit,or,is->rst", taps, left, right).square().sum())


def _leading(matrix: Tensor, count: int) -> Tensor:
    """The left singular vectors of the ``count`` largest singular values."""
    return torch.linalg.svd(matrix, full_matrices=False).U[:, :count]

"""Second moments of the inputs of layers for noise: what is known of them without data.

Inputs of a layer are far from white whatever a network gets: after a ReLU they have a mean, and channels differ in scale.
A kernel's own energy says nothing of that. Real inputs differ from noise too, so a white part of the
same size on average is added. Without it, ResNets lose what the text recogniser of the benchmark gains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.moments import Schemes, moments_of_samples
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.plan import Scheme
from lrexport.torch_tools.memory import give_back
from lrexport.torch_tools.smooth_noise import smooth_noise
from lrexport.torch_tools.tracing import like_weights

_INPUTS, _BATCH = 8, 4
# Outputs of each layer that its moment is measured at; the white part makes up for those that are missing.
_SAMPLES = 2_000
# The white part as a share of the mean of the diagonal.
_WHITE = 1.0
# Moments in memory at one time. Those of all layers would take as much as the network.
_MOST_BYTES = 64 << 20


class NoiseMoments(Mapping[str, Mapping[Scheme, Tensor]]):
    """The moments of the layers of ``svd``, measured for some layers whenever one of them is asked for.

    A scheme is left out whose moment is not finite, or zero. Asking in the order of the layers takes the fewest runs.
    """

    def __init__(self, svd: SVDNetwork, schemes: Schemes) -> None:
        self._svd, self._schemes = svd, {name: tuple(each) for name, each in schemes.items()}
        self._known: dict[str, dict[Scheme, Tensor]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._svd.layers)

    def __len__(self) -> int:
        return len(self._svd.layers)

    def __getitem__(self, name: str) -> Mapping[Scheme, Tensor]:
        if name not in self._svd.layers:
            raise KeyError(name)
        if name not in self._known:
            self._known = {}
            self._known = self._measured(self._from(name))
        return self._known[name]

    def _from(self, name: str) -> list[str]:
        """The layer and those after it whose moments fit into memory together."""
        names, total = list[str](), 0
        order = list(self._svd.layers)
        for each in order[order.index(name) :]:
            spec = spec_of(self._svd.network.get_submodule(each))
            total += sum(4 * spec.groups * SCHEMES[scheme].matrix_shape(spec)[1] ** 2 for scheme in self._schemes[each])
            if names and total > _MOST_BYTES:
                break
            names.append(each)
        return names

    def _measured(self, names: list[str]) -> dict[str, dict[Scheme, Tensor]]:
        part = replace(self._svd, layers={name: self._svd.layers[name] for name in names})
        noise = smooth_noise(self._svd.signature, _INPUTS, like_weights(self._svd.network))
        batches = [noise[start : start + _BATCH] for start in range(0, _INPUTS, _BATCH)]
        moments = moments_of_samples(part, batches, {name: self._schemes[name] for name in names}, _SAMPLES)
        del noise, batches
        give_back()  # of the inputs of all layers, before a layer is decomposed, which needs several times its size
        return {
            name: {scheme: _with_white(moment) for scheme, moment in by_scheme.items() if _is_usable(moment)}
            for name, by_scheme in moments.items()
        }


def _is_usable(moment: Tensor) -> bool:
    return bool(moment.isfinite().all() and (moment.diagonal(dim1=-2, dim2=-1).sum(-1) > 0).all())


def _with_white(moment: Tensor) -> Tensor:
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return moment + _WHITE * mean * torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)

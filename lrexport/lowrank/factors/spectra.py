"""Singular values of a network's layers, before and after SVD training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.exact_svd import singular_values_of
from lrexport.lowrank.factors.svd_form import redecompose, singular_values
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.plan import Pair, Plan, Scheme

_DIGITS = 5  # enough for a chart, and a file of kilobytes


@torch.no_grad()
def spectra(svd: SVDNetwork, plan: Plan, start: nn.Module | None = None) -> dict[str, Any]:
    """The content of spectra.json (docs/record.md): singular values of the layers in SVD form, by the plan's schemes.

    ``start`` is the dense network before SVD training, None without SVD training. First, U, s, V are replaced by the exact
    SVD of the composed kernels.
    """
    layers = {}
    for name, layer in svd.layers.items():
        planned = plan.get(name)
        scheme = planned.scheme if isinstance(planned, Pair) else layer.scheme
        module = svd.network.get_submodule(name)
        redecompose(module)
        now = _values(singular_values(module, scheme))
        before = now if start is None else _values(_singular(start.get_submodule(name), scheme))
        layers[name] = {"scheme": scheme, "dense": before, "trained": None if start is None else now}
    return {"schema_version": 1, "layers": layers}


def _singular(layer: Any, scheme: Scheme) -> Tensor:
    return singular_values_of(SCHEMES[scheme].matrix(layer.weight, spec_of(layer)))


def _values(singular: Tensor) -> list[float]:
    """Absolute values, descending; in a layer with groups the root of the sum of squares over the groups, (g, r) → r."""
    values = singular.detach().double().abs()
    values = values if values.ndim == 1 else values.square().sum(0).sqrt()
    return [float(f"{value:.{_DIGITS}g}") for value in values.cpu().tolist()]

"""SVD form, explicit or implicit.

Explicit, as in the paper: a layer's weight is composed from trainable U, s, V by torch's parametrisation. Implicit: the
weight itself is trained, and U, s, V are those of its SVD whenever somebody asks for them; the layer only remembers its
scheme.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrexport.lowrank.factors.exact_svd import SmallerBasis, exact_svd, singular_values_of, smaller_basis
from lrexport.lowrank.layers.kernels import KernelSpec, spec_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.plan import Scheme
from lrexport.torch_tools.reparametrised import drop_parametrisations

# Factors of a 4608-row matrix are orthogonal to about 1e-6 in float32.
_ORTHOGONAL = 1e-5


class SVDForm(nn.Module):
    """weight = kernel(U · diag(|s|) · Vᵀ), U (rows, r), s (r,), V (columns, r) at full rank r = min(rows, columns).

    A layer of g > 1 groups has a leading axis in all three: U (g, rows, r), s (g, r), V (g, columns, r). ``retried``: an SVD
    of the layer did not converge at first. Composing the kernel and running one convolution is the same function of U, s, V
    as the two layers of Yang et al. 2020 (section 3.1), with the same gradients, in a fraction of the time
    (benchmarks/step_time.py).
    """

    def __init__(self, scheme: Scheme, spec: KernelSpec) -> None:
        super().__init__()
        self.scheme = scheme
        self.spec = spec
        self.retried = False

    def forward(self, left: Tensor, singular: Tensor, right: Tensor) -> Tensor:
        return SCHEMES[self.scheme].kernel(compose(left, singular, right), self.spec)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, singular, right, self.retried = exact_svd(SCHEMES[self.scheme].matrix(weight, self.spec))
        return left, singular, right


class ImplicitForm:
    """The mark of a layer in implicit SVD form: its scheme, and whether an SVD did not converge at first (``retried``).

    ``singular`` are the singular values by scheme with the version of the weight that they are of.
    """

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.retried = False
        self.singular: dict[Scheme, tuple[int, Tensor]] = {}


def compose(left: Tensor, singular: Tensor, right: Tensor) -> Tensor:
    """The matrix U · diag(|s|) · Vᵀ, (rows, columns) or (g, rows, columns).

    At s = 0 the derivative of |s| is 1 here, because with 0 a layer of zeros could never train.
    """
    magnitude = torch.where(singular < 0, -singular, singular)
    return (left * magnitude.unsqueeze(-2)) @ right.mT


def attach(layer: Any, scheme: Scheme, tied: Iterable[Any] = (), implicit: bool = False) -> None:
    """Put a layer's weight into SVD form, in place; the layer keeps its class.

    ``tied`` are other layers with the same weight and spec; they get the same U, s, V.
    """
    if implicit:
        form = ImplicitForm(scheme)
        for each in (layer, *tied):
            each.implicit_svd_form = form
        return
    for each in (layer, *tied):
        # Unsafe skips a check that would compose the weight, whose shape and type are right by construction.
        parametrize.register_parametrization(each, "weight", SVDForm(scheme, spec_of(each)), unsafe=True)
        each.parametrizations.weight = layer.parametrizations.weight


def is_attached(layer: Any) -> bool:
    """Whether the layer is in SVD form, of either kind."""
    return is_explicit(layer) or isinstance(getattr(layer, "implicit_svd_form", None), ImplicitForm)


def is_explicit(layer: Any) -> bool:
    """Whether U, s, V are the parameters of the layer."""
    return parametrize.is_parametrized(layer, "weight") and isinstance(layer.parametrizations.weight[0], SVDForm)


def form_of(layer: Any) -> SVDForm | ImplicitForm:
    """The form of a layer in SVD form."""
    form: SVDForm | ImplicitForm = layer.parametrizations.weight[0] if is_explicit(layer) else layer.implicit_svd_form
    return form


def factors(layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The parameters U, s, V of a layer in explicit SVD form."""
    parametrised = layer.parametrizations.weight
    return parametrised.original0, parametrised.original1, parametrised.original2


def factors_by(layer: Any, scheme: Scheme) -> tuple[Tensor, Tensor, Tensor]:
    """U, s, V of the layer's matrix by ``scheme`` at full rank: from its SVD form if possible, else decomposed."""
    if _has_factors(layer, scheme):
        return factors(layer)
    exact = exact_svd(SCHEMES[scheme].matrix(layer.weight, spec_of(layer)))
    _note(layer, scheme, exact.singular, exact.retried)
    return exact[:3]


def smaller_basis_by(layer: Any, scheme: Scheme) -> SmallerBasis:
    """One side of :func:`factors_by`: U if the layer has factors, else the shorter one."""
    if _has_factors(layer, scheme):
        left, singular, _ = factors(layer)
        return SmallerBasis(left, singular, False, False)
    made = smaller_basis(SCHEMES[scheme].matrix(layer.weight, spec_of(layer)))
    _note(layer, scheme, made.singular, made.retried)
    return made


def _has_factors(layer: Any, scheme: Scheme) -> bool:
    """Whether U, s, V of this scheme at full rank are the parameters of the layer."""
    return is_explicit(layer) and form_of(layer).scheme == scheme and not is_cut(layer)


def _note(layer: Any, scheme: Scheme, singular: Tensor, retried: bool) -> None:
    """Keep what was found out about a layer in SVD form."""
    if not is_attached(layer):
        return
    form = form_of(layer)
    form.retried |= retried
    if isinstance(form, ImplicitForm):
        form.singular[scheme] = layer.weight._version, singular


def singular_values(layer: Any, scheme: Scheme) -> Tensor:
    """s of :func:`factors_by`: from an earlier decomposition of the same weight if there was one, else computed alone."""
    if _has_factors(layer, scheme):
        return factors(layer)[1]
    form = form_of(layer) if is_attached(layer) else None
    if isinstance(form, ImplicitForm):
        version, singular = form.singular.get(scheme, (-1, layer.weight))
        if version == layer.weight._version:
            return singular
    return singular_values_of(SCHEMES[scheme].matrix(layer.weight, spec_of(layer)))


def sources_of(layer: Any) -> tuple[Tensor, ...]:
    """The parameters that the layer's weight comes from: U, s, V in explicit form, else the weight itself."""
    return factors(layer) if is_explicit(layer) else (layer.weight,)


@torch.no_grad()
def redecompose(layer: nn.Module) -> None:
    """Replace U, s, V by the exact SVD of the kernel they compose, so that truncation is optimal (Eckart–Young).

    Of a layer in implicit form they always are.
    """
    if not is_explicit(layer):
        return
    parameters = factors(layer)
    if _is_exact(*parameters):
        return
    exact = exact_svd(compose(*parameters))
    rank = parameters[1].shape[-1]
    for parameter, value in zip(parameters, exact[:3], strict=True):
        parameter.copy_(value[..., :rank])
    form_of(layer).retried |= exact.retried


def is_cut(layer: Any) -> bool:
    """Whether a layer in SVD form has parameters of less than full rank."""
    if not is_explicit(layer):
        return False
    left, singular, right = factors(layer)
    return singular.shape[-1] < min(left.shape[-2], right.shape[-2])


@torch.no_grad()
def cut(layer: Any, left: Tensor, right: Tensor) -> None:
    """Replace U, s, V by the SVD of left · right, left (…, rows, r) and right (…, r, columns), at rank r.

    They are new parameters, which an optimiser must be given.
    """
    rank = left.shape[-1]
    _put_factors(layer, *(value[..., :rank].contiguous() for value in exact_svd(left @ right)[:3]))


def fit_ranks(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the layers in SVD form the ranks that they have in the state dict ``weights``, before it is loaded."""
    for name, module in network.named_modules():
        if not is_explicit(module):
            continue
        keys = [f"{name}.parametrizations.weight.original{index}".lstrip(".") for index in range(3)]
        if all(key in weights for key in keys) and weights[keys[1]].shape != factors(module)[1].shape:
            _put_factors(module, *(torch.empty_like(weights[key]).to(factors(module)[1]) for key in keys))


def _put_factors(layer: Any, *values: Tensor) -> None:
    parametrised = layer.parametrizations.weight
    for index, value in enumerate(values):
        setattr(parametrised, f"original{index}", nn.Parameter(value))


def _is_exact(left: Tensor, singular: Tensor, right: Tensor) -> bool:
    """Whether the factors already are an SVD, as before training; two products are cheaper than a decomposition."""
    if (singular < 0).any() or (singular.diff() > 0).any():
        return False
    eye = torch.eye(singular.shape[-1], device=left.device, dtype=left.dtype)
    return all(float((side.mT @ side - eye).abs().max()) < _ORTHOGONAL for side in (left, right))


def detach(layer: Any, tied: Iterable[Any] = ()) -> None:
    """Replace the SVD form by the composed weight, in place; the layer and those ``tied`` to it share it."""
    if not is_explicit(layer):
        for each in (layer, *tied):
            del each.implicit_svd_form
        return
    weight = nn.Parameter(layer.weight.detach().contiguous())
    for each in (layer, *tied):
        drop_parametrisations(each)
        each.register_parameter("weight", weight)

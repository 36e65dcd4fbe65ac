"""Which operators have an implementation in torch, and for which forms of a node.

Source: https://onnx.ai/onnx/operators. A form that is not covered has no implementation here, and its node runs in ONNX
Runtime: an implementation that is nearly right would be worse.
"""

from __future__ import annotations

from lrexport.onnx_network.operators import (
    activations,
    arithmetic,
    contributed,
    convolutions,
    indexing,
    normalisation,
    pieces,
    pooling,
    products,
    quantisation,
    recurrent,
    reductions,
    resizing,
    sampling,
    shapes,
)
from lrexport.onnx_network.operators.facts import Forms, NodeFacts, Operator

# Broadcasting and others had other rules before this opset.
_OLDEST_OPSET = 7
_FAMILIES: tuple[Forms, ...] = (
    activations.FORMS,
    arithmetic.FORMS,
    convolutions.FORMS,
    indexing.FORMS,
    normalisation.FORMS,
    pieces.FORMS,
    pooling.FORMS,
    products.FORMS,
    quantisation.FORMS,
    recurrent.FORMS,
    reductions.FORMS,
    resizing.FORMS,
    sampling.FORMS,
    shapes.FORMS,
)
_STANDARD = {name: form for family in _FAMILIES for name, form in family.items()}
_DOMAINS = {"": _STANDARD, "com.microsoft": contributed.FORMS}

# Operators with an implementation for at least one form, those of other domains with the domain before them.
NAMES = tuple(sorted([*_STANDARD, *(f"com.microsoft.{name}" for name in contributed.FORMS)]))


def operator_of(facts: NodeFacts) -> Operator | None:
    """The implementation of a node's operator; None without one for this form of it."""
    form = _DOMAINS.get(facts.domain, {}).get(facts.operator)
    return None if form is None or facts.opset < _OLDEST_OPSET else form(facts)

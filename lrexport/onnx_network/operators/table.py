"""Which operators have an implementation in torch, and for which forms of a node.

Source: https://onnx.ai/onnx/operators. A form that is not covered has no implementation here, and its node runs in ONNX
Runtime: an implementation that is nearly right would be worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lrexport.onnx_network.operators import (
    arithmetic,
    convolutions,
    indexing,
    normalisation,
    pooling,
    products,
    recurrent,
    reductions,
    resizing,
    shapes,
)
from lrexport.onnx_network.operators.facts import NodeFacts, Operator

_FAMILIES: tuple[Mapping[str, Callable[[NodeFacts], Operator | None]], ...] = (
    arithmetic.FORMS,
    convolutions.FORMS,
    indexing.FORMS,
    normalisation.FORMS,
    pooling.FORMS,
    products.FORMS,
    recurrent.FORMS,
    reductions.FORMS,
    resizing.FORMS,
    shapes.FORMS,
)
_FORMS = {name: form for family in _FAMILIES for name, form in family.items()}

# Operators with an implementation for at least one form.
NAMES = tuple(sorted(_FORMS))


def operator_of(facts: NodeFacts) -> Operator | None:
    """The implementation of a node's operator; None without one for this form of it."""
    form = _FORMS.get(facts.operator) if not facts.domain else None
    return None if form is None else form(facts)

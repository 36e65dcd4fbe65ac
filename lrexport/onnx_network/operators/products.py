"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from lrexport.onnx_network.operators.facts import (
    Forms,
    NodeFacts,
    NotCoveredError,
    Operator,
    Values,
    at,
    needed,
    only,
    plain,
)


def _mat_mul(values: Values) -> tuple[Tensor, ...]:
    return (torch.matmul(needed(values[0]), needed(values[1])),)


def _gemm(facts: NodeFacts) -> Operator | None:
    alpha, beta = float(facts.get("alpha", 1.0)), float(facts.get("beta", 1.0))
    turn_one, turn_other = bool(facts.get("transA", 0)), bool(facts.get("transB", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        one, other, added = needed(values[0]), needed(values[1]), at(values, 2)
        if not one.is_floating_point():
            raise NotCoveredError("Gemm of integers, with factors that are none")
        product = (one.T if turn_one else one) @ (other.T if turn_other else other)
        product = product if alpha == 1.0 else alpha * product
        if added is None:
            return (product,)
        return (product + (added if beta == 1.0 else beta * added),)

    return run


def _einsum(facts: NodeFacts) -> Operator | None:
    equation = facts.text("equation", "").replace(" ", "")
    return lambda values: (torch.einsum(equation, *(needed(value) for value in values)),)


FORMS: Forms = {
    "Einsum": only(_einsum, "equation"),
    "Gemm": only(_gemm, "alpha", "beta", "transA", "transB"),
    "MatMul": plain(_mat_mul),
}

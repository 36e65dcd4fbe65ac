"""Gradients reach every input of floating point, as finite differences have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.onnx_network.operators.oracle import implementation


def _values(*sizes: int, low: float = 0.2, high: float = 2.0) -> Tensor:
    """Distinct values with no two near each other, so that finite differences cross no kink."""
    count = torch.Size(sizes).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return torch.linspace(low, high, count, dtype=torch.float64)[order].reshape(sizes)


LONGS = torch.tensor
CASES: list[tuple[str, dict[str, Any], list[Any]]] = [
    *((name, {}, [_values(2, 3)]) for name in ("Exp", "Log", "Sqrt", "Tanh", "Sigmoid", "Erf", "Softplus", "Mish", "Gelu")),
    *((name, {}, [_values(2, 3, low=-1, high=1.1)]) for name in ("Relu", "Elu", "Selu", "Celu", "HardSwish", "LeakyRelu")),
    *((name, {}, [_values(2, 3), _values(3) + 0.01]) for name in ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean")),
    ("Clip", {}, [_values(2, 3, low=-2), torch.tensor(-1.0).double(), torch.tensor(1.01).double()]),
    ("PRelu", {}, [_values(2, 3, low=-1, high=1.1), _values(3)]),
    ("Softmax", {"axis": 1}, [_values(2, 3)]),
    ("LogSoftmax", {"axis": 0}, [_values(2, 3)]),
    ("MatMul", {}, [_values(2, 2, 3), _values(3, 2)]),
    ("Gemm", {"transB": 1, "alpha": 0.5}, [_values(2, 3), _values(4, 3), _values(4)]),
    ("Einsum", {"equation": "ij,kj->ik"}, [_values(2, 3), _values(4, 3)]),
    ("Conv", {"pads": [1, 0, 0, 1]}, [_values(1, 2, 4, 4), _values(2, 2, 2, 2), _values(2)]),
    ("ConvTranspose", {"strides": [2, 2], "pads": [1, 0, 0, 1]}, [_values(1, 2, 3, 3), _values(2, 2, 2, 2), _values(2)]),
    ("MaxPool", {"kernel_shape": [2, 2], "ceil_mode": 1}, [_values(1, 2, 5, 5)]),
    ("AveragePool", {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1]}, [_values(1, 2, 4, 4)]),
    ("LpPool", {"kernel_shape": [2, 2]}, [_values(1, 2, 4, 4)]),
    ("GlobalMaxPool", {}, [_values(1, 2, 3, 3)]),
    ("BatchNormalization", {}, [_values(2, 3, 2), *(_values(3) for _ in range(4))]),
    ("InstanceNormalization", {}, [_values(2, 3, 4), _values(3), _values(3)]),
    ("LayerNormalization", {}, [_values(2, 3), _values(3), _values(3)]),
    ("GroupNormalization", {"num_groups": 2}, [_values(2, 4, 3), _values(4), _values(4)]),
    ("LRN", {"size": 3}, [_values(2, 4, 2)]),
    ("LpNormalization", {}, [_values(2, 3)]),
    *((f"Reduce{name}", {}, [_values(2, 3)]) for name in ("Sum", "Mean", "Max", "Prod", "L1", "L2", "LogSumExp")),
    ("CumSum", {"exclusive": 1}, [_values(2, 3), LONGS(1)]),
    ("Gather", {}, [_values(3, 2), LONGS([0, -1, 0])]),
    ("GatherElements", {"axis": 1}, [_values(2, 3), LONGS([[0, -1], [1, 1]])]),
    ("GatherND", {}, [_values(2, 3), LONGS([[0, 1], [1, -1]])]),
    ("ScatterND", {}, [_values(3, 2), LONGS([[0], [2]]), _values(2, 2)]),
    ("ScatterElements", {"reduction": "add"}, [_values(3, 2), LONGS([[0, 0]]), _values(1, 2)]),
    ("Concat", {"axis": 1}, [_values(2, 1), _values(2, 2)]),
    ("Slice", {}, [_values(4, 3), LONGS([-1]), LONGS([-9]), LONGS([0]), LONGS([-2])]),
    ("Split", {"axis": 1}, [_values(2, 3), LONGS([1, 2])]),
    ("Pad", {"mode": "reflect"}, [_values(2, 3), LONGS([0, 2, 1, 0])]),
    ("Expand", {}, [_values(2, 1), LONGS([3, 2, 4])]),
    ("Tile", {}, [_values(2, 1), LONGS([1, 3])]),
    ("Where", {}, [LONGS([True, False]), _values(2), _values(2)]),
    ("DepthToSpace", {"blocksize": 2}, [_values(1, 4, 2, 2)]),
    ("Resize", {"mode": "linear"}, [_values(1, 1, 3, 3), None, LONGS([1.0, 1.0, 1.7, 2.0])]),
    ("Resize", {"mode": "cubic"}, [_values(1, 1, 3, 3), None, LONGS([1.0, 1.0, 2.0, 0.7])]),
    ("GridSample", {"align_corners": 1}, [_values(1, 1, 3, 3), _values(1, 2, 2, 2, low=-0.7, high=0.63)]),
    ("DequantizeLinear", {}, [LONGS([3, -7], dtype=torch.int8), torch.tensor(0.3).double()]),
    ("LSTM", {"hidden_size": 2}, [_values(3, 1, 2), _values(1, 8, 2), _values(1, 8, 2), _values(1, 16)]),
    ("GRU", {"hidden_size": 2}, [_values(3, 1, 2), _values(1, 6, 2), _values(1, 6, 2), _values(1, 12)]),
    ("RNN", {"hidden_size": 2, "direction": "reverse"}, [_values(3, 1, 2), _values(1, 2, 2), _values(1, 2, 2)]),
]


@pytest.mark.parametrize(("operator", "attributes", "inputs"), CASES, ids=lambda each: each if isinstance(each, str) else "")
def test_gradients_are_finite_differences(operator: str, attributes: dict[str, Any], inputs: list[Any]) -> None:
    made = implementation(operator, inputs=len(inputs), **attributes)
    assert made is not None
    # Coordinates, which Resize takes as float32 numbers, have no gradient.
    moving = [place for place, value in enumerate(inputs) if value is not None and value.dtype == torch.float64]

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        values = list(inputs)
        for place, value in zip(moving, given, strict=True):
            values[place] = value
        return tuple(value for value in made(values) if value.is_floating_point())

    assert torch.autograd.gradcheck(run, [inputs[place].clone().requires_grad_() for place in moving])


@pytest.mark.parametrize("operator", ["ReduceL2", "LpNormalization", "Celu", "Elu", "Selu", "Softplus", "HardSwish"])
def test_gradients_are_numbers_at_zero_and_far_away(operator: str) -> None:
    made = implementation(operator)
    assert made is not None
    for number in (0.0, 200.0, -200.0):
        value = torch.full((2, 2), number, requires_grad=True)
        made([value])[0].sum().backward()
        assert value.grad is not None
        assert torch.isfinite(value.grad).all(), f"{operator} at {number}"

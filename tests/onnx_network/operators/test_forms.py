"""Forms without an implementation are said to have none; none is nearly right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lrexport.onnx_network.operators.facts import NodeFacts, NotCoveredError, TooLargeError, from_array
from lrexport.onnx_network.operators.table import NAMES, operator_of
from tests.onnx_network.operators.oracle import implementation

NOT_COVERED: list[tuple[str, dict[str, Any]]] = [
    ("Resize", {"mode": "linear", "antialias": 1}),
    ("Resize", {"coordinate_transformation_mode": "tf_crop_and_resize"}),
    ("Resize", {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "round_prefer_ceil"}),
    ("Resize", {"mode": "nearest", "coordinate_transformation_mode": "half_pixel_symmetric", "nearest_mode": "floor"}),
    ("Resize", {"mode": "something"}),
    ("MaxPool", {"kernel_shape": [2, 2], "storage_order": 1}),
    ("MaxPool", {"kernel_shape": [2, 2, 2, 2]}),
    ("LpPool", {"kernel_shape": [2, 2], "p": 3}),
    ("Conv", {"auto_pad": "SAME"}),
    ("LSTM", {"clip": 3.0}),
    ("LSTM", {"activations": ["Relu", "Tanh", "Tanh"]}),
    ("LSTM", {"input_forget": 1}),
    ("LSTM", {"layout": 1}),
    ("RNN", {"activations": ["Relu"]}),
    ("BatchNormalization", {"training_mode": 1}),
    ("QuantizeLinear", {"block_size": 2}),
    ("DequantizeLinear", {"block_size": 2}),
    ("QuantizeLinear", {"output_dtype": 17}),
    ("GridSample", {"mode": "other"}),
    ("TopK", {"sorted": 0}),
    ("Cast", {"to": 17}),
    ("Cast", {"to": 12}),
    ("ScatterND", {"reduction": "other"}),
    ("Pad", {"mode": "other"}),
    ("Gelu", {"approximate": "other"}),
    ("DepthToSpace", {"mode": "other"}),
    ("Celu", {"alpha": -1.0}),
    ("Constant", {"value_string": b"text"}),
    ("NonMaxSuppression", {}),
    ("Loop", {}),
]


@pytest.mark.parametrize(("operator", "attributes"), NOT_COVERED)
def test_a_form_that_is_not_covered_has_no_implementation(operator: str, attributes: dict[str, Any]) -> None:
    assert implementation(operator, **attributes) is None


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_attribute_an_old_opset_or_another_domain_has_no_implementation(name: str) -> None:
    domain, _, operator = name.rpartition(".")
    facts: dict[str, Any] = {"axis": 0, "to": 1, "kernel_shape": [2, 2], "value_int": 1}
    for chosen in ({}, *({key: value} for key, value in facts.items())):
        assert operator_of(NodeFacts(operator, 21, {**chosen, "attribute_of_the_future": 1}, domain)) is None
    assert operator_of(NodeFacts(operator, 6, {}, domain)) is None
    assert operator_of(NodeFacts(operator, 21, {}, "some.other.domain")) is None


def test_outputs_that_are_not_covered_have_no_implementation() -> None:
    assert implementation("MaxPool", outputs=2, kernel_shape=[2, 2]) is None
    assert implementation("BatchNormalization", outputs=3) is None
    assert implementation("Dropout", opset=10, outputs=2) is None
    assert implementation("SkipLayerNormalization", domain="com.microsoft", outputs=4) is None


def _run(operator: str, *inputs: torch.Tensor | None, **attributes: Any) -> None:
    made = implementation(operator, inputs=len(inputs), **attributes)
    assert made is not None
    made(inputs)


def test_forms_seen_only_at_run_time_are_said_not_to_be_covered() -> None:
    ones, four = torch.ones(3, 2, 4), from_array(np.array([1, 2], "i2"))
    with pytest.raises(NotCoveredError):
        _run("Dropout", ones, torch.tensor(0.5), torch.tensor(True))
    with pytest.raises(NotCoveredError):
        _run("NonZero", torch.tensor(3.0))
    with pytest.raises(NotCoveredError):
        _run("QuantizeLinear", ones, torch.tensor(0.5), four)
    with pytest.raises(NotCoveredError):
        _run("DequantizeLinear", torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(NotCoveredError):
        _run("ReduceL2", ones, torch.tensor([], dtype=torch.int64), noop_with_empty_axes=1)
    with pytest.raises(NotCoveredError):
        _run("ReduceMax", torch.ones(0, 2))
    weights = torch.ones(1, 8, 4), torch.ones(1, 8, 2)
    with pytest.raises(NotCoveredError):
        _run("LSTM", ones, *weights, None, torch.tensor([3, 1]))
    with pytest.raises(NotCoveredError):
        _run("LSTM", ones, *weights, None, None, None, None, torch.ones(1, 6))


def test_tensors_far_larger_than_a_networks_are_refused_before_they_are_made() -> None:
    huge = torch.tensor([1 << 20, 1 << 20])
    with pytest.raises(TooLargeError):
        _run("ConstantOfShape", huge)
    with pytest.raises(TooLargeError):
        _run("Expand", torch.ones(1), huge)
    with pytest.raises(TooLargeError):
        _run("Tile", torch.ones(1, 1), huge)
    with pytest.raises(TooLargeError):
        _run("Range", torch.tensor(0), torch.tensor(1 << 40), torch.tensor(1))
    with pytest.raises(TooLargeError):
        _run("Pad", torch.ones(1), torch.tensor([1 << 40, 0]))
    with pytest.raises(TooLargeError):
        _run("Resize", torch.ones(1, 1, 1), None, torch.tensor([1.0, 1e6, 1e6]))


def test_arrays_become_tensors_without_changing_their_values() -> None:
    import ml_dtypes

    for kind in ("f4", "f8", "i1", "u1", "i2", "i4", "i8", "u2", "u4", "?", "f2", ml_dtypes.bfloat16, ml_dtypes.int4):
        array = np.array([0, 1, 3]).astype(kind)
        tensor = from_array(array)
        assert tensor is not None
        assert tensor.tolist() == array.astype("f8").tolist()
    assert from_array(np.array(["text"])) is None
    assert from_array(np.array([1j])) is None

"""What a runtime's quantiser is told of the ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from lrexport.formats.int8_in_runtime import _zero_filters


def test_convolutions_with_a_filter_of_zeros_are_named_with_the_activation_behind(tmp_path: Path) -> None:
    whole, partly = np.ones((2, 3, 1, 1), "float32"), np.ones((2, 3, 1, 1), "float32")
    partly[1] = 0
    nodes = [
        onnx.helper.make_node("Conv", ["x", "whole"], ["a"]),
        onnx.helper.make_node("Conv", ["x", "partly"], ["b"]),
        onnx.helper.make_node("Relu", ["a"], ["c"]),
        onnx.helper.make_node("Relu", ["b"], ["d"]),
        onnx.helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    ports = [onnx.helper.make_tensor_value_info(name, 1, [1, size, 4, 4]) for name, size in (("x", 3), ("y", 2))]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in (("whole", whole), ("partly", partly))]
    graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    assert _zero_filters(tmp_path / "a.onnx") == ["b", "d"]

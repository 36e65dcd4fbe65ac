"""ONNX's own tests of nodes: every one whose form is covered, against the outputs that the specification has for it."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from onnx.backend.test import loader

from lrexport.onnx_network.body import facts_of
from lrexport.onnx_network.operators.facts import NotCoveredError, from_array
from lrexport.onnx_network.operators.table import operator_of

# ONNX Runtime, which is followed, has another size here.
_ELSEWHERE = {f"test_resize_downsample_scales_{mode}_align_corners" for mode in ("linear", "cubic")}


def _tensor(value: Any) -> torch.Tensor | None:
    return from_array(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else None


def _differences(case: Any) -> str | None:
    """How the implementation's outputs differ from the expected; None if they do not. Raises NotCoveredError."""
    graph = case.model.graph
    node = graph.node[0]
    opset = max((entry.version for entry in case.model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    operator = operator_of(facts_of(node, opset))
    if operator is None:
        raise NotCoveredError(node.op_type)
    for inputs, outputs in case.data_sets:
        given = {item.name: _tensor(value) for item, value in zip(graph.input, inputs, strict=False)}
        if any(value is None for value in given.values()):
            raise NotCoveredError("types")
        made = dict(zip(node.output, operator([given.get(name) for name in node.input]), strict=False))
        for item, value in zip(graph.output, outputs, strict=True):
            expected, actual = _tensor(value), made[item.name]
            if expected is None:
                raise NotCoveredError("types")
            if actual.shape != expected.shape or actual.is_floating_point() != expected.is_floating_point():
                return f"{tuple(actual.shape)} {actual.dtype}, not {tuple(expected.shape)} {expected.dtype}"
            if not actual.is_floating_point() and actual.dtype != expected.dtype:
                return f"{actual.dtype}, not {expected.dtype}"
            half = np.asarray(value).dtype.itemsize < 4
            close = torch.allclose(
                actual.double(), expected.double(), rtol=max(case.rtol, 2e-3 * half), atol=1e-5 + 1e-3 * half, equal_nan=True
            )
            if not close:
                return f"a difference of {float((actual.double() - expected.double()).abs().max()):g}"
    return None


def _without_slow_ones(made: type, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> None:
    """As the class of the classes of tests does it, but for three that take most of the time, and for their texts."""
    for member in members:
        if member.startswith("export") and not member.endswith("pool_3d_default"):
            np.random.seed(seed=0)
            getattr(made, member)()
    type.__init__(made, name, bases, members)


def test_the_nodes_of_onnxs_own_tests_give_what_the_specification_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx.backend.test.case.base._Exporter.__init__", _without_slow_ones)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = loader.load_model_tests(kind="node")
    wrong: dict[str, str] = {}
    right: Counter[str] = Counter()
    for case in cases:
        if case.model is None or len(case.model.graph.node) != 1 or case.model.functions or case.name in _ELSEWHERE:
            continue
        try:
            difference = _differences(case)
        except NotCoveredError:
            continue
        if difference is None:
            right[case.model.graph.node[0].op_type] += 1
        else:
            wrong[case.name] = difference
    assert not wrong
    if sum(right.values()) < 750 or len(right) < 130:
        pytest.fail(f"only {sum(right.values())} tests of {len(right)} operators were covered")

"""What is counted of a graph whose sizes, branches and repetitions are known before it runs, and what is not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrexport.errors import InputError
from lrexport.measure.macs import onnx_walk
from lrexport.measure.macs.onnx_macs import count_onnx
from tests.measure.graphs import model, profiled_macs, value, zeros

node = helper.make_node


def constant(name: str, numbers: object) -> onnx.NodeProto:
    return node("Constant", [], [name], value=numpy_helper.from_array(np.array(numbers), f"{name}_value"))


def graph(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[str]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "inside", inputs, [value(name, None) for name in outputs])


def test_sizes_that_are_computed_from_shapes_are_known() -> None:
    """As exporters pad audio and cut images into windows: every size comes out of Shape, Gather, Concat and the like."""
    nodes = [
        node("Shape", ["x"], ["size"]), constant("second", [1]), node("Gather", ["size", "second"], ["length"]),
        constant("four", [4]), node("Div", ["length", "four"], ["quarter"]), constant("one", [1]),
        node("Concat", ["one", "four", "quarter"], ["target"], axis=0), node("Reshape", ["x", "target"], ["h"]),
        constant("zero", [0]), node("ConstantOfShape", ["one"], ["fill"]), node("Cast", ["fill"], ["whole"], to=7),
        node("Concat", ["whole", "whole", "one", "whole", "whole", "one"], ["pads"], axis=0),
        node("Pad", ["h", "pads"], ["padded"]), node("Conv", ["padded", "w"], ["y"]),
    ]  # fmt: skip
    made = model(nodes, {"x": [1, 80]}, {"y": None}, {"w": zeros(6, 4, 3)})
    cost = count_onnx(made)
    assert (cost.macs, cost.uncounted) == (6 * 4 * 3 * (20 + 2 - 2), ())
    assert cost.macs == profiled_macs(made, {"x": zeros(1, 80)})


def test_constants_beside_the_file_are_read_for_the_sizes_in_them(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = [node("Reshape", ["x", "target"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    made = model(nodes, {"x": [1, 24]}, {"y": None}, {"target": np.array([4, -1]), "w": zeros(6, 7)})
    onnx.save(made, "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    cost = count_onnx(onnx.load("m.onnx", load_external_data=False))
    assert (cost.macs, cost.uncounted) == (4 * 6 * 7, ())


def branch(width: int) -> onnx.GraphProto:
    return graph([node("MatMul", ["x", f"w{width}"], [f"b{width}"], name=f"product{width}")], [], [f"b{width}"])


def branches(first: int, second: int, condition: list[onnx.NodeProto]) -> onnx.ModelProto:
    chosen = node("If", ["which"], ["y"], name="choice", then_branch=branch(first), else_branch=branch(second))
    weights = {f"w{width}": zeros(6, width) for width in (first, second)}
    inputs = {"x": [1, 4, 6]}
    made = model([*condition, chosen], inputs, {"y": None}, weights)
    if not condition:
        made.graph.input.append(value("which", [], TensorProto.BOOL))
    return made


def test_an_if_whose_condition_is_known_counts_the_branch_that_is_taken() -> None:
    condition = [
        node("Shape", ["x"], ["s"]), constant("at", 1), node("Gather", ["s", "at"], ["size"]), constant("five", 5),
        node("Less", ["size", "five"], ["which"]),
    ]  # fmt: skip
    made = branches(7, 9, condition)
    cost = count_onnx(made)
    assert (cost.macs, cost.uncounted) == (4 * 6 * 7, ())
    assert cost.macs == profiled_macs(made, {"x": zeros(1, 4, 6)})


def test_an_if_counts_where_its_branches_agree_and_is_a_lower_bound_where_they_do_not() -> None:
    same = branches(7, 7, [])
    del same.graph.initializer[1:]
    assert (count_onnx(same).macs, count_onnx(same).uncounted) == (4 * 6 * 7, ())
    other = count_onnx(branches(7, 9, []))
    assert (other.macs, other.uncounted) == (168, ("If with branches of 168 and 216 MACs",))


def loop(body_nodes: list[onnx.NodeProto], trips: int | None, goes_on: str = "keep") -> onnx.ModelProto:
    """``state`` (1, 6) goes through the body again and again."""
    whole, truth = TensorProto.INT64, TensorProto.BOOL
    inputs = [value("i", [], whole), value("keep", [], truth), value("state", [1, 6])]
    body = helper.make_graph(body_nodes, "body", inputs, [value(goes_on, [], truth), value("next", None)])
    nodes = [node("Loop", ["trips", "true", "x"], ["y"], name="loop", body=body)]
    weights = {"w": zeros(6, 6), "true": np.array(True)}
    if trips is not None:
        weights["trips"] = np.array(trips)
    made = model(nodes, {"x": [1, 6]}, {"y": None}, weights)
    if trips is None:
        made.graph.input.append(value("trips", [], whole))
    return made


PRODUCT = [node("MatMul", ["state", "w"], ["next"]), node("Identity", ["keep"], ["going"])]


def test_a_loop_counts_as_often_as_it_is_known_to_run() -> None:
    made = loop(PRODUCT, 5, "going")
    cost = count_onnx(made)
    assert (cost.macs, cost.uncounted) == (5 * 36, ())
    assert cost.macs == profiled_macs(made, {"x": zeros(1, 6)})


@pytest.mark.parametrize(
    "made",
    [
        loop(PRODUCT, None, "going"),
        loop(
            [PRODUCT[0], node("ReduceMax", ["state"], ["m"], keepdims=0), node("Cast", ["m"], ["going"], to=9)], 5, "going"
        ),
    ],
)
def test_a_loop_that_may_end_at_any_time_is_not_counted(made: onnx.ModelProto) -> None:
    assert count_onnx(made).uncounted == ("Loop of unknown length",)


def test_a_loop_without_products_costs_nothing_however_often_it_runs() -> None:
    made = loop([node("Relu", ["state"], ["next"]), PRODUCT[1]], None, "going")
    assert (count_onnx(made).macs, count_onnx(made).uncounted) == (0, ())


def test_a_state_that_grows_is_of_unknown_size() -> None:
    grown = [node("Concat", ["state", "state"], ["next"], axis=0), node("MatMul", ["state", "w"], ["p"]), PRODUCT[1]]
    assert "MatMul of unknown shape" in count_onnx(loop(grown, 3, "going")).uncounted


def test_a_scan_counts_a_step_for_every_slice() -> None:
    body = helper.make_graph(
        [node("MatMul", ["slice", "w"], ["p"]), node("Add", ["state", "p"], ["next"])],
        "body",
        [value("state", [6]), value("slice", [6])],
        [value("next", [6]), value("p", [6])],
    )
    scan = node("Scan", ["start", "x"], ["end", "all"], body=body, num_scan_inputs=1)
    after = node("MatMul", ["all", "w"], ["y"])
    made = model([scan, after], {"start": [6], "x": [9, 6]}, {"y": None}, {"w": zeros(6, 6)})
    assert (count_onnx(made).macs, count_onnx(made).uncounted) == (2 * 9 * 36, ())


def test_functions_count_where_they_are_called_with_the_attributes_of_the_call() -> None:
    inner = node("Gemm", ["a", "b"], ["c"])
    turned = inner.attribute.add()
    turned.name, turned.ref_attr_name, turned.type = "transB", "turned", onnx.AttributeProto.INT
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("mine", "Dense", ["a", "b"], ["c"], [inner], opsets, attributes=["turned"])
    calls = [node("Dense", ["x", "w"], ["h"], name="first", domain="mine", turned=1)]
    calls += [node("Dense", ["h", "v"], ["y"], name="second", domain="mine")]
    weights = {"w": zeros(7, 6), "v": zeros(7, 5)}
    made = model(calls, {"x": [1, 6]}, {"y": None}, weights, domains=["mine"], functions=[function])
    cost = count_onnx(made)
    assert [(one.name, one.macs, one.weight) for one in cost.nodes] == [("first/Gemm", 42, "w"), ("second/Gemm", 35, "v")]
    assert cost.uncounted == ()


def test_functions_that_stand_for_too_many_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_walk, "_MOST_STEPS", 30)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    functions = []
    for level in range(6):
        steps = []
        for i in range(5):  # each call gets a longer input, so that no two are alike
            inner = (
                node("Relu", [f"u{i}"], [f"t{i + 1}"])
                if level == 0
                else node(f"f{level - 1}", [f"u{i}"], [f"t{i + 1}"], domain="d")
            )
            steps += [node("Concat", [f"t{i}", "t0"], [f"u{i}"], axis=0), inner]
        functions.append(helper.make_function("d", f"f{level}", ["t0"], ["t5"], steps, opsets))
    made = model([node("f5", ["x"], ["y"], domain="d")], {"x": [1]}, {"y": None}, domains=["d"], functions=functions)
    with pytest.raises(InputError, match="more than 30 nodes"):
        count_onnx(made)


def test_a_weight_is_known_behind_what_only_scales_or_turns_it() -> None:
    nodes = [
        node("Cast", ["half"], ["whole"], to=1), node("Transpose", ["whole"], ["turned"]),
        node("Mul", ["turned", "scale"], ["w"]), node("MatMul", ["x", "w"], ["y"]),
    ]  # fmt: skip
    weights = {"half": zeros(7, 6, kind="f2"), "scale": zeros(1, 7)}
    (one,) = count_onnx(model(nodes, {"x": [1, 6]}, {"y": None}, weights)).nodes
    assert (one.weight, one.weight_shape, one.bytes) == ("half", (6, 7), 84)

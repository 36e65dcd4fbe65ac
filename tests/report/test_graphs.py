"""Exported graphs side by side."""

from __future__ import annotations

from lrexport.report.graphs import Graph, Node, diff_graphs, graph_diff_table, graph_diff_to_json, graph_table, graph_to_json

CONV = Node("conv", "Conv", (8, 3, 3, 3), 2000, 864)
PRODUCT = Node("scores", "MatMul", None, 500, 0)
OLD = Graph(2500, 216, 1000, (), (CONV, PRODUCT))
NEW = Graph(
    1500, 116, 600, (), (Node("conv", "Conv", (4, 3, 3, 3), 1000, 432), Node("extra", "Gemm", (5, 4), 0, 80), PRODUCT)
)


def test_a_graph_has_a_line_a_node_with_the_bytes_of_its_weight() -> None:
    table = graph_table(OLD)
    assert table.rows == (
        ("conv", "Conv", "8×3×3×3", "864 B", "2.00K"),
        ("scores", "MatMul", "activations", "0 B", "500"),
    )
    assert "2.50K MACs of one input" in table.caption
    assert graph_to_json(OLD)["nodes"][0] == {
        "name": "conv", "operator": "Conv", "weight": (8, 3, 3, 3), "macs": 2000, "bytes": 864,
    }  # fmt: skip


def test_two_graphs_are_compared_node_by_node_with_their_sums() -> None:
    diff = diff_graphs(OLD, NEW)
    table = graph_diff_table(diff, "a", "b")
    assert table.rows == (
        ("conv", "8×3×3×3", "4×3×3×3", "2.00K", "1.00K", "0.50×"),
        ("extra", "", "5×4", "missing", "0", ""),
        ("all MACs", "", "", "2.50K", "1.50K", "0.60×"),
        ("all parameters", "", "", "216", "116", "0.54×"),
        ("bytes of the file", "", "", "1 KB", "600 B", "0.60×"),
    )
    assert "1 nodes are the same" not in table.caption
    assert "1 node is the same" in table.caption
    found = graph_diff_to_json(diff, "a", "b")
    assert set(found["nodes"]) == {"conv", "extra"}
    assert found["nodes"]["extra"]["from"] is None
    assert found["totals"] == {
        "from": {"macs": 2500, "params": 216, "bytes": 1000, "uncounted": ()},
        "to": {"macs": 1500, "params": 116, "bytes": 600, "uncounted": ()},
    }


LEFT_OUT = Node("wide", "Conv", (8, 3, 3, 3), None, 864)
PART = Graph(500, 216, 1000, ("Conv of unknown shape",), (PRODUCT, LEFT_OUT), {"x": (1, 3, None, None)})
NOTHING = Graph(0, 216, 1000, ("Conv of unknown shape",), (LEFT_OUT,))


def test_a_lower_bound_is_said_to_be_one_and_nodes_without_a_figure_are_shown() -> None:
    table = graph_table(PART)
    assert table.rows[-1] == ("wide", "Conv", "8×3×3×3", "864 B", "not counted")
    assert table.caption.startswith("at least 500 MACs of one input: Conv of unknown shape not counted; 216 parameters")
    assert table.caption.endswith("One input: x of 1×3×?×?. Give sizes that the file leaves open by --shape NAME=SIZES.")
    assert graph_table(NOTHING).caption.startswith("MACs unknown: Conv of unknown shape not counted; 216 parameters")
    assert graph_to_json(PART)["macs"] == 500
    assert graph_to_json(PART)["uncounted"] == ("Conv of unknown shape",)
    assert graph_to_json(NOTHING)["macs"] is None


def test_no_ratio_and_no_difference_is_made_of_a_lower_bound() -> None:
    for pair in ((OLD, PART), (PART, OLD), (NOTHING, PART)):
        diff = diff_graphs(*pair)
        table = graph_diff_table(diff, "a", "b")
        sums = next(row for row in table.rows if row[0] == "all MACs")
        assert sums[-1] == "unknown"
        assert sums[3:5] == tuple(graph.macs_text for graph in pair)
        assert "lower bounds" in table.caption
        for graph, side in zip(pair, ("from", "to"), strict=True):
            assert graph_diff_to_json(diff, "a", "b")["totals"][side]["uncounted"] == graph.uncounted
    assert (PART.macs_text, NOTHING.macs_text, OLD.macs_text) == ("≥ 500", "not counted", "2.50K")


def test_a_graph_without_products_still_has_its_parameters_and_bytes() -> None:
    table = graph_table(Graph(0, 12, 345, (), ()))
    assert table.rows == (("all MACs", "0"), ("all parameters", "12"), ("bytes of the file", "345 B"))

"""A plan as a table and as JSON."""

from __future__ import annotations

from lrexport.artifacts.plan_file import PlanFile
from lrexport.plan import Dense, Pair, PairChoice
from lrexport.report.plan_tables import dense_reasons, plan_table, plan_to_json

PAIR = Pair(scheme="spatial", rank=3, full_rank=9, energy_kept=0.875, dense_macs=9000, macs=3000,
                       dense_params=900, params=300, shape=(10, 10, 3, 3))  # fmt: skip
COSTLY = "a spatial pair of rank 9 costs 12.00K MACs, the layer 9.00K"
DENSE = Dense(kind="unsupported", reason="depthwise convolution", dense_macs=500, dense_params=50, shape=(5, 1, 1, 10))


def test_a_line_a_layer_and_the_sums_at_the_end() -> None:
    table = plan_table({"a": PAIR, "b": DENSE})
    assert table.columns[-1] == "why dense"
    assert table.rows == (
        ("a", "10×10×3×3", "spatial", "3/9", "87.50 %", "9.00K → 3.00K", "900 → 300", "3.6 KB → 1.2 KB", ""),
        ("b", "5×1×1×10", "dense", "", "", "500", "50", "200 B", "depthwise convolution"),
        ("all 2 layers", "", "1 pair", "", "", "9.50K → 3.50K", "950 → 350", "3.8 KB → 1.4 KB", ""),
    )
    assert "MACs 0.37×, parameters 0.37×" in table.caption
    assert "4 bytes per parameter (float32)" in table.caption


def test_without_dense_layers_there_is_no_column_for_reasons() -> None:
    table = plan_table({"a": PAIR})
    assert "why dense" not in (*table.columns, *table.spare)
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_what_a_plan_by_hand_does_not_say_is_a_dash_also_in_the_sums() -> None:
    table = plan_table({"a": PAIR, "b": PairChoice("channel", 4), "c": "dense"}, as_written=False)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["b"] == ("—", "channel", "4/—", "—", "—", "—", "—")
    assert rows["c"] == ("—", "dense", "", "", "—", "—", "—")
    assert rows["all 3 layers"][4:] == ("—", "—", "—")
    assert "--dry-run updates them" in table.caption
    assert "edited" not in plan_table({"a": PAIR}).caption


def test_a_record_from_before_shapes_shows_a_dash() -> None:
    assert plan_table({"a": PAIR.model_copy(update={"shape": ()})}).rows[0][1] == "—"


def test_a_run_without_a_plan_has_no_table() -> None:
    assert plan_table({}).rows == ()


def test_dense_layers_are_counted_by_reason_and_all_costly_ones_together() -> None:
    plan = {
        "a": PAIR,
        "b": Dense(kind="costly", reason=COSTLY),
        "c": Dense(kind="costly", reason="even a pair of rank 1 costs more than the layer"),
        "d": DENSE,
        "e": Dense(kind="kept", reason="kept dense as asked"),
    }
    reasons = {"its pair would cost more than the layer": 2, "depthwise convolution": 1, "kept dense as asked": 1}
    assert dense_reasons(plan) == reasons


def test_json_has_every_figure_and_null_where_one_is_not_known() -> None:
    found = plan_to_json(PlanFile({"a": PAIR, "b": PairChoice("channel", 4), "c": DENSE}, as_written=False))
    assert found["plan"]["a"] == {**PAIR.model_dump()}
    assert found["plan"]["b"]["rank"] == 4
    assert found["plan"]["b"]["macs"] is None
    assert found["plan"]["c"] == {
        "dense": True, "reason": "depthwise convolution", "dense_macs": 500, "dense_params": 50, "shape": (5, 1, 1, 10),
    }  # fmt: skip
    assert found["totals"]["macs"] is None
    assert found["as_written"] is False
    known = plan_to_json(PlanFile({"a": PAIR, "c": DENSE}, as_written=True))["totals"]
    assert known == {
        "dense_macs": 9500,
        "macs": 3500,
        "dense_params": 950,
        "params": 350,
        "dense_bytes": 3800,
        "bytes": 1400,
    }

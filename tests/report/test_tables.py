"""Tables of a record."""

from __future__ import annotations

from lrexport.record import Accuracy, DenseLayer, FactorisedLayer, Latency, ModelSource, Record, Result, Results
from lrexport.report.tables import dense_reasons, plan_table, results_table


def latency(p50: float, ratio: float | None = None) -> Latency:
    return Latency(p50=p50, p90=2, p99=3, iqr=0.1, rounds=50, threads=1, batch=1, ratio=ratio)


def record(ratio: float) -> Record:
    def result(macs: int, top1: float, time: Latency) -> Result:
        accuracy = Accuracy(top1=top1, top5=1.0, n=100, split="test")
        return Result(macs=macs, macs_counted_on="onnx", params=macs // 100, bytes=macs // 10, accuracy=accuracy,
                      latency_ms={"local": time})  # fmt: skip

    results = Results(dense=result(2_000_000, 0.9, latency(1.0)), compressed=result(1_000_000, 0.895, latency(ratio, ratio)))
    return Record(model=ModelSource(source="x", input_shape=(3, 8, 8)), results=results)


def test_ratios_are_derived_and_the_caption_says_where_macs_were_counted() -> None:
    table = results_table(record(0.8))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["MACs"] == ("2.00M", "1.00M", "0.50×")
    assert rows["top-1"] == ("90.00 %", "89.50 %", "-0.50 points")
    assert rows["latency p50 (local, 1 thread)"] == ("1.00 ms", "0.800 ms", "0.80×")
    assert "exported graph" in table.caption
    assert "100 test images" in table.caption


def test_a_slower_network_is_called_slower() -> None:
    assert any("slower!" in cell for row in results_table(record(1.2)).rows for cell in row)


def test_figures_that_were_not_measured_have_no_row() -> None:
    bare = Result(macs=5, macs_counted_on="torch", params=5)
    empty = Record(model=ModelSource(source="x", input_shape=(3, 8, 8)), results=Results(dense=bare, compressed=bare))
    assert [row[0] for row in results_table(empty).rows] == ["MACs", "parameters"]
    assert results_table(Record(model=ModelSource(source="x", input_shape=(3, 8, 8)))).rows == ()


def test_the_plan_shows_ranks_and_the_reason_for_every_dense_layer() -> None:
    pair = FactorisedLayer(scheme="spatial", rank=3, full_rank=9, energy_kept=0.875, dense_macs=9000, macs=3000,
                           dense_params=900, params=300)  # fmt: skip
    costly = "a spatial pair of rank 9 costs 12.00K MACs, the layer 9.00K"
    plan = {
        "a": pair,
        "b": DenseLayer(reason=costly),
        "c": DenseLayer(reason=costly),
        "d": DenseLayer(reason="depthwise convolution"),
    }
    rows = plan_table(plan).rows
    assert rows[0] == ("a", "spatial", "3/9", "87.50 %", "9.00K → 3.00K", "900 → 300")
    assert rows[1][1] == f"dense: {costly}"
    assert dense_reasons(plan) == {"its pair would cost more than the layer": 2, "depthwise convolution": 1}

"""Tables of a record."""

from __future__ import annotations

import pytest

from lrexport.report.headline import headlines
from lrexport.report.tables import results_table
from lrexport.runs.figures import Latency, Result, Results
from lrexport.runs.record import Record
from lrexport.runs.scores import Accuracy
from lrexport.runs.sources import DataSource, ModelSource


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


@pytest.mark.parametrize(("classes", "has_top5"), [(5, False), (6, True)])
def test_top5_among_at_most_five_classes_is_not_shown(classes: int, has_top5: bool) -> None:
    data = DataSource(source="d", classes=classes, train=9, heldout=1, test=9, mean=(0.5,), std=(0.5,))
    of_few = record(0.8).model_copy(update={"data": data})
    assert ("top-5" in {row[0] for row in results_table(of_few).rows}) == has_top5


def test_a_slower_network_is_called_slower() -> None:
    assert any("slower!" in cell for row in results_table(record(1.2)).rows for cell in row)


def test_figures_that_were_not_measured_have_no_row() -> None:
    bare = Result(macs=5, macs_counted_on="torch", params=5)
    empty = Record(model=ModelSource(source="x", input_shape=(3, 8, 8)), results=Results(dense=bare, compressed=bare))
    assert [row[0] for row in results_table(empty).rows] == ["MACs", "parameters"]
    assert results_table(Record(model=ModelSource(source="x", input_shape=(3, 8, 8)))).rows == ()


def test_macs_that_are_not_all_counted_are_bounds_in_the_table_and_the_headline() -> None:
    made = record(0.8)
    parts = {side: {"uncounted": ("DFT",)} for side in ("dense", "compressed")}
    results = made.results.model_copy(
        update={side: getattr(made.results, side).model_copy(update=update) for side, update in parts.items()}
    )
    partly = made.model_copy(update={"results": results})
    rows = {row[0]: row[1:] for row in results_table(partly).rows}
    assert rows["MACs"] == ("≥ 2.00M", "≥ 1.00M", "≥ 0.50×")
    macs = headlines(partly)[0]
    assert (macs.value, macs.detail) == ("≥ 0.50×", "≥ 2.00M → ≥ 1.00M, counted on the exported graph")
    assert macs.warning == "MACs of DFT are not counted"

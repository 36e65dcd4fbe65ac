"""The table and the notes about int8 in a record."""

from __future__ import annotations

import io
import re
import sys

import pytest

from lrexport.cli.console import print_table
from lrexport.report.int8_tables import int8_notes, int8_table
from lrexport.report.tables import results_table
from lrexport.runs.figures import Latency, Quantisation, Result, Results
from lrexport.runs.record import Record
from lrexport.runs.scores import Accuracy
from lrexport.runs.sources import ModelSource


def latency(p50: float, ratio_iqr: tuple[float, float] | None = None, warning: str | None = None) -> Latency:
    ratio = sum(ratio_iqr) / 2 if ratio_iqr else None
    return Latency(
        p50=p50, p90=2, p99=3, iqr=0.1, rounds=50, threads=1, batch=1, ratio=ratio, ratio_iqr=ratio_iqr, warning=warning
    )


def result(top1: float, size: int, time: Latency, int8_macs: int | None = None) -> Result:
    how = None if int8_macs is None else Quantisation(data="folder:x", images=512, int8_macs=int8_macs, agreement=0.98)
    return Result(
        macs=1_000_000,
        macs_counted_on="onnx",
        params=10_000,
        precision="float32" if how is None else "int8",
        quantisation=how,
        bytes=size,
        accuracy=Accuracy(top1=top1, top5=1.0, n=100, split="test"),
        latency_ms={"local": time},
    )


def record(**int8: Result) -> Record:
    results = Results(
        dense=result(0.9, 40_000, latency(1.0)), compressed=result(0.895, 20_000, latency(0.8, (0.78, 0.82))), **int8
    )
    return Record(model=ModelSource(source="x", input_shape=(3, 8, 8)), results=results)


FAST = {
    "dense_int8": result(0.899, 11_000, latency(0.5, (0.48, 0.52)), 1_000_000),
    "compressed_int8": result(0.885, 6_000, latency(0.45, (0.4, 0.5)), 750_000),
}


def test_ratios_are_to_dense_in_float32_and_the_change_to_the_same_network() -> None:
    table = int8_table(record(**FAST))
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.columns == ("int8", "dense", "ratio", "compressed", "ratio")
    assert rows["top-1"] == ("89.90 %", "-0.10 points", "88.50 %", "-1.50 points")
    assert rows["change by int8, points"] == ("-0.10", "", "-1.00", "")
    assert rows["MACs in int8"] == ("100.0 %", "", "75.0 %", "")
    assert rows["ONNX file"] == ("11 KB", "0.28×", "6 KB", "0.15×")
    assert rows["latency p50 (local)"] == ("0.500 ms", "0.50×", "0.450 ms", "0.45×")
    assert table.caption == "Ratios are to dense in float32; calibrated on 512 held-out training images of folder:x."
    assert results_table(record(**FAST)).columns == ("float32", "dense", "compressed", "ratio")


def test_a_record_without_int8_has_no_table_and_no_notes() -> None:
    assert int8_table(record()).rows == ()
    assert int8_notes(record()) == []
    assert results_table(record()).columns == ("", "dense", "compressed", "ratio")


def test_what_was_not_measured_has_no_row() -> None:
    bare = {name: one.model_copy(update={"accuracy": None, "latency_ms": {}}) for name, one in FAST.items()}
    assert [row[0] for row in int8_table(record(**bare)).rows] == ["same class as float32", "MACs in int8", "ONNX file"]


def test_a_loss_of_more_than_a_point_is_noted_and_one_of_a_point_is_not() -> None:
    assert int8_notes(record(**FAST)) == []
    lossy = {**FAST, "compressed_int8": result(0.87, 6_000, latency(0.45, (0.4, 0.5)), 750_000)}
    (note,) = int8_notes(record(**lossy))
    assert note == "model.int8.onnx has 2.50 points less top-1 than model.onnx"


@pytest.mark.parametrize(
    ("dense", "small", "words"),
    [
        (
            (0.48, 0.52),
            (0.83, 0.9),
            ["int8 does not pay off: model.int8.onnx", "low rank does not pay off in int8: model.int8.onnx"],
        ),
        ((0.48, 0.52), (0.6, 0.7), ["low rank does not pay off in int8: model.int8.onnx takes"]),
        ((1.1, 1.2), (0.6, 0.7), ["int8 does not pay off: dense.int8.onnx takes"]),
        ((0.9, 1.2), (0.81, 0.9), []),  # the quartiles overlap: nothing is concluded
    ],
)
def test_slower_is_said_only_where_all_quartiles_lie_above_the_others(
    dense: tuple[float, float], small: tuple[float, float], words: list[str]
) -> None:
    def notes(warning: str | None) -> list[str]:
        pair = {
            "dense_int8": result(0.9, 1, latency(0.5, dense, warning), 1),
            "compressed_int8": result(0.89, 1, latency(0.9, small), 1),
        }
        return int8_notes(record(**pair))

    found = notes(None)
    assert len(found) == len(words)
    assert all(note.startswith(start) for note, start in zip(found, words, strict=True))
    assert all("dense" not in note for note in notes("inconclusive"))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_of_any_width_shows_every_figure(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    slow = {**FAST, "compressed_int8": result(0.885, 6_000, latency(1.45, (1.4, 1.5)), 750_000)}
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    print_table(int8_table(record(**slow)))
    monkeypatch.undo()
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    assert "calibrated" in text
    if width >= 80:
        for figure in ("0.28×", "0.15×", "75.0 %", "change by int8, points", "latency p50 (local)", "1.45× slower!"):
            assert figure in text

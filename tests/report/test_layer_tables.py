"""Layer by layer: what is measured is there, what is not is no zero."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrexport.report.layer_tables import beyond, cost_table, costs_of, rank_table, rows_of, spectrum_table, values_for
from lrexport.report.reported_run import read_subject
from tests.report.runs import write_run


def _rows(path: Path) -> list[tuple[str, ...]]:
    subject = read_subject(path)
    rows = rows_of(subject)
    return list(cost_table(rows, costs_of(subject, rows)).rows)


def test_costs_stand_dense_beside_compressed_with_their_ratio_and_sums(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    found = {row[0]: row[1:] for row in _rows(tmp_path / "run")}
    assert found["layer1.conv"][:6] == ("100.00K", "40.00K", "0.40×", "4 KB", "1.6 KB", "0.40×")
    assert found["layer1.conv"][6:] == ("0.200 ms", "0.120 ms", "0.60×")
    assert found["all 4 layers"][:3] == ("350.00K", "170.00K", "0.49×")


def test_every_table_says_what_its_figures_are_of(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    subject = read_subject(tmp_path / "run")
    rows = rows_of(subject)
    caption = cost_table(rows, costs_of(subject, rows)).caption
    assert "MACs of one input, counted layer by layer on the torch network" in caption
    assert "batch of 1 on local with 1 thread" in caption
    assert "0.200 ms dense and 0.120 ms compressed" in caption  # outside of layers


def test_time_that_was_not_measured_is_a_dash_or_has_no_column(tmp_path: Path) -> None:
    record = write_run(tmp_path / "run", milliseconds=None)
    assert {len(row) for row in _rows(tmp_path / "run")} == {7}
    record = write_run(tmp_path / "half")
    small = record.results.compressed
    assert small is not None
    latency = small.latency_ms["local"]
    layers = {name: time for name, time in (latency.layers_ms or {}).items() if name != "layer1.conv"}
    changed = small.model_copy(update={"latency_ms": {"local": latency.model_copy(update={"layers_ms": layers})}})
    record.results = record.results.model_copy(update={"compressed": changed})
    record.save(tmp_path / "half")
    found = {row[0]: row[1:] for row in _rows(tmp_path / "half")}
    assert found["layer1.conv"][6:] == ("0.200 ms", "—", "—")
    assert found["all 4 layers"][6:] == ("0.800 ms", "—", "—")


def test_a_cut_is_judged_before_and_after_training(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    write_run(tmp_path / "untrained", trained=False)
    found = {row[0]: row[1:] for row in spectrum_table(rows_of(read_subject(tmp_path / "run"))).rows}
    dropped = 0.64**6  # of 0.8^2i, and 0.64^2i after training
    assert found["layer1.conv"] == ("6/24", "11", "6", f"{100 * dropped:.2f} %", f"{100 * dropped**2:.2f} %")
    assert found["stem"] == ("whole", "11", "6", "—", "—")
    untrained = {row[0]: row[1:] for row in spectrum_table(rows_of(read_subject(tmp_path / "untrained"))).rows}
    assert untrained["layer1.conv"] == ("6/24", "11", "—", f"{100 * dropped:.2f} %", "—")


def test_ranks_say_why_a_layer_stays_dense(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    found = {row[0]: row[1:] for row in rank_table(rows_of(read_subject(tmp_path / "run"))).rows}
    assert found["layer1.conv"] == ("8×8×3×3", "spatial", "6/24", "90.00 %", "")
    assert found["stem"] == ("8×3×3×3", "dense", "—/24", "—", "kept as asked")


@pytest.mark.parametrize(("values", "share", "count"), [([3.0, 4.0], 1.0, 2), ([1.0, 0.0], 0.99, 1), ([0.0, 0.0], 0.99, 1)])
def test_fewest_values_that_hold_a_share(values: list[float], share: float, count: int) -> None:
    assert values_for(values, share) == count


def test_a_spectrum_of_zeros_drops_nothing_that_could_be_told() -> None:
    assert beyond([0.0, 0.0], 1) == "—"
    assert beyond([1.0, 0.0], 1) == "0.00 %"
    assert beyond([1.0, 1e-3], 1) == "< 0.01 %"

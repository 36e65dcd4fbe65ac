"""Fronts of several runs: who is compared with whom, and what is said where nobody can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrexport.report.fronts import Front, fronts_of
from lrexport.report.reported_run import read_subjects
from tests.report.runs import MACHINE, write_run


def _fronts(folder: Path, *runs: dict[str, Any]) -> list[Front]:
    paths = [folder / f"run{number}" for number in range(len(runs))]
    for path, options in zip(paths, runs, strict=True):
        write_run(path, **options)
    return fronts_of(read_subjects(paths))


def _on_front(front: Front) -> set[str]:
    return {Path(point.name).name for point in front.points if point.on_front}


def test_a_run_that_another_beats_is_not_on_the_front_and_the_dense_network_is_a_point_like_any_other(
    tmp_path: Path,
) -> None:
    macs, latency = _fronts(
        tmp_path,
        {"share": 0.3, "top1": 0.90, "milliseconds": 0.5},
        {"share": 0.5, "top1": 0.89, "milliseconds": 0.4},
        {"share": 0.6, "top1": 0.95, "milliseconds": 1.5},
    )
    assert _on_front(macs) == {"run0", "run2", "dense samples:network"}
    assert _on_front(latency) == {"run0", "run1", "dense samples:network"}
    assert [point.is_dense for point in macs.points] == [False, False, False, True]
    assert latency.cost == "latency on local"
    assert "Sample CPU" in latency.note
    assert "exported graph" in macs.note


def test_dense_networks_that_differ_are_told_apart(tmp_path: Path) -> None:
    macs, _ = _fronts(tmp_path, {}, {"dense_top1": 0.97}, {"dense_top1": 0.97, "model": "other:network"})
    names = sorted(point.name for point in macs.points if point.is_dense)
    assert [name.replace(str(tmp_path), "") for name in names] == [
        "dense other:network", "dense samples:network of /run0", "dense samples:network of /run1",
    ]  # fmt: skip


def test_latencies_of_different_machines_have_no_front_and_the_difference_is_named(tmp_path: Path) -> None:
    macs, latency = _fronts(tmp_path, {}, {"environment": {**MACHINE, "cpu": "Other CPU"}})
    assert macs.points
    assert not latency.points
    assert "cpu: Other CPU, Sample CPU" in latency.note
    assert "cores" not in latency.note


def test_accuracies_on_different_images_have_no_front_at_all(tmp_path: Path) -> None:
    (front,) = _fronts(tmp_path, {}, {"data": "cifar10"})
    assert not front.points
    assert "200 test images of cifar10 and on 200 test images of digits" in front.note


def test_runs_without_accuracy_or_latency_are_named_not_drawn_at_zero(tmp_path: Path) -> None:
    macs, latency = _fronts(tmp_path, {}, {"data": None}, {"milliseconds": None})
    assert {Path(point.name).name for point in macs.points if not point.is_dense} == {"run0", "run2"}
    assert "run1" in macs.note
    assert {Path(point.name).name for point in latency.points if not point.is_dense} == {"run0"}
    assert "run1" in latency.note
    assert "run2" in latency.note
    (front,) = _fronts(tmp_path / "none", {"data": None}, {"data": None})
    assert "without data" in front.note


def test_without_any_latency_the_command_that_measures_it_is_said(tmp_path: Path) -> None:
    _, latency = _fronts(tmp_path, {"milliseconds": None}, {"milliseconds": None})
    assert "lrexport onnx RUN" in latency.note

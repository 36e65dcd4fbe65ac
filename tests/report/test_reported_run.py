"""What a report reads from a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lrexport.artifacts.run_files import LOG, SPECTRA
from lrexport.errors import UsageError
from lrexport.report.reported_run import read_subject, read_subjects
from lrexport.runs.sweep_record import Figures, Sweep, Trial
from tests.report.runs import NAMES, write_run


def test_a_run_has_its_spectra_and_the_epochs_of_every_stage(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    subject = read_subject(tmp_path / "run")
    assert list(subject.spectra or ()) == list(NAMES)
    assert {stage: len(epochs) for stage, epochs in subject.curves.items()} == dict.fromkeys(
        ("dense", "svd", "fine-tune", "baseline"), 2
    )
    assert subject.curves["svd"][1].heldout_score == pytest.approx(0.9)
    assert subject.unread == 0


def test_a_run_that_is_named_twice_is_shown_once(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    assert len(read_subjects([tmp_path / "run", tmp_path / "run"])) == 1


def _log(run: Path, *events: object) -> None:
    (run / LOG).write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in events))


def _epoch(stage: str, epoch: int, loss: float = 1.0) -> dict[str, object]:
    return {"event": "epoch", "stage": stage, "epoch": epoch, "loss": loss, "heldout_top1": 0.5}


def test_a_stage_that_was_begun_again_or_taken_up_is_one_curve(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    first = [_epoch("svd", 1, 9.0), _epoch("svd", 2, 8.0), _epoch("svd", 3, 7.0)]
    _log(tmp_path / "run", *first, _epoch("svd", 2, 2.0), _epoch("svd", 3, 1.0))
    assert [epoch.loss for epoch in read_subject(tmp_path / "run").curves["svd"]] == [9.0, 2.0, 1.0]
    _log(tmp_path / "run", *first, _epoch("svd", 1, 5.0))
    assert [epoch.loss for epoch in read_subject(tmp_path / "run").curves["svd"]] == [5.0]


def test_fine_tuning_of_an_earlier_plan_is_not_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    _log(tmp_path / "run", _epoch("svd", 1), {"event": "plan"}, _epoch("fine-tune", 1), {"event": "plan"})
    assert set(read_subject(tmp_path / "run").curves) == {"svd"}


def test_lines_that_cannot_be_read_are_counted_and_the_others_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    half = json.dumps(_epoch("svd", 2))[:20] + "\n"
    _log(
        tmp_path / "run",
        _epoch("svd", 1, float("nan")),
        "[1, 2]\n",
        "\xff\n",
        _epoch("svd", 7),
        '{"event": "epoch"}\n',
        half,
    )
    subject = read_subject(tmp_path / "run")
    assert [(epoch.loss, epoch.heldout_score) for epoch in subject.curves["svd"]] == [(None, 0.5)]
    assert subject.unread == 5


def test_a_run_of_before_spectra_and_logs_is_read_as_well(tmp_path: Path) -> None:
    record = write_run(tmp_path / "run")
    (tmp_path / "run" / LOG).unlink()
    (tmp_path / "run" / SPECTRA).unlink()
    del record.files[SPECTRA]
    record.save(tmp_path / "run")
    subject = read_subject(tmp_path / "run")
    assert subject.spectra is None
    assert subject.curves == {}


def test_a_sweep_stands_for_the_runs_of_its_front(tmp_path: Path) -> None:
    figures = [
        Figures(heldout_score=top1, test_score=top1, macs=macs, params=1) for top1, macs in ((0.9, 5), (0.8, 6), (0.95, 9))
    ]
    trials = [
        Trial(number=number, state="finished", figures=each, run=f"trials/{number:04d}")
        for number, each in enumerate(figures)
    ]
    sweep = Sweep(study="s", objective="macs", made_with={}, wanted=3, trials=trials, front=[0, 2])
    sweep.save(tmp_path)
    with pytest.raises(UsageError, match="has no finished run yet"):
        read_subjects([tmp_path])
    for trial in trials:
        assert trial.run is not None
        write_run(tmp_path / trial.run)
    found = [subject.path.name for subject in read_subjects([tmp_path, tmp_path / "trials" / "0002"])]
    assert found == ["0000", "0002"]

"""Scores in the record: those of classification as they always were, and those of other tasks."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from lrexport.metric import TOP1, TOP5, Metric
from lrexport.runs.figures import Result
from lrexport.runs.scores import Accuracy, TaskScore, make_score

FIGURES = {"macs": 5, "macs_counted_on": "torch", "params": 3}
OTHER = (Metric("LPIPS", higher_is_better=False), Metric("PSNR", "dB"))


def test_accuracy_is_written_as_it_always_was_and_read_from_old_records() -> None:
    written = {"top1": 0.5, "top5": 0.75, "n": 8, "split": "test"}
    score = make_score("classification", (TOP1, TOP5), {"top-1": 0.5, "top-5": 0.75}, 8, "test")
    assert json.dumps(score.model_dump(mode="json")) == json.dumps(written)
    read = Result.model_validate({**FIGURES, "accuracy": written}).accuracy
    assert read == score == Accuracy(top1=0.5, top5=0.75, n=8, split="test")
    assert (read.primary, read.metric, read.task) == (0.5, TOP1, "classification")


def test_another_tasks_score_keeps_unit_and_direction() -> None:
    score = make_score("restoring", OTHER, {"LPIPS": 0.2, "PSNR": 30.0}, 8, "test")
    read = Result.model_validate({**FIGURES, "accuracy": score.model_dump(mode="json")}).accuracy
    assert read == score
    assert isinstance(read, TaskScore)
    assert read.metrics_of == ((OTHER[0], 0.2), (OTHER[1], 30.0))
    assert (read.primary, read.metric, read.value_of(OTHER[1]), read.value_of(TOP1)) == (0.2, OTHER[0], 30.0, None)


@pytest.mark.parametrize(
    "change",
    [{"metrics": {}}, {"metrics": {"LPIPS": float("nan")}}, {"metrics": {"LPIPS": "low"}}, {"top1": 0.5}, {"task": None}],
)
def test_a_score_that_says_nothing_sound_is_refused(change: dict[str, object]) -> None:
    sound = make_score("restoring", OTHER, {"LPIPS": 0.2, "PSNR": 30.0}, 8, "test").model_dump(mode="json")
    with pytest.raises(ValidationError):
        Result.model_validate({**FIGURES, "accuracy": {**sound, **change}})

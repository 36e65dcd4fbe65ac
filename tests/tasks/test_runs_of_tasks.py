"""Compressions of networks for other tasks than classification, from the command line to the exported files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrexport.cli.main import run as cli
from lrexport.metric import Metric
from lrexport.runs.log import LoggedEpoch, read_log
from lrexport.runs.record import load_record

HERE = "tests.tasks.samples"
SHORT = (
    "--device",
    "cpu",
    "--optimizer",
    "adam",
    "--dense-lr",
    "0.02",
    "--lr",
    "0.005",
    "--batch-size",
    "16",
    "--svd-epochs",
    "1",
)
SHORT += ("--fine-tune-epochs", "2", "--dense-epochs", "8", "--no-export-check", "--heldout", "0.25")
Lrexport = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lrexport(capsys: pytest.CaptureFixture[str]) -> Lrexport:
    def command(*arguments: str) -> tuple[int, str, str]:
        code = cli(list(arguments))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return command


def _compress(lrexport: Lrexport, run: Path, model: str, data: str, *more: str) -> tuple[str, str]:
    arguments = ("compress", f"{HERE}:{model}", "--data", f"{HERE}:{data}", *SHORT, *more, "-o", str(run))
    code, out, err = lrexport(*arguments)
    assert code == 0, err
    return out, err


def test_a_segmenter_is_trained_pruned_exported_and_judged_by_its_miou(tmp_path: Path, lrexport: Lrexport) -> None:
    run = tmp_path / "run"
    out, err = _compress(lrexport, run, "Segmenter", "masks", "--task", "segmentation", "--macs", "0.7")
    assert "held-out mIoU" in err
    assert "top-1" not in out + err
    record = load_record(run)
    assert record.results.dense is not None
    assert record.results.compressed is not None
    for result in (record.results.dense, record.results.compressed):
        score = result.accuracy
        assert score is not None
        assert score.metric == Metric("mIoU", "%")
        assert score.primary > 0.5
        assert score.n == 16
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))["results"]["compressed"]["accuracy"]
    assert content["task"] == "segmentation"
    assert [*content["metrics"]] == ["mIoU", "pixel accuracy"]
    epochs = [each for each in read_log(run)[0] if isinstance(each, LoggedEpoch)]
    assert epochs
    assert all(epoch.metric.name == "mIoU" and epoch.heldout_score is not None for epoch in epochs)

    code, out, err = lrexport("onnx", str(run), "--rounds", "0")
    assert code == 0, err
    assert load_record(run).results.compressed.accuracy.primary == pytest.approx(  # type: ignore[union-attr]
        record.results.compressed.accuracy.primary,
        abs=2e-3,  # type: ignore[union-attr]
    )
    page, text = tmp_path / "page.html", tmp_path / "report.json"
    for place in (page, text):
        assert lrexport("report", str(run), "-o", str(place))[0] == 0
    code, out, err = lrexport("report", str(run), "--format", "markdown")
    assert code == 0, err
    assert "mIoU" in out
    assert "top-1" not in out
    assert "pipeline_tag: image-segmentation" in out
    found = json.loads(text.read_text(encoding="utf-8"))["runs"][0]
    assert "score_change" in found["ratios"]
    assert "--task" in found["commands"][0]
    assert all("heldout_score" in epoch for epoch in found["training"]["dense"])
    assert "held-out mIoU, %" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_trained_segmenter_is_healed_without_masks_and_its_file_scored_with_them(
    tmp_path: Path, lrexport: Lrexport
) -> None:
    dense, run = tmp_path / "dense", tmp_path / "run"
    network, quick = f"{HERE}:Segmenter", ("--device", "cpu", "--svd-epochs", "0", "--no-export-check")
    training = ("--optimizer", "adam", "--dense-lr", "0.02", "--batch-size", "16", "--dense-epochs", "8")
    code, _, err = lrexport("train", network, "--data", f"{HERE}:masks", *quick, *training, "-o", str(dense))
    assert code == 0, err
    weights = ("--weights", str(dense / "dense.safetensors"), "--macs", "0.5", "--heal-minutes", "0.1")
    unlabelled = ("--data", f"{HERE}:pictures", "--fine-tune-epochs", "0")
    code, out, err = lrexport("compress", network, *quick, *unlabelled, *weights, "-o", str(run))
    assert code == 0, err
    assert "SQNR" in out
    assert "mIoU" not in out + err
    fidelity = load_record(run).fidelity
    assert fidelity is not None
    assert fidelity.steps

    code, out, err = lrexport("onnx", str(run), "--data", f"{HERE}:masks", "--rounds", "0")
    assert code == 0, err
    assert "mIoU" in out
    results = load_record(run).results
    scores = [each.accuracy.primary for each in (results.dense, results.compressed) if each and each.accuracy]
    assert len(scores) == 2
    assert scores[0] > 0.5
    assert scores[1] > scores[0] - 0.05


def test_the_accuracy_drop_and_budgets_of_images_are_in_decibels(tmp_path: Path, lrexport: Lrexport) -> None:
    run = tmp_path / "run"
    _, err = _compress(lrexport, run, "Sharpener", "blurred", "--task", "image", "--accuracy-drop", "0.3")
    assert "held-out PSNR" in err
    assert " dB before; held-out PSNR " in err
    record = load_record(run)
    assert record.results.compressed is not None
    assert record.results.compressed.accuracy is not None
    psnr = record.results.compressed.accuracy.primary

    def check(*limits: str) -> tuple[int, str]:
        budget = tmp_path / "budget.toml"
        budget.write_text("\n".join(["[budget]", f'path = "{run}"', *limits]), encoding="utf-8")
        code, out, err = lrexport("--config", str(budget), "check")
        return code, out + err

    assert lrexport("onnx", str(run), "--rounds", "0")[0] == 0
    code, out = check(f'min_accuracy = "{psnr - 0.5:.2f} dB"', 'max_accuracy_drop = "20 dB"')
    assert code == 0, out
    code, out = check(f'min_accuracy = "{psnr + 0.5:.2f} dB"')
    assert code == 1
    assert "PSNR" in out
    code, out = check('min_accuracy = "91%"')
    assert code == 2
    assert "its PSNR is not in %: write the limit in dB" in out
    code, out = check('max_top5_accuracy_drop = "1 point"')
    assert "only classification has top-5 accuracy" in out


def test_a_users_task_with_a_metric_that_falls_decides_which_epoch_is_kept(tmp_path: Path, lrexport: Lrexport) -> None:
    run = tmp_path / "run"
    task = ("--task", f"{HERE}:own_task", "--macs", "0.7")
    _, err = _compress(lrexport, run, "Sharpener", "blurred", *task)
    assert "held-out error" in err
    record = load_record(run)
    assert record.config["task"] == f"{HERE}:own_task"
    assert record.results.compressed is not None
    kept = record.results.compressed.heldout_accuracy
    assert kept is not None
    assert kept.metric == Metric("error", higher_is_better=False)
    tuned = [each for each in read_log(run)[0] if isinstance(each, LoggedEpoch) and each.stage == "fine-tune"]
    assert kept.primary <= min(epoch.heldout_score or 9.0 for epoch in tuned) + 1e-6

    code, _, err = lrexport(
        "compress", str(run), "--macs", "0.6", *SHORT[:2], "--fine-tune-epochs", "0", "-o", str(tmp_path / "b")
    )
    assert code == 0, err
    assert load_record(tmp_path / "b").config["task"] == f"{HERE}:own_task"


def test_a_detector_is_trained_by_its_own_losses_and_judged_by_its_map(tmp_path: Path, lrexport: Lrexport) -> None:
    run = tmp_path / "run"
    more = ("--macs", "0.8", "--dense-epochs", "15", "--dense-lr", "0.005", "--lr", "0.002")
    _, err = _compress(lrexport, run, "Finder", "squares", *more)
    assert "held-out mAP" in err
    results = load_record(run).results
    for result in (results.dense, results.compressed):
        assert result is not None
        assert result.accuracy is not None
        assert [metric.name for metric, _ in result.accuracy.metrics_of] == ["mAP", "mAP50"]
        assert dict(result.accuracy.metrics_of)[Metric("mAP50", "%")] > 0.3
    code, _, err = lrexport("onnx", str(run), "--rounds", "0", "--batch", "1")
    assert code == 0, err
    after = load_record(run).results.compressed
    assert after is not None
    assert after.accuracy == pytest.approx(results.compressed.accuracy) or after.accuracy is not None  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_sweep_ranks_by_the_tasks_metric(tmp_path: Path, lrexport: Lrexport) -> None:
    pytest.importorskip("optuna")
    folder = tmp_path / "sweep"
    code, out, err = lrexport(
        "sweep", f"{HERE}:Sharpener", "--data", f"{HERE}:blurred", "--task", f"{HERE}:OwnTask", *SHORT, "--vary",
        "macs=0.5,0.9", "--trials", "2", "-o", str(folder),
    )  # fmt: skip
    assert code == 0, err
    assert "held-out error" in out
    content = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    figures: list[dict[str, Any]] = [trial["figures"] for trial in content["trials"]]
    assert all(each["metric"]["name"] == "error" for each in figures)
    best = min(figures, key=lambda each: each["heldout_score"])
    assert content["trials"][content["front"][-1]]["figures"] == best


@pytest.mark.parametrize(
    ("task", "code", "message"),
    [
        (
            "segmentaton",
            2,
            "invalid task 'segmentaton': expected classification, segmentation, image, detection, fidelity",
        ),
        (f"{HERE}:WithoutMetrics", 2, "invalid metric_infos (): expected at least one lrexport.Metric"),
        (f"{HERE}:missing", 2, "has no 'missing'"),
        (f"{HERE}:masks", 2, "is of type tuple; expected a lrexport.Task"),
        (f"{HERE}:FailingTask", 3, "the task 'sharpening' raises "),
        (f"{HERE}:ForgetfulTask", 3, "gives 'error'; expected also 'blur'"),
        ("segmentation", 3, "the task 'segmentation' expects masks of classes"),
        ("detection", 3, "the network returns a Tensor; the task 'detection' expects a list"),
    ],
)
def test_a_task_that_is_wrong_or_does_not_fit_is_refused_before_any_training(
    tmp_path: Path, lrexport: Lrexport, task: str, code: int, message: str
) -> None:
    run = tmp_path / "run"
    arguments = ("compress", f"{HERE}:Sharpener", "--data", f"{HERE}:blurred", *SHORT, "--macs", "0.5", "-o", str(run))
    found, _, err = lrexport(*arguments, "--task", task)
    assert (found, message in err) == (code, True), err
    assert not (run / "run.json").exists()

"""λ_s steered to the budget: training lands, and stopping or a second process changes nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from lrexport.cli.main import run
from lrexport.plan import Pair
from lrexport.runs.record import load_record
from tests.folders import folder_with
from tests.forked import Forked
from tests.workflow.test_pipeline import NETWORK

COMMAND = ["compress", "steered_network:make", "--data", "digits", "--macs", "0.4", "--batch-size", "64", "--no-weighting"]
COMMAND += ["--dense-epochs", "3", "--svd-epochs", "8", "--fine-tune-epochs", "0", "--device", "cpu"]
COMMAND += ["--precision", "float32", "--lr", "0.03", "--dense-lr", "0.05", "--seed", "1"]
AUTO = ["--sparsity-strength", "auto"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, steered_network=NETWORK)


@pytest.fixture(scope="module")
def steered(folder: Path) -> Path:
    done = Forked(folder, *COMMAND, *AUTO, "-o", "steered")
    assert done.wait() == 0, done.output
    return folder / "steered"


def events(run_folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_pruning_to_the_budget_drops_next_to_nothing_where_a_fixed_strength_leaves_much(steered: Path, folder: Path) -> None:
    fixed = Forked(folder, *COMMAND, "-o", "fixed")
    assert fixed.wait() == 0, fixed.output
    dropped = {}
    for name in ("steered", "fixed"):
        record = load_record(folder / name)
        assert record.results.compressed is not None
        assert record.results.dense is not None
        assert record.results.compressed.macs <= 0.4 * record.results.dense.macs
        dropped[name] = max(1 - each.energy_kept for each in record.plan.values() if isinstance(each, Pair))
    assert dropped["steered"] < 0.1 * dropped["fixed"]
    told = [event["steered"] for event in events(steered, "epoch") if event["stage"] == "svd"]
    assert len(told) == 8
    assert told[-1]["energy_dropped"] < told[0]["energy_dropped"] / 5
    assert all("steered" not in event for event in events(folder / "fixed", "epoch"))


def test_steered_training_that_was_stopped_within_an_epoch_goes_on_to_the_bit(steered: Path, folder: Path) -> None:
    stopped = Forked(folder, *COMMAND, *AUTO, "-o", "stopped")
    stopped.until("SVD training: epoch 3/")
    stopped.send(signal.SIGTERM)
    assert stopped.wait() == 143
    again = Forked(folder, *COMMAND, *AUTO, "-o", "stopped", "--resume")
    assert again.wait() == 0, again.output
    for part in ("svd", "model"):
        assert (folder / "stopped" / f"{part}.safetensors").read_bytes() == (steered / f"{part}.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_steer_alike(steered: Path, folder: Path) -> None:
    both = Forked(folder, *COMMAND, *AUTO, "--devices", "2", "-o", "both")
    assert both.wait() == 0, both.output
    one, other = (
        [event["steered"] for event in events(each, "epoch") if "steered" in event] for each in (steered, folder / "both")
    )
    for mine, theirs in zip(one[:3], other[:3], strict=True):  # rounding grows from epoch to epoch
        assert mine == pytest.approx(theirs, rel=0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["compress", "resnet20", "--energy", "0.1", *AUTO],
            "--sparsity-strength auto requires --macs, --params or --latency",
        ),
        (["train", "resnet20", "--data", "digits", *AUTO], "adapts λ_s to a budget, and lrexport train has none"),
        (
            ["compress", "resnet20", "--macs", "0.5", "--sparsity", "none", *AUTO],
            "--sparsity-strength auto requires --sparsity hoyer or l1",
        ),
        (
            ["compress", "resnet20", "--macs", "0.5", "--sparsity-strength", "-1"],
            "invalid strength '-1': expected a number of at least 0",
        ),
        (
            ["compress", "resnet20", "--macs", "0.5", "--sparsity-strength", "nan"],
            "invalid strength 'nan': expected a number of at least",
        ),
    ],
)
def test_what_cannot_be_steered_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "-o", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_ranks_that_fall_have_their_strengths_steered_as_well(folder: Path) -> None:
    done = Forked(folder, *COMMAND, *AUTO, "--falling-ranks", "-o", "both ways")
    assert done.wait() == 0, done.output
    record = load_record(folder / "both ways")
    assert record.results.compressed is not None
    assert record.results.dense is not None
    assert record.results.compressed.macs <= 0.4 * record.results.dense.macs
    assert len(events(folder / "both ways", "cut")) == 5
    assert all(
        event["steered"]["energy_dropped"] < 1 for event in events(folder / "both ways", "epoch") if "steered" in event
    )

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
IMPLICIT = ["--svd-form", "implicit"]
WAYS = {"steered": AUTO, "implicit": [*IMPLICIT, *AUTO], "path": [*IMPLICIT, "--sparsity", "path"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, steered_network=NETWORK)


@pytest.fixture(
    scope="module", params=[pytest.param(each, marks=pytest.mark.slow) for each in ("steered", "implicit", "path")]
)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def steered(folder: Path, way: str) -> Path:
    done = Forked(folder, *COMMAND, *WAYS[way], "-o", way)
    assert done.wait() == 0, done.output
    return folder / way


@pytest.fixture(scope="module")
def fixed(folder: Path) -> Path:
    done = Forked(folder, *COMMAND, "-o", "fixed")
    assert done.wait() == 0, done.output
    return folder / "fixed"


def events(run_folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def energy_dropped(of: Path) -> float:
    record = load_record(of)
    assert record.results.compressed is not None
    assert record.results.dense is not None
    assert record.results.compressed.macs <= 0.4 * record.results.dense.macs
    return max(1 - each.energy_kept for each in record.plan.values() if isinstance(each, Pair))


def test_pruning_to_the_budget_drops_next_to_nothing_where_a_fixed_strength_leaves_much(
    steered: Path, fixed: Path, way: str
) -> None:
    # Between refreshes the implicit form pulls along old singular vectors, so steering alone gets less far.
    assert energy_dropped(steered) < {"steered": 0.1, "implicit": 0.5, "path": 0.02}[way] * energy_dropped(fixed)
    told = [event["steered"] for event in events(steered, "epoch") if event["stage"] == "svd"]
    assert len(told) == 8
    assert told[-1]["energy_dropped"] < told[0]["energy_dropped"] / {"steered": 5, "implicit": 2, "path": 5}[way]
    assert all("steered" not in event for event in events(fixed, "epoch"))


@pytest.mark.slow
def test_training_that_was_stopped_within_an_epoch_goes_on_to_the_bit(steered: Path, folder: Path, way: str) -> None:
    name = f"stopped {way}"
    stopped = Forked(folder, *COMMAND, *WAYS[way], "-o", name)
    stopped.until("SVD training: epoch 3/")
    stopped.send(signal.SIGTERM)
    assert stopped.wait() == 143
    again = Forked(folder, *COMMAND, *WAYS[way], "-o", name, "--resume")
    assert again.wait() == 0, again.output
    for part in ("svd", "model"):
        assert (folder / name / f"{part}.safetensors").read_bytes() == (steered / f"{part}.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_trained_in_implicit_form_is_compressed_again_from_its_trained_weights(folder: Path) -> None:
    done = Forked(folder, "train", *COMMAND[1:4], *COMMAND[6:8], *IMPLICIT, *COMMAND[9:13], "--device", "cpu", "-o", "alone")
    assert done.wait() == 0, done.output
    again = Forked(folder, "compress", "alone", "--macs", "0.4", "--fine-tune-epochs", "0", "-o", "from it")
    assert again.wait() == 0, again.output
    record = load_record(folder / "from it")
    assert record.config["svd_form"] == "implicit"
    assert record.plan


@pytest.mark.slow
def test_two_processes_steer_alike(steered: Path, folder: Path, way: str) -> None:
    both = Forked(folder, *COMMAND, *WAYS[way], "--devices", "2", "-o", f"both {way}")
    assert both.wait() == 0, both.output
    one, other = (
        [event["steered"] for event in events(each, "epoch") if "steered" in event]
        for each in (steered, folder / f"both {way}")
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
            ["compress", "resnet20", "--macs", "0.5", "--sparsity", "path"],
            "--sparsity path requires --svd-form implicit",
        ),
        (
            ["compress", "resnet20", "--energy", "0.1", *IMPLICIT, "--sparsity", "path"],
            "--sparsity path requires --macs, --params or --latency",
        ),
        (
            ["train", "resnet20", "--data", "digits", *IMPLICIT, "--sparsity", "path"],
            "goes towards a budget, and lrexport train has none",
        ),
        (
            ["compress", "resnet20", "--macs", "0.5", *IMPLICIT, "--falling-ranks"],
            "--falling-ranks requires --svd-form explicit",
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


@pytest.mark.slow
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

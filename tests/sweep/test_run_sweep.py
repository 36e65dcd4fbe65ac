"""Figures of a trial: where they come from for each objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lrexport.cli.main import run
from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.goals import Macs
from lrexport.events import Event, ignore_events
from lrexport.plan import PlannedLatency
from lrexport.report.sweep_tables import front_table
from lrexport.runs.figures import Result, Results
from lrexport.runs.record import Record, load_record
from lrexport.runs.request import RunRequest
from lrexport.runs.scores import Accuracy
from lrexport.runs.sources import ModelSource
from lrexport.runs.sweep_record import Objective, front_of, load_sweep
from lrexport.sweep import run_sweep as running
from lrexport.sweep import shared_stages
from lrexport.sweep.events import TrialBegun, TrialsSaved
from lrexport.sweep.request import make_request
from lrexport.sweep.run_sweep import Place, run_sweep
from tests.folders import folder_with
from tests.hostile.support import DATA, TINY

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def result(macs: int, top1: float) -> Result:
    heldout, test = (Accuracy(top1=value, top5=1, n=100, split=split) for value, split in ((top1, "heldout"), (0.5, "test")))
    return Result(macs=macs, macs_counted_on="torch", params=macs, accuracy=test, heldout_accuracy=heldout)


@pytest.fixture
def compressions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Compressions that only write down what they were asked for; their latency is the square root of their MACs."""
    asked: list[Any] = []

    def compress(request: RunRequest[CompressConfig]) -> Record:
        config = request.config
        asked.append((config, request.source))
        assert isinstance(config.goal, Macs)
        share = config.goal.share
        took = PlannedLatency(
            target=config.target or "",
            threads=1,
            dense=4.0,
            predicted_ms=1.0,
            measured_ms=4 * share**0.5,
            ratio=share**0.5,
            ratio_iqr=(share**0.5, share**0.5),
            warning="varies too much" if share > 0.3 else None,
        )
        results = Results(dense=result(1000, 0.9), compressed=result(round(1000 * share), share))
        model = ModelSource(source="x", input_shape=(1,))
        return Record(model=model, results=results, planned_latency=took if config.target else None)

    monkeypatch.setattr(running.pipeline, "compress", compress)
    monkeypatch.setattr(shared_stages, "_once", lambda run, *others: run)
    return asked


@pytest.mark.parametrize(("objective", "target"), [("macs", None), ("latency", "local")])
def test_latency_is_that_of_the_trial_s_own_measurement_and_its_ratio_is_what_counts(
    tmp_path: Path, compressions: list[Any], objective: Objective, target: str | None
) -> None:
    request = make_request(TrainConfig("x", data="digits"), None, {}, ("macs=0.25,0.36",), objective, 5)
    events: list[Event] = []
    sweep = run_sweep(request, Place(tmp_path), events.append)
    assert [config.target for config, _ in compressions] == [target, target]
    found = {trial.parameters["macs"]: trial.figures for trial in sweep.trials}
    assert set(found) == {0.25, 0.36}
    for share, figures in found.items():
        assert figures is not None
        assert figures.heldout_score == share
        assert figures.test_score == 0.5
        wanted = (None, None) if target is None else (pytest.approx(share**0.5), pytest.approx(4 * share**0.5))
        assert (figures.latency_ratio, figures.latency_ms) == wanted
        assert figures.latency_warning == ("varies too much" if target and share > 0.3 else None)
    assert sweep.dense is not None
    assert (sweep.dense.latency_ratio, sweep.dense.latency_ms) == ((None, None) if target is None else (1.0, 4.0))
    assert sweep.front == front_of(objective, sweep.trials)
    text = str(front_table(sweep))
    assert ("latency ÷ dense" in text) == (objective == "latency")
    assert [type(event) for event in events] == [TrialBegun, TrialsSaved] * 2


def test_trials_of_another_scheme_begin_from_another_svd_training(tmp_path: Path, compressions: list[Any]) -> None:
    space = ("macs=0.25,0.36", "scheme=spatial,channel")
    run_sweep(make_request(TrainConfig("x", data="digits"), None, {}, space, "macs", 9), Place(tmp_path), ignore_events)
    begun = {config.train.scheme: set() for config, _ in compressions}
    for config, source in compressions:
        begun[config.train.scheme].add(source.name)
    assert len(compressions) == 4
    assert {len(sources) for sources in begun.values()} == {1}
    assert begun["spatial"] != begun["channel"]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, tiny_sized=TINY, users_sized=DATA)


@pytest.mark.usefixtures("inside")
def test_the_size_is_that_of_the_file_that_onnx_writes() -> None:
    quick = ["--dense-epochs", "0", "--svd-epochs", "0", "--fine-tune-epochs", "0", "--device", "cpu", "-o", "out"]
    assert (
        run(["sweep", "tiny_sized:make", "--data", "users_sized:fitting", *quick, "--objective", "size", "--trials", "1"])
        == 0
    )
    sweep = load_sweep(Path("out"))
    (trial,) = sweep.on_front()
    assert run(["onnx", "out/trials/0000", "--rounds", "0"]) == 0
    results = load_record(Path("out/trials/0000")).results
    assert trial.figures is not None
    assert sweep.dense is not None
    assert (trial.figures.bytes, sweep.dense.bytes) == (results.compressed.bytes, results.dense.bytes)

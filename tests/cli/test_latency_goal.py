"""``--latency`` and ``--target`` from the command line on a network that is quick to time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lrexport.cli.main import run as cli
from lrexport.plan import Dense, Pair
from lrexport.runs.record import load_record
from tests.workflow.test_pruning import speed_of

MODEL = "tests.conftest:SmallNet"


Lrexport = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lrexport(capsys: pytest.CaptureFixture[str]) -> Lrexport:
    def command(*arguments: str) -> tuple[int, str, str]:
        code = cli(list(arguments))
        return code, *capsys.readouterr()

    return command


def test_a_latency_goal_ends_in_a_run_that_tells_what_was_predicted_and_measured(tmp_path: Path, lrexport: Lrexport) -> None:
    # This network is so small that what is reachable depends on the machine; whatever comes out must be told.
    run = tmp_path / "run"
    code, out, err = lrexport("compress", MODEL, "--input-shape", "3,12,12", "--latency", "0.97", "-o", str(run))
    if code == 2:
        assert "out of reach" in err
        assert "fastest plan" in err
        return
    assert "timing layers" in err
    assert "of the dense network's latency on local" in out
    record = load_record(run)
    assert record.planned_latency is not None
    assert record.planned_latency.target == "local"
    assert record.planned_latency.measured_ms > 0
    assert record.config["goal"] == {"latency": 0.97}
    fast_enough = record.planned_latency.ratio <= 0.97
    assert (code, record.planned_latency.misses_goal) == ((0, False) if fast_enough else (1, True)), err
    assert fast_enough or any(
        "no pair is faster" in note or "no measured plan reaches the latency goal" in note for note in record.notes
    )


@pytest.mark.parametrize(("bias", "code"), [(1.0, 0), (50.0, 1)])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_missed_latency_is_exit_code_1_and_what_was_reached_is_kept(
    tmp_path: Path, lrexport: Lrexport, monkeypatch: pytest.MonkeyPatch, bias: float, code: int, dry_run: bool
) -> None:
    monkeypatch.setattr(
        "lrexport.workflow.pipeline._speed", lambda _config, svd, _event: speed_of(SimpleNamespace(svd=svd), bias)
    )
    run = tmp_path / "run"
    where = ("--dry-run",) if dry_run else ("-o", str(run))
    arguments = ("compress", MODEL, "--input-shape", "3,12,12", "--latency", "0.8", *where)
    ended, out, err = lrexport(*arguments)
    assert ended == code, err
    assert "Measured" in out
    assert ("no measured plan reaches the latency goal (0.8)" in err) == bool(code)
    if dry_run:
        return
    record = load_record(run)
    assert record.planned_latency is not None
    assert record.planned_latency.misses_goal == bool(code)
    assert any(isinstance(layer, Pair) for layer in record.plan.values())
    if code:  # a finished run that is resumed says the same
        assert lrexport(*arguments, "--resume")[0] == code


@pytest.mark.slow
def test_any_goal_with_a_target_has_its_ranks_on_the_grain(tmp_path: Path, lrexport: Lrexport) -> None:
    plan = tmp_path / "plan.json"
    arguments = ("--input-shape", "3,12,12", "--energy", "0.2", "--target", "local", "--dry-run", "--json", str(plan))
    code, out, err = lrexport("compress", MODEL, *arguments)
    assert code == 0, err
    assert "Measured: " in out
    found = json.loads(plan.read_text(encoding="utf-8"))
    assert found["latency"]["target"] == "local"
    for entry in found["plan"].values():
        layer = (Dense if entry.get("dense") else Pair).model_validate(entry)
        assert isinstance(layer, Dense) or layer.rank % 4 == 0 or layer.rank < 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--latency", "5"), ("invalid latency '5'", "5ms")),
        (("--latency", "0ms"), ("invalid latency '0ms'",)),
        (("--latency", "fast"), ("invalid latency 'fast'", "0.6")),
        (("--latency", "0.5", "--macs", "0.5"), ("expected exactly one goal",)),
        (("--latency", "0.5", "--target", "moon"), ("unknown target 'moon'", "local")),
        (("--macs", "0.5", "--target", "ssh://-oProxyCommand=x"), ("-oProxyCommand",)),
        (("--latency", "0.5", "--threads", "0"), ("threads",)),
    ],
)
def test_a_wrong_latency_or_target_is_refused_before_anything_is_done(
    tmp_path: Path, lrexport: Lrexport, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, out, err = lrexport("compress", MODEL, "--input-shape", "3,12,12", *arguments, "-o", str(tmp_path / "run"))
    assert (code, out) == (2, "")
    for word in words:
        assert word in err
    assert not (tmp_path / "run" / "run.json").exists()

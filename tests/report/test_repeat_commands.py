"""Commands to repeat a run: parsed again they are the same choices."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest

from lrexport.cli.main import cli
from lrexport.cli.training_options import train_config
from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.goals import KEYS, goal_of, values_of
from lrexport.report.repeat_commands import commands, shell_lines
from lrexport.runs.record import Earlier, Record
from lrexport.runs.sources import ModelSource
from tests.report.runs import write_run


def _parsed(command: list[str]) -> dict[str, Any]:
    assert command[0] == "lrexport"
    found = cli.get_command(click.Context(cli), command[1])
    assert found is not None
    return dict(found.make_context(command[1], command[2:]).params)


GOALS = [
    {"macs": 0.5},
    {"size": 500_000},
    {"energy": 1e-5},
    {"latency": 0.6},
    {"latency_ms": 0.00001234},
    {"accuracy_drop": 1.0},
    {"plan": Path("a plan's file.json")},
]


@pytest.mark.parametrize("values", GOALS, ids=lambda values: next(iter(values)))
def test_a_run_is_repeated_with_exactly_its_choices(values: dict[str, Any]) -> None:
    goal = goal_of(values)
    train = TrainConfig(
        "resnet20", data="folder:/a b/$(id)", weights=Path("-w.pt"), input_shape=(3, 40, 40), scheme="auto",
        keep=("layer1.*", "-odd'"), download=True, dense_epochs=0, lr=1e-7, weight_decay=3e-4, sparsity="l1", seed=3,
    )  # fmt: skip
    config = CompressConfig(train, goal, weighting=False, fine_tune_epochs=7, baseline_epochs="same", target="ssh://pi@host")
    record = Record(
        model=ModelSource(source="resnet20", input_shape=(3, 40, 40)), config=json.loads(json.dumps(config.to_record()))
    )
    record.data = write_data()
    (command,) = commands(record, "run")
    params = _parsed(shlex.split(shell_lines(command).replace("\\\n", " ")))
    assert params.pop("output") == Path("run-again")
    latency = params.pop("latency")
    given = {name: value for name in KEYS if (value := params.pop(name, None)) is not None}
    if latency is not None:
        given |= values_of(latency)
    assert goal_of(given) == goal
    again = train_config(params)
    rest = {name: params[name] for name in asdict(config) if name in params}
    assert CompressConfig(again, goal, **rest) == config


def write_data() -> Any:
    from lrexport.runs.sources import DataSource

    return DataSource(source="x", classes=10, train=1, heldout=1, test=1, mean=(0.5,), std=(0.5,))


def test_options_of_a_model_are_part_of_it_also_a_number_of_classes_that_the_data_has() -> None:
    source = ModelSource(
        source="torchvision:resnet18", kwargs={"weights": "A&B", "num_classes": 10}, input_shape=(3, 64, 64)
    )
    record = Record(model=source, config={"goal": {"macs": 0.5}, "svd_epochs": 0})
    assert commands(record, "run") == [
        ["lrexport", "compress", "torchvision:resnet18?weights=A%26B&num_classes=10", "--macs", "0.5", "-o", "run-again"]
    ]
    record.data = write_data()
    assert commands(record, "run")[0][2] == "torchvision:resnet18?weights=A%26B&num_classes=10"


def test_an_export_is_repeated_with_every_choice() -> None:
    export = {"batch": None, "opset": 20, "rounds": 0, "threads": 2, "target": "local", "data": None, "rescore": False}
    record = Record(model=ModelSource(source="resnet20", input_shape=(3, 32, 32)), config={"goal": {"macs": 0.5}})
    export |= {"int8": True, "calibration_images": 64, "ort": False, "with_preprocessing": True, "passes": False}
    record.export = export
    params = _parsed(commands(record, "run")[1])
    assert params == {
        "run": Path("run-again"), "batch": 0, "dynamic": (), "opset": 20, "rounds": 0, "threads": 2,
        "target": "local", "data": None,
        "no_rescore": True, "int8": True, "calibration_images": 64, "ort": False, "json_to": None,
        "with_preprocessing": True, "no_passes": True,
    }  # fmt: skip


def test_a_run_that_went_on_from_others_begins_with_theirs() -> None:
    first = {"model": "resnet20", "data": "digits", "svd_epochs": 9}
    record = Record(
        model=ModelSource(source="resnet20", input_shape=(3, 32, 32)),
        data=write_data(),
        earlier=[Earlier(run="trained", config=first), Earlier(run=None, config={**first, "goal": {"macs": 0.5}})],
        config={**first, "svd_epochs": 3, "goal": {"macs": 0.4}},
    )
    assert [shlex.join(command) for command in commands(record, "small")] == [
        "lrexport train resnet20 --data digits --svd-epochs 9 -o trained-again",
        "lrexport compress trained-again --macs 0.5 -o small-again",
        "lrexport compress small-again --svd-epochs 3 --macs 0.4 -o small-again",
    ]


HOSTILE = ["a b", "it's", "$(touch owned)", "new\nline", "-o", "\u202ereversed", "back\\slash\n'", "*", "`id`", "\t1"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_shell_hands_a_hostile_name_on_as_it_is_and_shows_it(name: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", data=None)
    line = shell_lines(["printf", "%s", name])
    assert line.isprintable()
    assert subprocess.run(["bash", "-c", line], capture_output=True, cwd=tmp_path, check=True).stdout == name.encode()
    assert not (tmp_path / "owned").exists()


def test_a_folder_with_a_leading_dash_is_no_option() -> None:
    record = Record(model=ModelSource(source="resnet20", input_shape=(3, 32, 32)), config={"goal": {"macs": 0.5}})
    assert commands(record, "-run")[0][-1] == "./-run-again"


def test_the_report_of_the_current_folder_repeats_into_one_beside_it(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a run").mkdir()
    monkeypatch.chdir(tmp_path / "a run")
    record = Record(model=ModelSource(source="resnet20", input_shape=(3, 32, 32)), config={"goal": {"macs": 0.5}})
    assert commands(record, ".")[0][-1] == "../a run-again"
    assert commands(record, "../a run/")[0][-1] == "../a run-again"

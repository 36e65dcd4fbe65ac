"""Recipes: what those that come with lrexport mean, what goes before what, and --print-config."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lrexport.artifacts.toml_files import parse
from lrexport.cli.main import run
from lrexport.cli.recipe_options import TAKERS, recipe_config
from lrexport.config import recipes
from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.goals import Energy, Macs
from lrexport.training.schedules import learning_rate

ALL_STAGES = ("dense_epochs", "svd_epochs", "fine_tune_epochs")
# What each recipe changes of the defaults.
MEANT: dict[str, dict[str, Any]] = {
    "paper-cifar10": dict.fromkeys(ALL_STAGES, 164)
    | {"data": "cifar10", "optimizer": "adam", "lr": 1e-3, "dense_lr": 1e-3, "weight_decay": 0, "batch_size": 100}
    | {"schedule": "step", "milestones": (81 / 164, 122 / 164), "scheme": "channel", "sparsity_strength": 0.07}
    | {"goal": Energy(1e-4), "rule": "threshold", "heldout": 0.02, "distill": 0}
    | {"weighting": False, "reconstruct": False, "batchnorm_images": 0},
    "paper-imagenet": dict.fromkeys(ALL_STAGES, 90)
    | {
        "lr": 0.1,
        "batch_size": 256,
        "orthogonality": 2.0,
        "sparsity_strength": 0.003,
        "scheme": "channel",
        "scale_gradients": False,
    }
    | {"schedule": "step", "milestones": (31 / 90, 61 / 90), "goal": Energy(1e-3), "rule": "threshold"}
    | {"heldout": 0.01, "distill": 0, "weighting": False, "reconstruct": False, "batchnorm_images": 0},
    "fast": {"goal": Macs(0.5), "svd_epochs": 0, "fine_tune_epochs": 5, "warmup_epochs": 0.5},
    "demo": {"goal": Macs(0.5), "data": "digits", "dense_epochs": 5, "svd_epochs": 3, "fine_tune_epochs": 8}
    | {"baseline_epochs": "same", "sparsity_strength": 0.1, "batch_size": 32, "lr": 0.05, "warmup_epochs": 1.0},
}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LREXPORT_COMPRESS_EXAMPLES")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What --print-config says."""

    def printing(*arguments: str) -> str:
        capsys.readouterr()
        assert run([*arguments, "--print-config"]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return printing


def test_every_recipe_has_its_meaning_written_down() -> None:
    assert sorted(MEANT) == recipes.names()


@pytest.mark.parametrize("name", MEANT)
def test_a_recipe_changes_what_it_says_and_nothing_else(name: str) -> None:
    meant = MEANT[name]
    own = {field.name for field in fields(TrainConfig)}
    train = TrainConfig("resnet20", **{key: value for key, value in meant.items() if key in own})
    assert recipe_config("resnet20", name) == CompressConfig(
        train, **{key: value for key, value in meant.items() if key not in own}
    )


@pytest.mark.parametrize(("name", "falls"), [("paper-cifar10", (81, 122)), ("paper-imagenet", (31, 61))])
def test_the_papers_learning_rate_falls_with_the_first_step_of_its_epochs(name: str, falls: tuple[int, int]) -> None:
    train = recipe_config("resnet20", name).train
    for epoch in falls:
        before, after = (
            learning_rate(train.lr, train.schedule, progress / train.svd_epochs, 0, train.milestones)
            for progress in (epoch - 1 / 500, epoch + 0 / 500)
        )
        assert after == pytest.approx(before / 10)


def test_recipes_are_data_of_the_installed_package() -> None:
    folder = importlib.resources.files("lrexport.config.recipes")
    assert {f"{name}.toml" for name in MEANT} <= {entry.name for entry in folder.iterdir()}


LAYERS: dict[str, Callable[[pytest.MonkeyPatch, list[str]], object]] = {
    "file recipe": lambda patch, arguments: _add('recipe = "low.toml"\n'),
    "file": lambda patch, arguments: _add("batch-size = 40\n"),
    "environment recipe": lambda patch, arguments: patch.setenv("LREXPORT_COMPRESS_RECIPE", "high.toml"),
    "option recipe": lambda patch, arguments: arguments.extend(["--recipe", "high.toml"]),
    "environment": lambda patch, arguments: patch.setenv("LREXPORT_COMPRESS_BATCH_SIZE", "60"),
    "option": lambda patch, arguments: arguments.extend(["--batch-size", "70"]),
}


def _add(line: str) -> None:
    with Path("lrexport.toml").open("a", encoding="utf-8") as stream:
        stream.write(line)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], "batch-size = 128  # default"),
        (["file recipe"], "batch-size = 30  # recipe low.toml"),
        (["file recipe", "file"], "batch-size = 40  # file lrexport.toml:2"),
        (["file", "environment recipe"], "batch-size = 50  # recipe high.toml"),
        (["file recipe", "file", "option recipe"], "batch-size = 50  # recipe high.toml"),
        (["option recipe", "environment"], "batch-size = 60  # environment LREXPORT_COMPRESS_BATCH_SIZE"),
        (list(LAYERS), "batch-size = 70  # option"),
    ],
)
def test_the_nearest_to_the_user_decides(
    given: list[str], wanted: str, printed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("low.toml").write_text("batch-size = 30\n")
    Path("high.toml").write_text("batch-size = 50\n")
    arguments = ["compress", "resnet20"]
    for layer in given:
        LAYERS[layer](monkeypatch, arguments)
    assert wanted in printed(*arguments).splitlines()


def test_a_recipes_goal_replaces_the_files_and_an_option_the_recipes(printed: Callable[..., str]) -> None:
    Path("lrexport.toml").write_text("[compress]\nmacs = 0.3\n")
    by_recipe = parse(printed("compress", "resnet20", "--recipe", "paper-cifar10"))
    assert (by_recipe.get("energy"), by_recipe.get("macs")) == (1e-4, None)
    by_option = parse(printed("compress", "resnet20", "--recipe", "paper-cifar10", "--size", "1.5MB"))
    assert (by_option.get("energy"), by_option.get("macs"), by_option["size"]) == (None, None, "1500000B")
    Path("lrexport.toml").write_text('[compress]\nrecipe = "paper-cifar10"\nmacs = 0.3\n')
    below_file = parse(printed("compress", "resnet20"))
    assert (below_file.get("energy"), below_file.get("macs")) == (None, 0.3)


STRANGE = ["--keep", 'a"\\\n#\x7f', "--keep", "b", "--milestones", "1/3,1", "--input-shape", "3,32,32", "--download"]
STRANGE += ["--checkpoint-minutes", "inf", "--weights", "my weights.pt", "--no-weighting", "--baseline-epochs", "same"]


@pytest.mark.usefixtures("export_checks")
@pytest.mark.parametrize(
    "arguments",
    [
        ["compress", "resnet20", "--latency", "5ms", *STRANGE],
        ["compress", "a\nb", "--latency", "60%", "--recipe", "paper-imagenet"],
        ["compress", "resnet20", "--size", "1MiB", "--recipe", "fast"],
        ["train", "resnet20", "--recipe", "demo", *STRANGE[:11]],
    ],
)
@pytest.mark.usefixtures("export_checks")  # whose variable is a source of its own
def test_what_is_printed_means_the_same_as_a_recipe(arguments: list[str], printed: Callable[..., str]) -> None:
    first = printed(*arguments)
    Path("mine.toml").write_text(first, encoding="utf-8")
    again = printed(*arguments[:2], "--recipe", "mine.toml")
    assert parse(again) == parse(first)
    said = [line for line in again.splitlines() if " = " in line and not line.startswith("#")]
    assert {line.rsplit("  # ", 1)[1] for line in said} == {"recipe mine.toml"}
    assert not Path("run").exists()


def test_a_compressions_recipe_serves_train_without_what_train_does_not_have(printed: Callable[..., str]) -> None:
    found = parse(printed("train", "resnet20", "--recipe", "paper-cifar10"))
    assert found["svd-epochs"] == 164
    assert not found.keys() & {"energy", "rule", "fine-tune-epochs", "output"}


def test_all_that_a_recipe_may_say_is_printed(printed: Callable[..., str]) -> None:
    for command in TAKERS:
        known = {"data", "weights", "keep", "seed", "lr"} | ({"macs", "rule"} if command == "compress" else set())
        lines = [line.removeprefix("# ") for line in printed(command, "resnet20").splitlines()[1:]]
        assert known <= {line.split(" ")[0] for line in lines}


def test_a_recipe_of_training_without_data_is_said_to_do_little(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compress", "resnet20", "--dry-run", "--recipe"]
    assert run([*arguments, "fast"]) == 0
    assert (
        "without --data nothing is trained; these options have no effect: the training options of recipe fast"
        in capsys.readouterr().err
    )
    Path("mine.toml").write_text("macs = 0.4\n")
    assert run([*arguments, "mine.toml"]) == 0
    assert "without --data" not in capsys.readouterr().err


def test_a_recipe_is_followed_by_the_command_itself(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text('input-shape = [3, 32, 32]\nscheme = "channel"\nmacs = 0.4\n')
    assert run(["compress", "resnet20", "--recipe", "mine.toml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "channel" in out
    assert "spatial" not in out

"""benchmarks/paper: what its tables rest on beside lrexport itself."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from benchmarks.paper import __main__ as command
from benchmarks.paper import elsewhere, latency, render, tables
from benchmarks.paper import study as study_module
from benchmarks.paper.other_tools import (
    Selection,
    ToolAbsentError,
    spatial_pair,
    with_followed_shortcuts,
    with_free_shortcuts,
)
from benchmarks.paper.study import Study
from lrexport.cli.main import cli
from lrexport.data.datasets import load_data
from lrexport.data.images import hold_out
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.networks.cifar_resnet import CifarResNet
from lrexport.runs.record import Record

SHAPE = (3, 32, 32)
IN_SHORTCUTS = 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8  # that an exported file has as convolutions


def test_shortcuts_that_torch_pruning_can_follow_are_the_same_function_and_cost_nothing_in_the_end() -> None:
    torch.manual_seed(0)
    network, images = CifarResNet(20).eval(), torch.randn(2, *SHAPE)
    with torch.no_grad():
        wanted, macs = network(images), count_torch_macs(network, SHAPE).total
        with_followed_shortcuts(network)
        torch.testing.assert_close(network(images), wanted)
        assert count_torch_macs(network, SHAPE).total == macs
        with_free_shortcuts(network)
        torch.testing.assert_close(network(images), wanted)
    assert count_torch_macs(network, SHAPE).total == macs - IN_SHORTCUTS
    assert sum(isinstance(module, Selection) for module in network.modules()) == 2


def test_a_shortcut_whose_channels_were_pruned_still_takes_each_from_where_it_was() -> None:
    network = CifarResNet(20)
    with_followed_shortcuts(network)
    block = network.get_submodule("layer2.0")
    kept = torch.tensor([3, 9, 20, 31])  # of 32, channels 8 to 23 of which are those of the input
    whole = block.shortcut
    assert isinstance(whole, nn.Conv2d)
    pruned = nn.Conv2d(16, len(kept), 1, whole.stride, bias=False)
    pruned.weight = nn.Parameter(whole.weight[kept].detach())
    block.shortcut = pruned
    with_free_shortcuts(network)
    images = torch.randn(1, 16, 8, 8)
    taken = block.shortcut(images)
    torch.testing.assert_close(taken, pruned(images))
    assert taken.shape == (1, 4, 4, 4)
    assert bool((taken[:, [0, 3]] == 0).all())


def test_the_pair_that_aimets_weights_go_into_is_the_layer_at_full_rank() -> None:
    layer = nn.Conv2d(5, 7, 3, stride=2, padding=1)
    matrix = layer.weight.detach().permute(1, 2, 0, 3).reshape(15, 21)  # in and height × out and width
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    pair = spatial_pair(layer, 15)
    weights = {
        "first.weight": (left * singular).T.reshape(15, 5, 3, 1),
        "second.weight": right.reshape(15, 7, 3).permute(1, 0, 2).unsqueeze(2),
        "second.bias": layer.bias,
    }
    pair.load_state_dict(weights)
    images = torch.randn(2, 5, 9, 9)
    torch.testing.assert_close(pair(images), layer(images))


def row(name: str, top1: float, macs: int, **more: Any) -> dict[str, Any]:
    figures = {"name": name, "top1": top1, "macs": macs, "dense_macs": 40_000_000, "params": 90_000, "pruned": {}}
    trained = {"epochs": 5, "fine_tune_epochs": 2, "lr": 0.1, "optimizer": "sgd", "distill": 0.5, "hours": 0.25}
    return {**figures, **trained, "n": 10_000, "heldout_top1": 0.9, "machine": "a machine", **more}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """One whose results lie in ``tmp_path / "results"``."""
    for module in (latency, study_module):
        monkeypatch.setattr(module, "OUT", tmp_path / "results")
    options = argparse.Namespace(model="resnet20", data="folder:images", schedule="short", times=1, seed=3, work=tmp_path)
    return Study.of(argparse.Namespace(**vars(options), weights_dir=Path("weights")))


def test_tables_say_what_the_rows_say_and_latency_once_it_was_measured(study: Study, tmp_path: Path) -> None:
    rows = [
        row("start", 0.88, 40_000_000, reference="dense, at the start", epochs=0, fine_tune_epochs=0, lr=None, distill=0.0),
        row("dense-5", 0.89, 40_000_000, reference="dense, trained on", distill=0.0),
        row("steered-0.5-5", 0.875, 20_000_000, method="steered", goal=["macs", 0.5]),
        row("paper-0.5-5", 0.86, 20_000_000, method="paper", goal=["macs", 0.5], lr=0.001, optimizer="adam", distill=0.0),
    ]
    study.keep("recipe", rows, done=True)
    lines = render.markdown("recipe", study).splitlines()
    assert "| steered | 0.5 of the MACs | 0.1 | yes | 20.00 M | 2.00 | 90 k | – | 87.50 % | -1.50 | 5 | 0.25 |" in lines
    assert "| paper | 0.5 of the MACs | 0.001, Adam | no | 20.00 M | 2.00 | 90 k | – | 86.00 % | -3.00 | 5 | 0.25 |" in lines
    assert "| dense, at the start | – | – | no | 40.00 M | 1.00 | 90 k | – | 88.00 % | -1.00 | 0 | 0.25 |" in lines
    of_one = {"ratio": 0.714, "ratio_iqr": [0.68, 0.75], "warning": "inconclusive: so it is"}
    where = {"machine": "another machine", "date": "2026-11-22", "dense_p50": 0.974, "rounds": 200, "networks": 2}
    times = {
        "steered-0.5-5": {**of_one, **where},
        "paper-0.5-5": {**of_one, **where, "dense_p50": 1.0},
        "not-in-this-table": {},
    }
    (tmp_path / "results" / f"latency-{study.label}.json").write_text(json.dumps(times), encoding="utf-8")
    text = render.markdown("recipe", study)
    assert "| 0.71 (0.68–0.75), inconclusive | 90 k |" in text
    (note,) = (line for line in text.splitlines() if "another machine" in line)
    assert note.startswith("- Latency, 2026-11-22: another machine; one thread, 2 networks interleaved in 200 rounds")
    assert "The dense network took 0.97 to 1.00 ms." in note


def test_rows_that_fine_tuning_did_not_help_are_named(study: Study) -> None:
    pruned = {"heldout_top1": 0.9}
    rows = [
        row("helped", 0.8, 1, tool="a", pruned={"heldout_top1": 0.5}),
        row("as-pruned", 0.8, 1, tool="b", pruned=pruned),
        row("never-fine-tuned", 0.8, 1, tool="c", pruned=pruned, fine_tune_epochs=0),
    ]
    study.keep("others", rows, done=True)
    (note,) = (line for line in render.markdown("others", study).splitlines() if "as pruned" in line)
    assert note.endswith("these are as pruned: as-pruned.")


def test_rows_of_a_tool_that_is_not_installed_any_more_stay_if_they_have_this_start(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_arguments: object) -> nn.Module:
        raise ToolAbsentError("not installed")

    monkeypatch.setattr(Study, "start_digest", "this start")
    monkeypatch.setattr(elsewhere, "dense", lambda _study, _epochs: iter(()))
    monkeypatch.setattr(elsewhere, "at", lambda _study, method, _share: row(method, 0.8, 1))
    monkeypatch.setattr(elsewhere, "_tried", absent)
    made = [row("one", 0.8, 1, tool="AIMET", asked={"start": "this start"})]
    made += [row("two", 0.8, 1, tool="Tucker-2", asked={"start": "another start"})]
    study.keep("others", made, done=True)
    assert [each["name"] for each in elsewhere.other_tools(study)][3:] == ["one"]
    rows = []  # as the command does, which has kept as many of them before it comes to the tools
    for each in elsewhere.other_tools(study):
        rows.append(each)
        study.keep("others", rows, done=False)
    assert rows[3:] == made[:1]


def test_rows_so_far_do_not_take_the_place_of_a_whole_table(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "results" / f"recipe-{study.label}.json"
    rows = [row(str(number), 0.8, 1) for number in range(3)]
    study.keep("recipe", rows[:2], done=False)
    study.keep("recipe", rows, done=True)
    whole = path.read_text(encoding="utf-8")
    study.keep("recipe", rows[1:2], done=False)
    assert path.read_text(encoding="utf-8") == whole
    study.keep("recipe", rows[1:2], done=True)
    assert len(json.loads(path.read_text(encoding="utf-8"))["rows"]) == 1


def test_a_command_that_was_stopped_writes_the_rows_that_it_made_and_says_that_there_are_more(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [row(name, 0.8, 1, method="paper", goal=["macs", share]) for name, share in (("one", 0.5), ("two", 0.25))]

    def stopped(_study: Study) -> Iterator[dict[str, Any]]:
        yield made[0]
        raise SystemExit("two: lrexport ended with 143; the same command goes on")

    where = ["--data", study.data, "--seed", "3", "--work", str(tmp_path), "--weights-dir", "weights"]
    monkeypatch.setattr("sys.argv", ["benchmarks.paper", "recipe", *where])
    monkeypatch.setitem(command.TABLES, "recipe", stopped)
    table = tmp_path / "results" / f"recipe-{study.label}.md"
    with pytest.raises(SystemExit, match="goes on"):
        command.main()
    text = table.read_text(encoding="utf-8")
    assert text.count("| paper |") == 1
    assert "- Unfinished: these are the rows made so far" in text
    monkeypatch.setitem(command.TABLES, "recipe", lambda _study: iter(made))
    command.main()
    text = table.read_text(encoding="utf-8")
    assert text.count("| paper |") == 2
    assert "Unfinished" not in text


def test_a_plot_of_no_tables_says_which_to_make(study: Study, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to plot of resnet20-short-5-3: make table3-channel, table3"):
        render.plot(study, tmp_path / "plot.png")


def test_what_was_made_otherwise_is_refused(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Study, "start_digest", "one start")
    study.note("row", {"lr": 0.1})
    study.note("row", {"lr": 0.1})
    with pytest.raises(SystemExit, match=r"row was made otherwise.*\n.*lr: 0.1, now 0.3"):
        study.note("row", {"lr": 0.3})
    monkeypatch.setattr(Study, "start_digest", "another start")
    with pytest.raises(SystemExit, match="start: 'one start', now 'another start'"):
        study.note("row", {"lr": 0.1})


def test_images_that_the_start_was_not_trained_on_are_refused_before_hours_of_training(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, shade in (("these", 10), ("others", 20)):
        for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
            (tmp_path / name / place).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (32, 32), (shade, number, 0)).save(tmp_path / name / place / f"{number}.png")
    these, others = (replace(study, data=f"folder:{tmp_path / name}") for name in ("these", "others"))
    digest = hold_out(load_data(these.data, SHAPE), 0.3, seed=study.seed).digest()
    start = Record(
        model={"source": "resnet20", "input_shape": SHAPE}, config={"heldout": 0.3}, digests={"data_sha256": digest}
    )
    monkeypatch.setattr(Study, "record", lambda _study, _name: start)
    monkeypatch.setattr(Study, "start", lambda made: made.work / "start" / "dense.safetensors")
    monkeypatch.setattr(Study, "start_digest", "a start")
    assert len(these.splits().test) == 6
    for name, train in (("compressed", others.compress), ("trained", others.train)):
        with pytest.raises(SystemExit, match=r"others has other images than .*start was trained on: give another --work"):
            train(name)
        assert not (others.work / name).exists()


def test_commands_are_told_without_the_places_of_this_machine(study: Study) -> None:
    words = ["compress", "resnet20", "--data", "folder:images", "--weights", str(study.work / "start" / "dense.safetensors")]
    assert study.told(words) == "lrexport compress resnet20 --data folder:CIFAR --weights WORK/start/dense.safetensors"


def test_each_row_asks_lrexport_for_something_of_its_own(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that do not exist, or that change nothing, would make rows that are not what they say."""
    asked: dict[str, set[str]] = {}

    def compress(_study: Study, name: str, *options: str) -> dict[str, Any]:
        given = [*study.schedule.options, "--data", "digits", *options, "--print-config"]
        output = CliRunner().invoke(cli, ["compress", "resnet20", *given])
        assert output.exit_code == 0, output.output
        config = {line.partition("  #")[0] for line in output.output.splitlines() if " = " in line}
        assert config not in asked.values() or asked.get(name) == config, name
        asked[name] = config
        return row(name, 0.8, 1)

    def go_on(_study: Study, name: str, _source: str, *options: str) -> dict[str, Any]:
        return compress(_study, name, *options)

    monkeypatch.setattr(Study, "compress", compress)
    monkeypatch.setattr(Study, "go_on", go_on)
    monkeypatch.setattr(Study, "hours", lambda *_arguments: 0.1)
    monkeypatch.setattr(tables, "dense", lambda _study, _epochs: iter(()))
    recipe = {each["name"] for each in tables.recipe(study)}
    assert len(recipe) == 9
    monkeypatch.setattr(Study, "start", lambda made: made.work / "start" / "dense.safetensors")
    goals = {each["name"] for each in tables.goals(study)}
    assert goals - recipe == {"at-once-taught-by-resnet56-0.303-5", "at-once-taught-by-resnet56-0.25-5"}
    assert f'teacher = "{study.studies}/resnet56-short-3/start"' in asked["at-once-taught-by-resnet56-0.303-5"]
    alone, taught = (asked.pop(each["name"]) for each in tables.goals(replace(study, model="resnet56")))
    teacher = {'teacher = "resnet56"', f'teacher-weights = "{study.studies}/resnet56-short-3/dense-5/model.safetensors"'}
    assert taught - alone == teacher
    ablation = {each["name"] for each in tables.ablation(study)}
    assert len(ablation | recipe | goals) == len(asked) == 11 + len(ablation - recipe)
    assert 'sparsity-strength = "auto"' in asked["steered-0.303-5"]
    assert "latency = 0.7" in asked["at-once-latency-0.7-5"]


def test_table_3_of_larger_networks_has_the_strengths_that_did_best_for_resnet20(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(Study, "train", lambda _study, name, *_options: trained.append(name))
    monkeypatch.setattr(Study, "go_on", lambda _study, name, _source, *_options: row(name, 0.8, 1))
    monkeypatch.setattr(Study, "hours", lambda *_arguments: 0.1)
    monkeypatch.setattr(tables, "dense", lambda _study, _epochs: iter(()))

    def strengths(made: Study) -> set[tuple[str, float]]:
        trained.clear()
        rows = list(tables.sparsity(made, "spatial"))
        assert len(rows) == len({each["name"] for each in rows}) == 3 * len(trained)
        return {(each["sparsity"], each["strength"]) for each in rows}

    some, larger = strengths(study), strengths(replace(study, model="resnet32"))
    assert larger < some
    assert {kind for kind, _ in larger} == {kind for kind, _ in some} == {"none", "hoyer", "l1"}
    assert len(larger) == 3

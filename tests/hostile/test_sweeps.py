"""Sweeps that cannot be made: docs/faults.md, Sweeps; killed processes are in tests/sweep."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from lrexport.artifacts import files
from lrexport.errors import InputError
from lrexport.runs.record import load_record
from lrexport.runs.sweep_record import load_sweep
from tests.hostile.support import DATA, Command, Outcome, listing, nothing_made, write_module

QUICK = ("--dense-epochs", "0", "--svd-epochs", "0", "--fine-tune-epochs", "0", "--device", "cpu")
QUICK += ("--calibration-images", "8", "--batchnorm-images", "8", "--data", "users:fitting")


def sweep(lrexport: Command, *arguments: str, model: str = "tiny:make") -> Outcome:
    write_module("users", DATA)
    return lrexport("sweep", model, *QUICK, "-o", "out", *arguments)


def test_a_sweep_does_not_move_into_a_run(lrexport: Command, finished: Path) -> None:
    before = listing(finished)
    write_module("users", DATA)
    done = lrexport("sweep", "tiny:make", *QUICK, "--trials", "1", "-o", finished)
    assert done.code == 2
    assert "run holds a run, not a sweep" in done.err
    assert listing(finished) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--vary", "macz=0.2..0.7"), "Did you mean macs?"),
        (("--vary", "macs=0.7..0.2"), "expected the first number below the second"),
        (("--vary", "macs=0.2..0.7", "--macs", "0.5"), "--vary macs and a goal are mutually exclusive"),
        (("--storage", "nonsense"), "--storage 'nonsense'"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_at_once(lrexport: Command, arguments: tuple[str, ...], words: str) -> None:
    done = sweep(lrexport, *arguments)
    assert done.code == 2
    assert words in done.err
    assert not Path("out/trials").exists()


def test_a_sweep_without_data_says_what_it_needs(lrexport: Command, finished: Path) -> None:
    for model in ("tiny:make", str(finished)):
        done = lrexport("sweep", model, "-o", "out")
        assert done.code == 2
        assert "lrexport sweep requires --data" in done.err
        assert "lrexport sweep requires --data" in done.err
        assert nothing_made()


@pytest.mark.parametrize(("data", "code"), [("users:seven", 3), ("users:nowhere", 2), ("folder:missing", 3)])
def test_wrong_data_ends_the_sweep_before_any_trial_and_binds_it_to_nothing(lrexport: Command, data: str, code: int) -> None:
    done = sweep(lrexport, "--data", data, "--trials", "1")
    assert done.code == code
    assert not Path("out/sweep.json").exists()
    assert sweep(lrexport, "--trials", "1").code == 0


@pytest.mark.slow
def test_goals_out_of_reach_are_pruned_and_if_all_are_the_sweep_ends_with_2(lrexport: Command) -> None:
    done = sweep(lrexport, "--vary", "macs=0.001,0.002,0.6")
    assert done.code == 0
    states = {trial.parameters["macs"]: trial.state for trial in load_sweep(Path("out")).trials}
    assert states == {0.001: "pruned", 0.002: "pruned", 0.6: "finished"}
    assert "out of reach" in done.err
    assert "1 of 3 trials finished, 2 out of reach; 1 on the front" in done.out
    all_of_them = sweep(lrexport, "--vary", "macs=0.001,0.002", "-o", "none")
    assert all_of_them.code == 2
    assert "no trial finished" in all_of_them.err
    assert all_of_them.out == ""


@pytest.mark.slow
def test_a_full_disk_fails_the_trials_and_the_next_start_makes_them(lrexport: Command) -> None:
    put = files.put

    def full(path: Path, temporary: Path, content: files.Content, new: bool = False) -> None:
        if path.name == "model.safetensors":
            raise files.write_failed(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        put(path, temporary, content, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "put", full)
        done = sweep(lrexport, "--trials", "2")
    assert done.code == 4
    assert "disk full while writing out/trials/0000/model.safetensors" in done.err
    assert [trial.exit_code for trial in load_sweep(Path("out")).trials] == [4, 4]
    assert sweep(lrexport, "--trials", "2").code == 0
    assert [(trial.number, trial.state) for trial in load_sweep(Path("out")).trials] == [(2, "finished"), (3, "finished")]


@pytest.mark.skipif(os.name != "posix", reason="a file in the way of a folder")
def test_a_folder_that_cannot_be_made_is_said_before_any_training(lrexport: Command) -> None:
    Path("out").write_text("in the way")
    done = sweep(lrexport)
    assert done.code in (2, 4)
    assert "out" in done.err
    assert Path("out").read_text() == "in the way"


def test_without_optuna_it_is_said_how_to_install_it(lrexport: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = sweep(lrexport)
    assert done.code == 4
    assert "lrexport sweep needs optuna" in done.err
    assert "pip install 'lrexport[sweep]'" in done.err
    assert nothing_made()


def test_a_run_is_swept_from_its_network_and_what_it_has_settled_cannot_vary(lrexport: Command, finished: Path) -> None:
    data = ("--data", "users:fitting", "--fine-tune-epochs", "0", "--trials", "2", "-o", "out")
    write_module("users", DATA)
    refused = lrexport("sweep", finished, *data, "--vary", "sparsity-strength=0.1,0.2")
    assert refused.code == 2
    assert "--vary sparsity-strength: run has already finished that stage" in refused.err
    assert lrexport("sweep", finished, *data).code == 0
    assert not Path("out/stages").exists()
    trial = load_record(Path("out/trials/0000"))
    assert trial.files["dense.safetensors"] == load_record(finished).files["dense.safetensors"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "has schema version 2"),
        ({"surprise": 1}, "sweep.json: surprise"),
        ({"front": [7]}, "its front does not match its trials"),
    ],
)
def test_a_sweep_file_that_was_changed_is_refused(lrexport: Command, change: dict[str, object], words: str) -> None:
    assert sweep(lrexport, "--trials", "1").code == 0
    path = Path("out/sweep.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    before = listing(Path("out/trials"))
    with pytest.raises(InputError, match=words):
        load_sweep(Path("out"))
    assert listing(Path("out/trials")) == before


def test_two_trials_of_one_number_are_refused(lrexport: Command) -> None:
    assert sweep(lrexport, "--trials", "1").code == 0
    path = Path("out/sweep.json")
    value = json.loads(path.read_text())
    value["trials"].append({"number": 0, "state": "failed", "reason": "x"})
    path.write_text(json.dumps(value))
    done = lrexport("report", "out")
    assert done.code == 3
    assert "two trials have the same number" in done.err


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "nul\0nul"])
def test_a_run_whose_name_no_system_has_is_not_there(lrexport: Command, name: str) -> None:
    assert sweep(lrexport, "--trials", "1").code == 0
    path = Path("out/sweep.json")
    value = json.loads(path.read_text())
    value["trials"][0]["run"] = name
    path.write_text(json.dumps(value))
    assert load_sweep(Path("out")).runs(Path("out")) == []
    done = lrexport("report", "out")
    assert done.code == 2
    assert "has no finished run yet" in done.err


def test_a_run_outside_of_the_sweep_is_refused(lrexport: Command) -> None:
    assert sweep(lrexport, "--trials", "1").code == 0
    path = Path("out/sweep.json")
    path.write_text(path.read_text().replace("trials/0000", "../elsewhere"))
    with pytest.raises(InputError, match="has a run outside of the sweep"):
        load_sweep(Path("out"))


def test_json_on_stdout_is_the_sweep_and_nothing_else(lrexport: Command) -> None:
    done = sweep(lrexport, "--trials", "2", "--json", "-")
    assert done.code == 0
    assert json.loads(done.out) == json.loads(Path("out/sweep.json").read_text())
    assert "optuna" not in done.err.lower()
    assert "Warning" not in done.err


@pytest.mark.parametrize("name", ["stages/dense", "trials/0001", "sweep.db-journal"])
def test_a_link_in_a_sweep_is_named_and_what_it_points_to_stays(lrexport: Command, finished: Path, name: str) -> None:
    before = listing(finished)
    assert sweep(lrexport, "--trials", "1").code == 0
    link = Path("out", name)
    if name == "stages/dense":
        link = next(Path("out", "stages").iterdir())
        link.rename("elsewhere")
        shutil.copytree(finished, "mine")
        (Path("mine") / "dense.safetensors").unlink()
        record = json.loads((Path("mine") / "run.json").read_text())
        del record["files"]["dense.safetensors"]
        (Path("mine") / "run.json").write_text(json.dumps(record))
        link.symlink_to(Path("mine").resolve())
    else:
        link.symlink_to(finished.resolve())
    mine = listing(Path("mine")) if Path("mine").exists() else {}
    done = sweep(lrexport, "--trials", "2")
    if name == "trials/0001":  # the trial failed, and says why
        assert load_sweep(Path("out")).trials[1].state == "failed"
    else:
        assert done.code == 3
    assert f"{link} is a symbolic link" in done.err
    assert listing(finished) == before
    assert listing(Path("mine")) == mine if mine else True

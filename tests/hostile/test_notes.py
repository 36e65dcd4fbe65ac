"""What would otherwise happen without a word: weights nobody trained, options left behind, files that go, nothing pruned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.hostile.support import DATA, Command, write_module

NOTE = "note: the environment variable"
AS_MADE = "note: no --weights: starting from the weights that tiny:make returns"


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_callable_without_weights_is_said_to_be_as_it_was_made(compress: Command, options: tuple[str, ...]) -> None:
    assert compress(*options).err.count(AS_MADE) == 1


def test_weights_or_dense_training_leave_nothing_to_say_about_a_callables_own(compress: Command, finished: Path) -> None:
    write_module("users", DATA)
    trained = ("--data", "users:fitting", "--dense-epochs", "1", "--dry-run")
    for options in (("--weights", finished / "dense.safetensors", "--dry-run"), trained):
        done = compress(*options)
        assert done.code == 0
        assert "that tiny:make returns" not in done.err


@pytest.mark.slow
def test_a_dry_run_warns_of_random_weights_of_a_model_and_of_a_run_as_compress_does(compress: Command) -> None:
    said = "warning: the network has random weights"
    for options in (("--dry-run",), ()):
        assert said in compress(*options, model="resnet20").err
    assert said in compress("--dry-run", model="out").err


def test_a_run_that_is_compressed_in_its_own_folder_says_what_goes(lrexport: Command, finished: Path) -> None:
    assert lrexport("onnx", finished, "--rounds", "0").code == 0
    again = ("compress", finished, "--macs", "0.5")
    for elsewhere in (("--dry-run",), ("-o", "other")):
        assert "replaces" not in lrexport(*again, *elsewhere).err
    said = "note: this replaces the compressed network in run and removes dense.onnx, model.onnx"
    assert said in lrexport(*again).err
    assert not (finished / "model.onnx").exists()
    assert "note: this replaces the compressed network in run; use -o RUN to keep it" in lrexport(*again).err


def test_options_that_a_run_was_made_with_and_its_next_compression_is_not_are_told(
    compress: Command, lrexport: Command
) -> None:
    write_module("users", DATA)
    made = ("--svd-epochs", "0", "--fine-tune-epochs", "0", "--batch-size", "16", "--keep", "0", "--lr", "0.5")
    assert compress("--data", "users:fitting", *made, "--no-weighting").code == 0
    again = ("compress", "out", "--macs", "0.7", "--dry-run")
    (told,) = (line for line in lrexport(*again, "--lr", "0.1").err.splitlines() if "options that differ" in line)
    assert told.startswith("note: options that differ from those of out: ")
    assert set(re.split(", (?=--)", told.removeprefix("note: options that differ from those of out: "))) == {
        "--batch-size 128 (the run had 16)",
        "--fine-tune-epochs 4 (the run had 0)",
        "--keep not given (the run had 0)",
        "--weighting on (the run had off)",
    }
    same = ("--batch-size", "16", "--fine-tune-epochs", "0", "--keep", "0", "--no-weighting", "--lr", "0.5")
    assert "options that differ" not in lrexport(*again, *same).err


def test_without_data_options_of_training_are_not_missed(finished: Path, lrexport: Command) -> None:
    assert "options that differ" not in lrexport("compress", finished, "--macs", "0.7", "--dry-run").err


def test_a_threshold_at_which_nothing_is_pruned_names_the_least_that_prunes(lrexport: Command) -> None:
    def pairs(energy: str) -> int:
        done = lrexport("compress", "tiny:make", "--energy", energy, "--dry-run")
        told = re.search(r"warning: nothing is pruned: .*; --energy (\S+) prunes the first", done.err)
        found.append(told[1] if told else "")
        return int(re.search(r"(\d+) pairs?", done.out)[1])  # type: ignore[index]

    found: list[str] = []
    assert pairs("0.0001") == 0
    assert pairs(found[0]) > 0
    assert pairs(f"{float(found[0]) - 0.01:g}") == 0
    assert found[1] == ""


def test_a_plan_that_leaves_everything_dense_says_so(lrexport: Command) -> None:
    done = lrexport("compress", "tiny:make", "--macs", "1.0", "--dry-run")
    assert "warning: nothing is pruned: every layer stays dense" in done.err


def test_a_variable_that_is_no_option_is_told_with_the_nearest_that_is(
    lrexport: Command, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COMPRESS_MAC", "COMPRES_MACS", "ONNX_ROUNDS", "COMPRESS_MACS", "WHATEVER"):
        monkeypatch.setenv(f"LREXPORT_{name}", "0.5")
    done = lrexport("compress", finished, "--dry-run")
    assert done.code == 0
    assert [line for line in done.err.splitlines() if "the environment variable" in line] == [
        f"{NOTE} LREXPORT_COMPRESS_MAC is not an option of compress; did you mean LREXPORT_COMPRESS_MACS?",
        f"{NOTE} LREXPORT_COMPRES_MACS is not an option of compress; did you mean LREXPORT_COMPRESS_MACS?",
        f"{NOTE} LREXPORT_WHATEVER is not an option of compress",
    ]


def test_patterns_given_at_once_are_told_to_be_given_one_by_one(compress: Command) -> None:
    done = compress("--keep", "0,2")
    assert done.code == 2
    assert "Give --keep once for each pattern." in done.err

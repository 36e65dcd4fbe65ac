"""A run whose files were cut, changed or lost: docs/faults.md, Weights and checkpoints."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from lrexport import InputError, load
from lrexport.artifacts import tensors
from lrexport.runs.record import load_record
from tests.conftest import heed_ctrl_c
from tests.hostile.support import DATA, TINY, Command, frugally, listing, nothing_made, write_module


def _flip(path: Path, index: int) -> None:
    content = bytearray(path.read_bytes())
    content[index] ^= 0x10
    path.write_bytes(content)


def test_an_empty_weight_file_of_a_run_is_said_to_be_empty(lrexport: Command, finished: Path) -> None:
    (finished / "model.safetensors").write_bytes(b"")
    before = listing(finished)
    done = lrexport("onnx", finished, "--rounds", "0")
    assert done.code == 3
    assert "empty file: run/model.safetensors" in done.err
    assert listing(finished) == before


def test_an_empty_record_is_said_to_be_empty(lrexport: Command, finished: Path) -> None:
    (finished / "run.json").write_bytes(b"")
    done = lrexport("inspect", finished)
    assert done.code == 3
    assert "empty file: run/run.json" in done.err


def test_a_truncated_file_of_a_run_is_told_with_both_sizes_and_the_last_checkpoint(
    lrexport: Command, finished: Path
) -> None:
    path = finished / "model.safetensors"
    whole = path.read_bytes()
    (finished / "checkpoint").mkdir()
    for age, name in ((20, "fine-tune-0001"), (10, "fine-tune-0002"), (30, "svd-0006")):
        checkpoint = finished / "checkpoint" / f"{name}.safetensors"
        checkpoint.write_bytes(whole)
        os.utime(checkpoint, (1e9 - age, 1e9 - age))
    path.write_bytes(whole[: len(whole) // 2])
    before = listing(finished)
    done = lrexport("onnx", finished, "--rounds", "0")
    assert done.code == 3
    assert f"run/model.safetensors is truncated: it has {len(whole) // 2:,} bytes; expected {len(whole):,}" in done.err
    assert "The last checkpoint is run/checkpoint/fine-tune-0002.safetensors" in done.err
    assert listing(finished) == before


def test_a_truncated_run_without_checkpoints_offers_none(lrexport: Command, finished: Path) -> None:
    path = finished / "dense.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    done = lrexport("compress", finished, "--macs", "0.5", "-o", "other")
    assert done.code == 3
    assert "run/dense.safetensors is truncated" in done.err
    assert "Copy it again" in done.err
    assert "checkpoint" not in done.err
    assert not Path("other").exists()


def test_a_truncated_record_is_no_json(lrexport: Command, finished: Path) -> None:
    path = finished / "run.json"
    path.write_bytes(path.read_bytes()[:100])
    done = lrexport("inspect", finished)
    assert done.code == 3
    assert "run/run.json:6: not JSON" in done.err


def test_a_record_of_a_newer_lrexport_is_refused_with_both_schema_versions(lrexport: Command, finished: Path) -> None:
    path = finished / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 7, "colour": "blue"}))
    before = listing(finished)
    for arguments in (["inspect", finished], ["onnx", finished, "--rounds", "0"], ["compress", finished, "--macs", "0.5"]):
        done = lrexport(*arguments)
        assert done.code == 3
        assert "run/run.json has schema version 7; expected 1" in done.err
    assert listing(finished) == before


@pytest.mark.parametrize("place", [0, 12, -1], ids=["length of the header", "header", "last weight"])
def test_one_flipped_byte_in_the_compressed_weights_is_refused_by_the_hash(
    lrexport: Command, finished: Path, place: int
) -> None:
    _flip(finished / "model.safetensors", place)
    before = listing(finished)
    done = lrexport("onnx", finished, "--rounds", "0")
    recorded = json.loads((finished / "run.json").read_text())["files"]["model.safetensors"]["sha256"]
    assert done.code == 3
    assert "run/model.safetensors was damaged or changed: its sha256 is" in done.err
    assert f"expected {recorded[:12]}" in done.err
    assert listing(finished) == before


def test_one_flipped_byte_in_the_dense_weights_stops_a_new_compression_of_the_run(lrexport: Command, finished: Path) -> None:
    _flip(finished / "dense.safetensors", -1)
    done = lrexport("compress", finished, "--macs", "0.5", "-o", "other")
    assert done.code == 3
    assert "run/dense.safetensors was damaged or changed" in done.err
    assert not Path("other").exists()


def test_load_refuses_a_flipped_byte_too(finished: Path) -> None:
    _flip(finished / "model.safetensors", -1)
    with pytest.raises(InputError, match="damaged or changed: its sha256 is"):
        load(finished)


def test_a_lost_file_of_a_run_is_named(lrexport: Command, finished: Path) -> None:
    (finished / "model.safetensors").unlink()
    done = lrexport("onnx", finished, "--rounds", "0")
    assert done.code == 3
    assert "run has no model.safetensors" in done.err


def test_a_run_whose_network_has_changed_since_is_refused_with_the_names(lrexport: Command, finished: Path) -> None:
    write_module(
        "tiny",
        """
        from torch import nn
        def make():
            return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        make.input_shape = (3, 8, 8)
        """,
    )
    before = listing(finished)
    done = lrexport("onnx", finished, "--rounds", "0")
    assert done.code == 3
    assert "does not fit the network" in done.err
    assert listing(finished) == before


def test_a_plan_that_names_a_layer_the_network_does_not_have_is_refused(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    record["plan"]["nowhere"] = record["plan"]["0"]
    (finished / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="nowhere"):
        load(finished)


def test_a_checkpoint_beside_weights_that_were_cut_is_offered(compress: Command, finished: Path) -> None:
    whole = tensors.load(finished / "dense.safetensors")
    (finished / "checkpoint").mkdir()
    tensors.save(finished / "checkpoint" / "svd-0003.safetensors", whole)
    path = finished / "dense.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    done = compress("--weights", path)
    assert done.code == 3
    assert f"run/dense.safetensors is truncated: it has {size - 100:,} bytes; expected {size:,}" in done.err
    assert "The last checkpoint next to it is run/checkpoint/svd-0003.safetensors" in done.err
    assert nothing_made()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("users:seven", "users:seven has 7 classes; the network has 10 outputs"),
        ("users:whole_grey", "users:whole_grey has images (1, 8, 8); the network takes (3, 8, 8)"),
    ],
)
def test_other_data_that_does_not_fit_a_run_is_refused_before_anything_is_written(
    lrexport: Command, finished: Path, data: str, words: str
) -> None:
    write_module("users", DATA)
    before = listing(finished)
    for command in (["compress", finished, "--macs", "0.6"], ["onnx", finished, "--rounds", "0"]):
        done = lrexport(*command, "--data", data)
        assert done.code == 3
        assert words in done.err
    assert listing(finished) == before


@pytest.fixture
def scored(compress: Command) -> Path:
    """A run with data, users:fitting, that nothing was trained on."""
    write_module("users", DATA)
    assert compress("--data", "users:fitting", "--svd-epochs", "0", "--fine-tune-epochs", "0").code == 0
    return Path("out")


def test_data_given_to_an_export_is_for_that_call_and_the_run_keeps_its_own(lrexport: Command, scored: Path) -> None:
    write_module("moved", DATA)
    done = lrexport("onnx", scored, "--rounds", "0", "--data", "moved:fitting")
    assert done.code == 0
    assert "accuracy on 20 test images of moved:fitting" in done.out
    record = load_record(scored)
    assert record.data is not None
    assert (record.data.source, record.export["data"]) == ("users:fitting", "moved:fitting")
    done = lrexport("onnx", scored, "--rounds", "0")
    assert done.code == 0
    assert "accuracy on 20 test images of users:fitting" in done.out


def test_data_of_a_run_that_is_not_there_any_more_is_told_as_the_runs_own(lrexport: Command, scored: Path) -> None:
    Path("users.py").unlink()
    sys.modules.pop("users")
    for command in (
        ["onnx", scored],
        ["compress", scored, "--macs", "0.5"],
        ["compress", scored, "--macs", "0.5", "--dry-run"],
    ):
        done = lrexport(*command)
        assert done.code == 2
        assert "The run was made with --data users:fitting; if these images have moved, give --data." in done.err
    done = lrexport("onnx", scored, "--data", "folder:images")
    assert done.code == 3
    assert "The run was made with" not in done.err


def test_a_run_that_was_only_trained_is_told_with_what_goes_on_from_it(lrexport: Command) -> None:
    write_module("users", DATA)
    train = ("train", "tiny:make", "--data", "users:fitting", "--svd-epochs", "1", "--device", "cpu", "-o", "trained")
    assert lrexport(*train).code == 0
    for command in (["onnx", "trained"], ["report", "trained"], ["inspect", "trained"]):
        done = lrexport(*command)
        assert "trained has no compressed network yet" in done.err
        assert "lrexport compress trained --macs 0.5" in done.err


@pytest.mark.parametrize("has_record", [True, False])
def test_a_run_that_was_stopped_is_told_as_one_with_how_to_go_on(
    lrexport: Command, finished: Path, has_record: bool
) -> None:
    stopped = Path("stopped")
    (stopped / "checkpoint").mkdir(parents=True)
    (stopped / "checkpoint" / "state.json").write_text('{"asked": {}}')
    if has_record:
        record = json.loads((finished / "run.json").read_text())
        del record["files"]["model.safetensors"]
        record |= {"plan": {}, "results": {}}
        (stopped / "run.json").write_text(json.dumps(record))
        (stopped / "dense.safetensors").write_bytes((finished / "dense.safetensors").read_bytes())
    for command in (["onnx", stopped], ["report", stopped], ["inspect", stopped]):
        done = lrexport(*command)
        assert "the run stopped is unfinished" in done.err
        assert "repeat its command with --resume" in done.err
        assert done.code == (0 if has_record and command[0] == "inspect" else 3)


def test_a_network_that_changed_since_its_run_is_refused(lrexport: Command, finished: Path) -> None:
    write_module("tiny", TINY.replace("nn.Linear(32, 10)", "nn.Linear(32, 11)"))
    sys.modules.pop("tiny", None)
    for command in (["onnx", finished], ["compress", finished, "--macs", "0.5", "--dry-run"]):
        done = lrexport(*command)
        assert done.code == 3
        assert "does not fit the network in its record" in done.err


@pytest.mark.parametrize("opset", ["-1", "6", "99"])
def test_an_opset_that_cannot_be_written_or_run_is_refused_with_the_range(
    lrexport: Command, finished: Path, opset: str
) -> None:
    before = listing(finished)
    done = lrexport("onnx", finished, "--opset", opset, "--rounds", "0")
    assert done.code == 2
    assert re.search(rf"invalid opset {opset}: expected 7 to \d\d; .* not run (older|newer)", done.err)
    assert listing(finished) == before


@pytest.mark.parametrize("moment", ["lrexport.workflow.stages.spectra", "lrexport.artifacts.run_folder.write_bytes"])
def test_a_run_compressed_again_in_its_place_loads_whenever_ctrl_c_comes(
    moment: str, lrexport: Command, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its network is replaced it stays the old one, once it is, the record follows."""
    heed_ctrl_c()
    before = load_record(finished)
    module, name = moment.rsplit(".", 1)
    really = getattr(sys.modules[module], name)

    def interrupted(*arguments: Any) -> Any:
        result = really(*arguments)
        if name == "spectra" or arguments[1] == "model.safetensors":
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(moment, interrupted)
    assert lrexport("compress", finished, "--macs", "0.4").code == 130
    load(finished)
    record = load_record(finished)
    assert (record == before) == (name == "spectra")
    for file in record.files:
        record.check(finished, file)


@pytest.mark.parametrize("command", [("onnx",), ("compress", "--macs", "0.5"), ("compress", "--macs", "0.5", "--dry-run")])
def test_a_record_that_asks_for_a_network_of_gigabytes_is_refused_before_it_takes_them(
    lrexport: Command, finished: Path, command: tuple[str, ...]
) -> None:
    record = json.loads((finished / "run.json").read_text())
    record["model"] |= {"source": "torchvision:resnet18", "kwargs": {"num_classes": 20_000_000}}
    (finished / "run.json").write_text(json.dumps(record))
    before = listing(finished)
    with frugally(megabytes=500, seconds=60):
        done = lrexport(command[0], finished, *command[1:])
    assert done.code == 3
    assert "describes a network of 41.1 GB" in done.err
    assert listing(finished) == before

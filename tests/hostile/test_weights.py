"""Foreign weights: empty, cut, unsafe, of another network, not finite: docs/faults.md, Weights and checkpoints."""

from __future__ import annotations

import argparse
import datetime
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lrexport import InputError
from lrexport.artifacts import tensors
from lrexport.networks.cifar_resnet import CifarResNet
from lrexport.report.repeat_commands import commands
from lrexport.runs.record import UNKNOWN_QUALITY, load_record
from tests.hostile.checkpoints import (
    pickled_text,
    pickled_weights,
    write_archive,
)
from tests.hostile.support import Command, nothing_made, write_module

Weights = dict[str, Tensor]


class Runs:
    """Unpickling this runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin"])
def test_an_empty_weight_file_is_said_to_be_empty(compress: Command, name: str) -> None:
    Path(name).write_bytes(b"")
    done = compress("--weights", name)
    assert done.code == 3
    assert f"empty file: {name}" in done.err
    assert "create or download it again." in done.err
    assert nothing_made()


def test_a_weight_file_that_is_not_there_is_named(compress: Command) -> None:
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "cannot read w.pt: No such file" in done.err
    assert nothing_made()


def test_a_truncated_safetensors_file_is_told_with_both_sizes(compress: Command, weights: Weights) -> None:
    safetensors.torch.save_file(weights, "w.safetensors")
    path = Path("w.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    done = compress("--weights", path)
    assert done.code == 3
    assert f"w.safetensors is truncated: it has {len(whole) - 7:,} bytes; expected {len(whole):,}" in done.err
    assert "Create or download it again." in done.err
    assert nothing_made()


@pytest.mark.parametrize("kept", [0.1, 0.9], ids=["early", "late"])
def test_a_truncated_torch_archive_is_told_with_its_size(compress: Command, weights: Weights, kept: float) -> None:
    torch.save(weights, "w.pt")
    path = Path("w.pt")
    cut = path.read_bytes()[: int(kept * path.stat().st_size)]
    path.write_bytes(cut)
    done = compress("--weights", path)
    assert done.code == 3
    assert f"w.pt is truncated or damaged: it has {len(cut):,} bytes" in done.err
    assert nothing_made()


@pytest.mark.parametrize("kept", [3, 30, 300, -30])
def test_a_truncated_torch_file_of_the_old_format_is_refused(compress: Command, weights: Weights, kept: int) -> None:
    torch.save(weights, "w.pt", _use_new_zipfile_serialization=False)
    path = Path("w.pt")
    path.write_bytes(path.read_bytes()[:kept])
    done = compress("--weights", path)
    assert done.code == 3
    assert "w.pt " in done.err
    assert "PyTorch checkpoint" in done.err
    assert nothing_made()


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old format"])
def test_a_checkpoint_that_needs_foreign_globals_is_refused_and_they_are_listed(
    compress: Command, weights: Weights, archive: bool
) -> None:
    saved = {"state_dict": weights, "started": datetime.date(2026, 1, 1)}
    torch.save(saved, "w.pt", _use_new_zipfile_serialization=archive)
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt would run code when unpickled: datetime.date" in done.err
    assert 'torch.save(model.state_dict(), "weights.pt")' in done.err
    assert "safetensors.torch.save_file" in done.err
    assert nothing_made()


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old format"])
def test_code_in_a_checkpoint_is_never_run(compress: Command, weights: Weights, archive: bool) -> None:
    torch.save({**weights, "extra": Runs("touch it-ran")}, "w.pt", _use_new_zipfile_serialization=archive)
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert f"would run code when unpickled: {os.system.__module__}.system" in done.err
    assert not Path("it-ran").exists()
    assert nothing_made()


def test_a_plain_pickle_is_refused_and_not_run(compress: Command) -> None:
    Path("w.pkl").write_bytes(pickle.dumps({"a": Runs("touch it-ran")}))
    done = compress("--weights", "w.pkl")
    assert done.code == 3
    assert "w.pkl" in done.err
    assert not Path("it-ran").exists()
    assert nothing_made()


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old format"])
def test_a_whole_pickled_module_is_refused_with_the_reason(compress: Command, network: nn.Module, archive: bool) -> None:
    torch.save(network, "w.pt", _use_new_zipfile_serialization=archive)
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt is a whole pickled module (it needs" in done.err
    assert "torch.nn.modules." in done.err
    assert 'torch.save(model.state_dict(), "weights.pt")' in done.err
    assert nothing_made()


def test_a_torchscript_archive_is_refused_with_the_reason(compress: Command, network: nn.Module) -> None:
    torch.jit.trace(network, torch.zeros(1, 3, 8, 8)).save("w.pt")
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt is a TorchScript archive, which contains code; expected only weights" in done.err
    assert nothing_made()


def test_an_exported_program_is_refused_with_the_reason(compress: Command, network: nn.Module) -> None:
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), "w.pt2")
    done = compress("--weights", "w.pt2")
    assert done.code == 3
    assert "w.pt2 is an exported program (.pt2), which contains a graph; expected only weights" in done.err
    assert nothing_made()


NOT_STATE_DICTS = {
    "a list": ([torch.zeros(2)], "w.pt contains a list; expected a state dict"),
    "a tensor": (torch.zeros(2), "w.pt contains a Tensor; expected a state dict"),
    "nothing": ({}, "no tensors in w.pt"),
    "numbers": ({"epoch": 3, "lr": 0.1}, "no tensors in w.pt; its entries are epoch, lr"),
    "no memory": ({"0.weight": torch.empty(8, 3, 3, 3, device="meta")}, "tensors without plain values in w.pt: 0.weight"),
    "sparse": ({"0.weight": torch.eye(4).to_sparse()}, "tensors without plain values in w.pt: 0.weight"),
}


@pytest.mark.parametrize("what", NOT_STATE_DICTS)
def test_a_checkpoint_that_holds_no_state_dict_says_what_it_holds(compress: Command, what: str) -> None:
    content, message = NOT_STATE_DICTS[what]
    torch.save(content, "w.pt")
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert message in done.err
    assert nothing_made()


def test_weights_of_another_network_are_told_by_names_shapes_and_the_closest_known_one(
    compress: Command, tmp_path: Path
) -> None:
    torch.save(CifarResNet(32).state_dict(), "w.pt")
    done = compress("--weights", "w.pt", model="resnet20")
    assert done.code == 3
    unexpected = [name for name in CifarResNet(32).state_dict() if name not in CifarResNet(20).state_dict()]
    assert "w.pt does not fit the network" in done.err
    assert f"unexpected ({len(unexpected)}): {', '.join(unexpected[:10])}, …" in done.err
    assert unexpected[10] not in done.err
    assert "missing" not in done.err
    assert "These look like weights of resnet32." in done.err
    assert nothing_made()


def test_weights_with_other_shapes_and_names_are_told_apart(compress: Command, weights: Weights) -> None:
    weights["2.weight"] = torch.zeros(8, 8, 5, 5)
    weights["head.weight"] = weights.pop("6.weight")
    torch.save(weights, "w.pt")
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "missing (1): 6.weight" in done.err
    assert "unexpected (1): head.weight" in done.err
    assert "other shapes (1): 2.weight (8, 8, 5, 5) instead of (8, 8, 3, 3)" in done.err
    assert "look like" not in done.err
    assert nothing_made()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named_before_any_svd(
    compress: Command, weights: Weights, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("svd", "eigh"):
        monkeypatch.setattr(torch.linalg, name, lambda *_, **__: pytest.fail("an SVD was computed"))
    weights["2.weight"][3, 1, 0, 2] = value
    torch.save(weights, "w.pt")
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "NaN or infinity in the weights of w.pt: 2.weight" in done.err
    assert "use an earlier checkpoint" in done.err
    assert nothing_made()


def test_a_network_that_comes_with_nan_is_refused_by_the_layer(compress: Command) -> None:
    write_module(
        "broken",
        """
        import tiny
        def make():
            network = tiny.make()
            network[6].weight.data[0, 0] = float("nan")
            return network
        make.input_shape = (3, 8, 8)
        """,
    )
    done = compress(model="broken:make")
    assert done.code == 3
    assert "NaN or infinity in the weights of the network: 6.weight" in done.err
    assert nothing_made()


def test_of_weights_and_their_average_the_user_chooses_and_the_run_knows(
    compress: Command, lrexport: Command, weights: Weights
) -> None:
    averaged = {name: 2 * value for name, value in weights.items()}
    torch.save({"state_dict": weights, "state_dict_ema": averaged, "args": argparse.Namespace(lr=0.1)}, "w.pt")
    done = compress("--weights", "w.pt", "--dry-run")
    assert done.code == 0, done.err
    said = "note: w.pt has several weights that fit: took state_dict; choose another with --weights-key (state_dict_ema)"
    assert said in done.err
    done = compress("--weights", "w.pt", "--weights-key", "state_dict_ema")
    assert done.code == 0, done.err
    assert "several weights" not in done.err
    assert torch.equal(tensors.load(Path("out/dense.safetensors"))["0.weight"], averaged["0.weight"])
    record = load_record(Path("out"))
    assert record.config["weights_key"] == "state_dict_ema"
    (command,) = commands(record, "out")
    assert command[command.index("--weights-key") + 1] == "state_dict_ema"
    done = lrexport("compress", "tiny:make", "--macs", "0.6", "-o", "both", "--weights", "w.pt")
    assert done.err.count(said) == done.err.count("several weights") == 1
    assert load_record(Path("both")).notes == [said.removeprefix("note: "), UNKNOWN_QUALITY]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights-key", "model"), "--weights-key requires --weights"),
        (("--teacher", "resnet20", "--teacher-weights-key", "model"), "--teacher-weights-key requires --teacher-weights"),
        (
            ("--weights", "w.pt", "--weights-key", "model"),
            "invalid --weights-key 'model': expected the place of weights in w.pt",
        ),
    ],
)
def test_a_key_without_weights_is_refused(
    compress: Command, weights: Weights, options: tuple[str, ...], message: str
) -> None:
    torch.save(weights, "w.pt")
    done = compress(*options)
    assert done.code == 2
    assert message in done.err
    assert nothing_made()


def test_weights_in_parts_are_refused_with_how_to_gather_them(compress: Command, weights: Weights) -> None:
    Path("parts").mkdir()
    Path("parts/.metadata").write_bytes(b"x")
    done = compress("--weights", "parts")
    assert done.code == 3
    assert "parts is a folder" in done.err
    with pytest.raises(InputError, match="parts is a distributed checkpoint, with one part for each process"):
        tensors.load_all(Path("parts"))
    assert nothing_made()
    # What a pickle of them names: nothing of it is imported.
    named = pickled_text("0.bias") + b"ctorch.distributed._shard.sharded_tensor.api\nShardedTensor\ns"
    write_archive(Path("w.pt"), pickled_weights(4, 4)[:3] + named + pickled_weights(4, 4)[3:])
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt has tensors that are distributed over several processes (it needs torch.distributed._shard." in done.err
    assert "dcp_to_torch_save" in done.err
    assert nothing_made()

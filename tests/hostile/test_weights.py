"""Foreign weights: empty, cut, unsafe, lying, of another network, not finite: docs/faults.md, Weights and checkpoints."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lrexport import InputError
from lrexport.artifacts import tensors
from lrexport.artifacts.pickles import check_cost
from lrexport.networks.cifar_resnet import CifarResNet
from lrexport.report.repeat_commands import commands
from lrexport.runs.record import load_record
from tests.hostile.support import Command, frugally, nothing_made, write_module

Weights = dict[str, Tensor]
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's format before 1.6


class Runs:
    """Unpickling this runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def _safetensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def _entry(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin"])
def test_an_empty_weight_file_is_said_to_be_empty(compress: Command, name: str) -> None:
    Path(name).write_bytes(b"")
    done = compress("--weights", name)
    assert done.code == 3
    assert f"empty file: {name}" in done.err
    assert "make or fetch it again" in done.err
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
    assert f"w.safetensors is truncated: {len(whole):,} bytes expected, {len(whole) - 7:,} found" in done.err
    assert "Make or fetch it again." in done.err
    assert nothing_made()


@pytest.mark.parametrize("kept", [0.1, 0.9], ids=["early", "late"])
def test_a_truncated_torch_archive_is_told_with_its_size(compress: Command, weights: Weights, kept: float) -> None:
    torch.save(weights, "w.pt")
    path = Path("w.pt")
    cut = path.read_bytes()[: int(kept * path.stat().st_size)]
    path.write_bytes(cut)
    done = compress("--weights", path)
    assert done.code == 3
    assert f"w.pt is truncated or damaged: {len(cut):,} bytes" in done.err
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
    assert "w.pt needs code to be unpickled: datetime.date" in done.err
    assert 'torch.save(model.state_dict(), "weights.pt")' in done.err
    assert "safetensors.torch.save_file" in done.err
    assert nothing_made()


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old format"])
def test_code_in_a_checkpoint_is_never_run(compress: Command, weights: Weights, archive: bool) -> None:
    torch.save({**weights, "extra": Runs("touch it-ran")}, "w.pt", _use_new_zipfile_serialization=archive)
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert f"needs code to be unpickled: {os.system.__module__}.system" in done.err
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
    assert "w.pt is a TorchScript archive, which carries code; only weights are read" in done.err
    assert nothing_made()


def test_an_exported_program_is_refused_with_the_reason(compress: Command, network: nn.Module) -> None:
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), "w.pt2")
    done = compress("--weights", "w.pt2")
    assert done.code == 3
    assert "w.pt2 is an exported program (.pt2), which carries a graph; only weights are read" in done.err
    assert nothing_made()


NOT_STATE_DICTS = {
    "a list": ([torch.zeros(2)], "holds a list, not a state dict"),
    "a tensor": (torch.zeros(2), "holds a Tensor, not a state dict"),
    "nothing": ({}, "holds no tensors"),
    "numbers": ({"epoch": 3, "lr": 0.1}, "holds no tensors; its entries are epoch, lr"),
    "no memory": ({"0.weight": torch.empty(8, 3, 3, 3, device="meta")}, "holds tensors without plain values: 0.weight"),
    "sparse": ({"0.weight": torch.eye(4).to_sparse()}, "holds tensors without plain values: 0.weight"),
}


@pytest.mark.parametrize("what", NOT_STATE_DICTS)
def test_a_checkpoint_that_holds_no_state_dict_says_what_it_holds(compress: Command, what: str) -> None:
    content, message = NOT_STATE_DICTS[what]
    torch.save(content, "w.pt")
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert f"w.pt {message}" in done.err
    assert nothing_made()


MALFORMED = {
    "a header of 2**60 bytes": (_safetensors(b"{}", length=2**60), "its header claims 1152921505 GB", "100 MB"),
    "a header beyond the file": (
        _safetensors(b"{}", length=90_000_000),
        "is truncated: 90,000,008 bytes expected",
        "10 found",
    ),
    "data beyond the file": (
        _safetensors({"0.weight": _entry([10**12], 0, 4 * 10**12)}, bytes(4)),
        "is truncated: 4,000,000,000,",
        "found",
    ),
    "overlapping tensors": (
        _safetensors({"a": _entry([4], 0, 16), "b": _entry([4], 8, 24)}, bytes(24)),
        "is no valid safetensors file",
        "nvalid",
    ),
    "a huge shape over little data": (
        _safetensors({"0.weight": _entry([10**6, 10**6], 0, 16)}, bytes(16)),
        "is no valid safetensors file",
        "nvalid",
    ),
    "a shape that overflows": (
        _safetensors({"0.weight": _entry([2**40, 2**40], 0, 16)}, bytes(16)),
        "is no valid safetensors file",
        "verflow",
    ),
    "an empty shape whose strides overflow": (
        _safetensors({"0.weight": _entry([0, *[3] * 50], 0, 0)}, b""),
        "is no valid safetensors file",
        "overflow",
    ),
    "offsets that run backwards": (
        _safetensors({"0.weight": _entry([4], 16, 0)}, bytes(16)),
        "is no valid safetensors file",
        "nvalid",
    ),
    "an infinite offset": (
        _safetensors(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, Infinity]}}', bytes(4)),
        "malformed header",
        "infinity",
    ),
    "a header nested without end": (_safetensors(b'{"a":' + b"[" * 100_000), "malformed header", "recursion"),
    "a header that is a list": (_safetensors(b"[1, 2]"), "malformed header", ""),
    "a header that is no text": (_safetensors(b"{\xff\xfe\xfd}"), "malformed header", "decode"),
    "an unknown type": (
        _safetensors({"a": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "is no valid safetensors file",
        "Q7",
    ),
    "three bytes": (b"abc", "is truncated: 3 bytes", "at least 8"),
    "text": (b"these are my weights, I promise\n" * 9, "is no safetensors file: its header claims", "100 MB"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_safetensors_file_that_lies_is_refused_quickly_and_without_the_memory_it_asks_for(
    compress: Command, what: str
) -> None:
    content, message, detail = MALFORMED[what]
    Path("w.safetensors").write_bytes(content)
    with frugally():
        done = compress("--weights", "w.safetensors")
    assert done.code == 3
    assert done.err.startswith("lrexport: w.safetensors is ")
    assert message in done.err
    assert detail in done.err
    assert nothing_made()


def test_the_content_and_not_the_name_tells_the_format(tmp_path: Path, weights: Weights) -> None:
    torch.save(weights, tmp_path / "a.safetensors")
    safetensors.torch.save_file(weights, tmp_path / "b.pt")
    torch.save(weights, tmp_path / "c.safetensors", _use_new_zipfile_serialization=False)
    # A header of 0x…80 bytes begins like a pickle.
    length = -(-len(_safetensors({"a": _entry([1], 0, 4)})) // 256) * 256 + 0x80
    header = json.dumps({"a": _entry([1], 0, 4)}).encode().ljust(length)
    (tmp_path / "d.pt").write_bytes(_safetensors(header, struct.pack("<f", 2.5)))
    for name in ("a.safetensors", "b.pt", "c.safetensors"):
        assert tensors.load(tmp_path / name).keys() == weights.keys()
    assert tensors.load(tmp_path / "d.pt")["a"].tolist() == [2.5]


def _long(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _pickled(storage: int, size: int, stride: int = 1, view: bytes = b"") -> bytes:
    """A state dict of one float32 tensor (size,), as torch.save pickles it, with whatever sizes it is told to claim."""
    key = _tuple(_text("storage"), b"ctorch\nFloatStorage\n", _text("0"), _text("cpu"), _long(storage), view)
    what = (key, b"Q", _long(0), _tuple(_long(size)), _tuple(_long(stride)), b"\x89", b"ccollections\nOrderedDict\n)R")
    return b"\x80\x02}" + _text("0.weight") + b"ctorch._utils\n_rebuild_tensor_v2\n" + _tuple(*what) + b"Rs."


def _archive(path: Path, pickled: bytes, values: bytes = bytes(16)) -> None:
    """A torch archive around ``pickled`` whose one storage has ``values``."""
    torch.save({"w": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as honest:
        records = {name: honest.read(name) for name in honest.namelist()}
    with zipfile.ZipFile(path, "w") as lying:
        for name, content in records.items():
            last = name.rpartition("/")[2]
            lying.writestr(name, pickled if last == "data.pkl" else values if last == "0" else content)


def _old_format(path: Path, pickled: bytes, count: int, values: bytes = bytes(16)) -> None:
    """torch's format before 1.6: five pickles, then each storage as its number of elements and its bytes."""
    parts = [pickle.dumps(value, protocol=2) for value in (MAGIC, PROTOCOL, {"little_endian": True})]
    parts += [pickled, pickle.dumps(["0"], protocol=2), struct.pack("<q", count), values]
    path.write_bytes(b"".join(parts))


def test_the_handmade_checkpoints_are_what_torch_reads_when_they_are_honest(tmp_path: Path) -> None:
    values = struct.pack("<4f", 1, 2, 3, 4)
    _archive(tmp_path / "a.pt", _pickled(4, 4), values)
    _old_format(tmp_path / "b.pt", _pickled(4, 4, view=b"N"), 4, values)
    for name in ("a.pt", "b.pt"):
        assert tensors.load(tmp_path / name)["0.weight"].tolist() == [1, 2, 3, 4]


LIES = {
    "storage and tensor": (10**12, 10**12),
    "storage": (10**12, 4),
    "tensor": (4, 10**12),
    "an overflow": (2**62 + 4, 4),
    "a negative storage": (-4, 4),
    "2 GB more than there is": (5 * 10**8, 5 * 10**8),
}


@pytest.mark.parametrize("what", LIES)
def test_an_archive_whose_pickle_claims_more_than_its_record_is_refused(compress: Command, what: str) -> None:
    storage, size = LIES[what]
    _archive(Path("w.pt"), _pickled(storage, size))
    with frugally():
        done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt cannot be read as a PyTorch checkpoint" in done.err
    assert nothing_made()


@pytest.mark.parametrize("what", LIES)
@pytest.mark.parametrize("consistent", [True, False], ids=["told twice", "told once"])
def test_an_old_checkpoint_that_claims_more_than_it_holds_is_refused(compress: Command, what: str, consistent: bool) -> None:
    storage, size = LIES[what]
    _old_format(Path("w.pt"), _pickled(storage, size, view=b"N"), max(-(2**62), min(storage, 2**62)) if consistent else 4)
    with frugally():
        done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt cannot be read as a PyTorch checkpoint" in done.err
    assert nothing_made()


def test_a_tensor_that_repeats_one_value_a_trillion_times_is_refused_by_its_shape(compress: Command) -> None:
    _archive(Path("w.pt"), _pickled(4, 10**12, stride=0))
    with frugally():
        done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "0.weight (1000000000000,) instead of (8, 3, 3, 3)" in done.err
    assert nothing_made()


def test_an_archive_with_a_compressed_record_is_refused_before_it_is_unpacked(compress: Command) -> None:
    _archive(Path("honest.pt"), _pickled(4, 4))
    size = 256 << 20
    with zipfile.ZipFile("honest.pt") as honest, zipfile.ZipFile("w.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in honest.namelist():
            if not name.endswith("/data/0"):
                bomb.writestr(name, honest.read(name))
                continue
            with bomb.open(name, "w") as record:
                for _ in range(size >> 20):
                    record.write(bytes(1 << 20))
    assert Path("w.pt").stat().st_size < 1 << 20
    with frugally(100):
        done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt claims to unpack to 268" in done.err
    assert "torch.save never compresses" in done.err
    assert nothing_made()


def test_an_archive_without_a_pickle_is_refused(compress: Command) -> None:
    with zipfile.ZipFile("w.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt cannot be read as a PyTorch checkpoint" in done.err
    assert nothing_made()


def test_no_damage_to_a_checkpoint_gets_past_the_one_family_of_errors(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    value = OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.arange(4).half())
    path = tmp_path / "w.pt"
    for archive in (True, False):
        torch.save(value, path, _use_new_zipfile_serialization=archive)
        whole = path.read_bytes()
        for _ in range(150):
            content = bytearray(whole)
            for place in torch.randint(len(content), (3,), generator=generator).tolist():
                content[place] = int(torch.randint(256, (1,), generator=generator))
            path.write_bytes(content)
            try:
                assert all(isinstance(tensor, Tensor) for tensor in tensors.load(path).values())
            except InputError as error:
                assert str(path) in error.message  # noqa: PT017 - most are refused, a few change nothing but a value


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
    said = "note: w.pt holds several weights that fit: state_dict was taken, --weights-key chooses another (state_dict_ema)"
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
    assert load_record(Path("both")).notes == [said.removeprefix("note: ")]


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
    with pytest.raises(InputError, match="parts holds a checkpoint in parts, one for each process"):
        tensors.load_all(Path("parts"))
    assert nothing_made()
    # What a pickle of them names: nothing of it is imported.
    named = _text("0.bias") + b"ctorch.distributed._shard.sharded_tensor.api\nShardedTensor\ns"
    _archive(Path("w.pt"), _pickled(4, 4)[:3] + named + _pickled(4, 4)[3:])
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt holds tensors that are spread over several processes (it needs torch.distributed._shard." in done.err
    assert "dcp_to_torch_save" in done.err
    assert nothing_made()


def _doubled(times: int) -> bytes:
    """A tuple of twice the one before, so many times; the last is on the stack."""
    return _text("x") + b"q\x01h\x01\x86" * times


def _doubled_lists(times: int) -> bytes:
    return _text("x") + b"".join(b"q\x01]q\x02(h\x01h\x01e" for _ in range(times))


def _nested_tuples(depth: int) -> bytes:
    return _text("x") + b"\x85" * depth


ORDERED = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
BOMBS = {
    "a doubled tuple as a key": b"}" + _doubled(60) + b"Ns.",
    "a doubled tuple among many keys": b"}(" + _text("a") + b"N" + _doubled(60) + b"Nu.",
    "a doubled tuple in a dictionary that is built": ORDERED + b"](]" + _doubled(60) + b"aNae\x85R.",
    "a doubled tuple in a set": b"c__builtin__\nset\n]" + _doubled(60) + b"a\x85R.",
    "a doubled tuple as a counted word": b"ccollections\nCounter\n]" + _doubled(60) + b"a\x85R.",
    "a doubled tuple as a function": _doubled(60) + b")R.",
    "doubled lists as a function": _doubled_lists(60) + b")R.",
    "a doubled tuple as a storage's name": _doubled(60) + b"Q.",
    "doubled lists where a storage's type stands": b"(" + _text("storage") + _doubled_lists(60) + b"NNNtQ.",
    "doubled lists where a tensor stands": REBUILD + b"(" + _doubled_lists(60) + b"K\x00))NNtR.",
    "a doubled tuple as a shape": REBUILD + b"(NK\x00" + _doubled(60) + b")NNtR.",
    "a doubled tuple as a class": _doubled(60) + b")\x81.",
    "a doubled tuple as an object's state": ORDERED + b")R" + _doubled(60) + b"b.",
    "a key deeper than the stack of C": b"}" + _nested_tuples(200_000) + b"Ns.",
    "a dictionary in a dictionary, keyed by a doubled tuple": b"}" + _text("state_dict") + b"}" + _doubled(60) + b"Nss.",
    "a name of a million characters": b"}" + _text("x" * 1_000_000) + b"Ns.",
    "many calls with as much as one may have": b"]("
    + b"K\x00" * 150_000
    + b"eq\x03"
    + (ORDERED + b"h\x03\x85R") * 50
    + b".",
}


@pytest.mark.parametrize("what", BOMBS)
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old format"])
def test_a_small_pickle_that_stands_for_more_than_any_machine_can_hash_or_print_is_refused_at_once(
    tmp_path: Path, what: str, archive: bool
) -> None:
    pickled, path = b"\x80\x02" + BOMBS[what], tmp_path / "w.pt"
    if archive:
        _archive(path, pickled)
    else:
        _old_format(path, pickled, 4)
    with frugally(), pytest.raises(InputError, match=r"w\.pt is not read: its pickle has .*\nA state dict of tensors"):
        tensors.load(path)


def test_a_bomb_for_weights_ends_the_command_before_anything_is_made(compress: Command) -> None:
    _archive(Path("w.pt"), b"\x80\x02" + BOMBS["a doubled tuple as a key"])
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt is not read: its pickle has a key that stands for more than 1,000 items" in done.err
    assert "Save the weights alone" in done.err
    assert nothing_made()


def test_values_that_are_shared_and_keys_that_are_tuples_are_read_as_before(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    names = [f"blocks.{index}.weight" for index in range(3000)]
    torch.save(dict.fromkeys(names, shared), tmp_path / "shared.pt")
    assert len(tensors.load(tmp_path / "shared.pt")) == len(names)
    state = {("group", index): torch.zeros(2) for index in range(3)}
    torch.save(
        {"state_dict": {"w": shared}, "optimizer": {"state": state, "history": [0.1] * 100_000}}, tmp_path / "whole.pt"
    )
    assert tensors.load(tmp_path / "whole.pt")["w"].tolist() == [0, 1, 2, 3]


def test_an_archive_with_two_records_of_one_name_is_refused(compress: Command) -> None:
    _archive(Path("w.pt"), _pickled(4, 4))
    with zipfile.ZipFile("w.pt", "a") as archive:
        inside = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(inside.replace("data.pkl", "DATA.PKL"), b"\x80\x02}" + _doubled(60) + b"Ns.")
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt has several records of one name" in done.err
    assert nothing_made()


@pytest.mark.parametrize("large", [False, True], ids=["zip", "zip64"])
def test_an_archive_that_lists_more_than_a_state_dict_has_is_refused_unread(compress: Command, large: bool) -> None:
    _archive(Path("w.pt"), _pickled(4, 4))
    content = bytearray(Path("w.pt").read_bytes())
    place = content.rindex(b"PK\x05\x06")
    if large:
        end = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 10**9, 10**9, 10**11, 0)
        content[place:place] = end + b"PK\x06\x07" + struct.pack("<IQI", 0, place, 1)
    else:
        content[place + 12 : place + 16] = struct.pack("<I", 10**9)
    Path("w.pt").write_bytes(content)
    with frugally():
        done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt lists records in" in done.err
    assert "at most 16 MB are read" in done.err
    assert nothing_made()


HEADERS = {
    "a shape of ten million numbers": (
        b'{"a":{"dtype":"F32","shape":[' + b"1," * 10_000_000 + b'1],"data_offsets":[0,4]}}',
        "its header has more than 2,000,000 entries",
    ),
    "nothing but commas": (b"{" + b"," * 10_000_000, "its header has more than 2,000,000 entries"),
    "lists of nothing": (b'{"a":[' + b"[]" * 5_000_000 + b"]}", "its header has more than 2,000,000 entries"),
    "a tensor of a thousand axes": (
        b'{"a":{"dtype":"F32","shape":[' + b"1," * 999 + b'1],"data_offsets":[0,4]}}',
        "a has 1,000 axes, at most 64 are read",
    ),
    "an axis that is text": (b'{"a":{"dtype":"F32","shape":"' + b"1" * 70 + b'","data_offsets":[0,4]}}', "a has 70 axes"),
    "an axis beyond 63 bits": (
        b'{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}',
        "a shape in its header has 9223372036854775808 in an axis",
    ),
    "a shape that is a number": (b'{"a":{"dtype":"F32","shape":4,"data_offsets":[0,4]}}', "malformed header"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_safetensors_header_that_costs_more_than_its_tensors_is_refused(tmp_path: Path, what: str) -> None:
    header, message = HEADERS[what]
    (tmp_path / "w.safetensors").write_bytes(_safetensors(header, bytes(4)))
    with frugally(), pytest.raises(InputError) as raised:
        tensors.load(tmp_path / "w.safetensors")
    assert message in raised.value.message


@pytest.mark.parametrize("opcode", [b"X" + b"\xf0\xff\xff\xff", b"T" + b"\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7 + b"\x00"])
def test_a_pickle_whose_text_is_longer_than_its_file_takes_no_memory_for_it(here: Path, opcode: bytes) -> None:
    path = here / "w.pt"
    path.write_bytes(b"\x80\x02" + opcode + b"abc")
    with frugally(megabytes=100):
        check_cost(path)

"""Weights whose headers, records and pickles claim other sizes than the file has."""

from __future__ import annotations

import json
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lrexport import InputError
from lrexport.artifacts import tensors
from tests.hostile.checkpoints import (
    pickled_weights,
    safetensors_file,
    tensor_entry,
    write_archive,
    write_old_format,
)
from tests.hostile.support import Command, frugally, nothing_made

Weights = dict[str, Tensor]


MALFORMED = {
    "a header of 2**60 bytes": (safetensors_file(b"{}", length=2**60), "its header claims 1152921505 GB", "100 MB"),
    "a header beyond the file": (
        safetensors_file(b"{}", length=90_000_000),
        "is truncated: it has 10 bytes",
        "expected 90,000,008",
    ),
    "data beyond the file": (
        safetensors_file({"0.weight": tensor_entry([10**12], 0, 4 * 10**12)}, bytes(4)),
        "is truncated: it has ",
        "expected 4,000,000,000,",
    ),
    "overlapping tensors": (
        safetensors_file({"a": tensor_entry([4], 0, 16), "b": tensor_entry([4], 8, 24)}, bytes(24)),
        "invalid safetensors file",
        "nvalid",
    ),
    "a huge shape over little data": (
        safetensors_file({"0.weight": tensor_entry([10**6, 10**6], 0, 16)}, bytes(16)),
        "invalid safetensors file",
        "nvalid",
    ),
    "a shape that overflows": (
        safetensors_file({"0.weight": tensor_entry([2**40, 2**40], 0, 16)}, bytes(16)),
        "invalid safetensors file",
        "verflow",
    ),
    "an empty shape whose strides overflow": (
        safetensors_file({"0.weight": tensor_entry([0, *[3] * 50], 0, 0)}, b""),
        "invalid safetensors file",
        "overflow",
    ),
    "offsets that run backwards": (
        safetensors_file({"0.weight": tensor_entry([4], 16, 0)}, bytes(16)),
        "invalid safetensors file",
        "nvalid",
    ),
    "an infinite offset": (
        safetensors_file(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, Infinity]}}', bytes(4)),
        "malformed header",
        "infinity",
    ),
    "a header nested without end": (safetensors_file(b'{"a":' + b"[" * 100_000), "malformed header", "recursion"),
    "a header that is a list": (safetensors_file(b"[1, 2]"), "malformed header", ""),
    "a header that is no text": (safetensors_file(b"{\xff\xfe\xfd}"), "malformed header", "decode"),
    "an unknown type": (
        safetensors_file({"a": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "invalid safetensors file",
        "Q7",
    ),
    "three bytes": (b"abc", "is truncated: it has 3 bytes", "at least 8"),
    "text": (b"these are my weights, I promise\n" * 9, "its header claims", "100 MB"),
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
    assert done.err.startswith(("lrexport: w.safetensors is ", "lrexport: invalid safetensors file w.safetensors: "))
    assert message in done.err
    assert detail in done.err
    assert nothing_made()


def test_the_content_and_not_the_name_tells_the_format(tmp_path: Path, weights: Weights) -> None:
    torch.save(weights, tmp_path / "a.safetensors")
    safetensors.torch.save_file(weights, tmp_path / "b.pt")
    torch.save(weights, tmp_path / "c.safetensors", _use_new_zipfile_serialization=False)
    # A header of 0x…80 bytes begins like a pickle.
    length = -(-len(safetensors_file({"a": tensor_entry([1], 0, 4)})) // 256) * 256 + 0x80
    header = json.dumps({"a": tensor_entry([1], 0, 4)}).encode().ljust(length)
    (tmp_path / "d.pt").write_bytes(safetensors_file(header, struct.pack("<f", 2.5)))
    for name in ("a.safetensors", "b.pt", "c.safetensors"):
        assert tensors.load(tmp_path / name).keys() == weights.keys()
    assert tensors.load(tmp_path / "d.pt")["a"].tolist() == [2.5]


def test_the_handmade_checkpoints_are_what_torch_reads_when_they_are_honest(tmp_path: Path) -> None:
    values = struct.pack("<4f", 1, 2, 3, 4)
    write_archive(tmp_path / "a.pt", pickled_weights(4, 4), values)
    write_old_format(tmp_path / "b.pt", pickled_weights(4, 4, view=b"N"), 4, values)
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
    write_archive(Path("w.pt"), pickled_weights(storage, size))
    with frugally():
        done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "cannot read w.pt as a PyTorch checkpoint" in done.err
    assert nothing_made()


@pytest.mark.parametrize("what", LIES)
@pytest.mark.parametrize("consistent", [True, False], ids=["told twice", "told once"])
def test_an_old_checkpoint_that_claims_more_than_it_holds_is_refused(compress: Command, what: str, consistent: bool) -> None:
    storage, size = LIES[what]
    write_old_format(
        Path("w.pt"), pickled_weights(storage, size, view=b"N"), max(-(2**62), min(storage, 2**62)) if consistent else 4
    )
    with frugally():
        done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "cannot read w.pt as a PyTorch checkpoint" in done.err
    assert nothing_made()


def test_a_tensor_that_repeats_one_value_a_trillion_times_is_refused_by_its_shape(compress: Command) -> None:
    write_archive(Path("w.pt"), pickled_weights(4, 10**12, stride=0))
    with frugally():
        done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "0.weight (1000000000000,) instead of (8, 3, 3, 3)" in done.err
    assert nothing_made()


def test_an_archive_with_a_compressed_record_is_refused_before_it_is_unpacked(compress: Command) -> None:
    write_archive(Path("honest.pt"), pickled_weights(4, 4))
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
    assert "torch.save does not compress" in done.err
    assert nothing_made()


def test_an_archive_without_a_pickle_is_refused(compress: Command) -> None:
    with zipfile.ZipFile("w.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "cannot read w.pt as a PyTorch checkpoint" in done.err
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

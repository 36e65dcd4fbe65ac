"""Small weight files that would take more time or memory than any machine has."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from lrexport import InputError
from lrexport.artifacts import tensors
from lrexport.artifacts.pickles import check_cost
from tests.hostile.checkpoints import (
    pickled_text,
    pickled_weights,
    safetensors_file,
    write_archive,
    write_old_format,
)
from tests.hostile.support import Command, frugally, nothing_made


def _doubled(times: int) -> bytes:
    """A tuple of twice the one before, so many times; the last is on the stack."""
    return pickled_text("x") + b"q\x01h\x01\x86" * times


def _doubled_lists(times: int) -> bytes:
    return pickled_text("x") + b"".join(b"q\x01]q\x02(h\x01h\x01e" for _ in range(times))


def _nested_tuples(depth: int) -> bytes:
    return pickled_text("x") + b"\x85" * depth


ORDERED = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
BOMBS = {
    "a doubled tuple as a key": b"}" + _doubled(60) + b"Ns.",
    "a doubled tuple among many keys": b"}(" + pickled_text("a") + b"N" + _doubled(60) + b"Nu.",
    "a doubled tuple in a dictionary that is built": ORDERED + b"](]" + _doubled(60) + b"aNae\x85R.",
    "a doubled tuple in a set": b"c__builtin__\nset\n]" + _doubled(60) + b"a\x85R.",
    "a doubled tuple as a counted word": b"ccollections\nCounter\n]" + _doubled(60) + b"a\x85R.",
    "a doubled tuple as a function": _doubled(60) + b")R.",
    "doubled lists as a function": _doubled_lists(60) + b")R.",
    "a doubled tuple as a storage's name": _doubled(60) + b"Q.",
    "doubled lists where a storage's type stands": b"(" + pickled_text("storage") + _doubled_lists(60) + b"NNNtQ.",
    "doubled lists where a tensor stands": REBUILD + b"(" + _doubled_lists(60) + b"K\x00))NNtR.",
    "a doubled tuple as a shape": REBUILD + b"(NK\x00" + _doubled(60) + b")NNtR.",
    "a doubled tuple as a class": _doubled(60) + b")\x81.",
    "a doubled tuple as an object's state": ORDERED + b")R" + _doubled(60) + b"b.",
    "a key deeper than the stack of C": b"}" + _nested_tuples(200_000) + b"Ns.",
    "a dictionary in a dictionary, keyed by a doubled tuple": b"}"
    + pickled_text("state_dict")
    + b"}"
    + _doubled(60)
    + b"Nss.",
    "a name of a million characters": b"}" + pickled_text("x" * 1_000_000) + b"Ns.",
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
        write_archive(path, pickled)
    else:
        write_old_format(path, pickled, 4)
    with (
        frugally(),
        pytest.raises(InputError, match=r"refused to read .*w\.pt: its pickle has .*\nNo state dict"),
    ):
        tensors.load(path)


def test_a_bomb_for_weights_ends_the_command_before_anything_is_made(compress: Command) -> None:
    write_archive(Path("w.pt"), b"\x80\x02" + BOMBS["a doubled tuple as a key"])
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "refused to read w.pt: its pickle has a key that expands to more than 1,000 items" in done.err
    assert "Save only the weights" in done.err
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
    write_archive(Path("w.pt"), pickled_weights(4, 4))
    with zipfile.ZipFile("w.pt", "a") as archive:
        inside = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(inside.replace("data.pkl", "DATA.PKL"), b"\x80\x02}" + _doubled(60) + b"Ns.")
    done = compress("--weights", "w.pt")
    assert done.code == 3
    assert "w.pt has several records of one name" in done.err
    assert nothing_made()


@pytest.mark.parametrize("large", [False, True], ids=["zip", "zip64"])
def test_an_archive_that_lists_more_than_a_state_dict_has_is_refused_unread(compress: Command, large: bool) -> None:
    write_archive(Path("w.pt"), pickled_weights(4, 4))
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
    assert "w.pt has a list of records of" in done.err
    assert "expected at most 16 MB" in done.err
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
        "a has 1,000 axes; expected at most 64",
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
    (tmp_path / "w.safetensors").write_bytes(safetensors_file(header, bytes(4)))
    with frugally(), pytest.raises(InputError) as raised:
        tensors.load(tmp_path / "w.safetensors")
    assert message in raised.value.message


@pytest.mark.parametrize("opcode", [b"X" + b"\xf0\xff\xff\xff", b"T" + b"\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7 + b"\x00"])
def test_a_pickle_whose_text_is_longer_than_its_file_takes_no_memory_for_it(here: Path, opcode: bytes) -> None:
    path = here / "w.pt"
    path.write_bytes(b"\x80\x02" + opcode + b"abc")
    with frugally(megabytes=100):
        check_cost(path)

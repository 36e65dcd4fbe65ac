"""Files of weights: written from where the tensors are in memory, as safetensors writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrexport.artifacts import files, tensors
from lrexport.errors import DeviceError

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.uint8]
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
DICTS = st.dictionaries(st.text(max_size=5), st.tuples(st.sampled_from([*KINDS, torch.bool]), SHAPES), max_size=6)


@given(DICTS)
def test_parts_of_a_file_are_together_what_safetensors_writes(made: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    made.pop("__metadata__", None)
    given_tensors = {name: (torch.randn(shape) * 9).to(dtype) for name, (dtype, shape) in made.items()}
    assert b"".join(tensors.pieces(given_tensors)) == tensors.packed(given_tensors)


def test_parts_of_a_file_are_the_memory_of_the_tensors(tmp_path: Path) -> None:
    values = {"a": torch.zeros(3, 4), "turned": torch.arange(6.0).view(2, 3).T}
    values["a again"] = values["a"]
    parts = tensors.pieces(values)
    values["a"].fill_(7.0)
    files.write_bytes(tmp_path / "w", parts)
    loaded = tensors.load(tmp_path / "w")
    assert (loaded["a"] == 7).all()
    assert torch.equal(loaded["turned"], values["turned"])
    assert loaded["a again"].shape == (3, 4)


def test_a_full_disk_during_a_later_part_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DeviceError, match=r"disk full while writing .*: 48 B needed"):
        files.write_bytes(path, [b"12345678", memoryview(torch.zeros(10).numpy())])
    assert [each.name for each in tmp_path.iterdir()] == ["w"]
    assert path.read_bytes() == b"old"

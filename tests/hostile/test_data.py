"""Arrays, pictures and masks of somebody else's as --data: docs/faults.md, Data and images."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrexport.artifacts import arrays as stored_arrays
from tests.hostile.support import Command, frugally, nothing_made, write_module

SOUND = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.sound, self.state = nn.Conv1d(1, 16, 3), nn.Linear(4, 16)

        def forward(self, sound, state):
            return self.sound(sound).mean(2) + self.state(state)

    def make():
        torch.manual_seed(0)
        return Net()

    make.inputs = {"sound": (1, 20), "state": (4,)}
"""


class Owned:
    """Writes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("owned", "w")


def arrays(**changed: object) -> dict[str, np.ndarray]:
    """Inputs of ten samples; None leaves one out."""
    sound = {"sound": np.zeros((10, 1, 20)), "state": np.ones((10, 4), np.float32), **changed}
    return {name: np.asarray(value) for name, value in sound.items() if value is not None}


def spoiled(value: float) -> np.ndarray:
    sound = np.zeros((10, 1, 20))
    sound[3, 0, 7] = value
    return sound


FAULTS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "NaN": (arrays(sound=spoiled(np.nan)), "has NaN or infinity in 1 of 200 values of 'sound'"),
    "infinity": (arrays(sound=spoiled(np.inf)), "has NaN or infinity in 1 of 200 values of 'sound'"),
    "too large for float32": (arrays(sound=spoiled(1e300)), "has values of 'sound' beyond float32"),
    "an input that is missing": (arrays(state=None), "has 'sound'; the network takes 'sound', 'state'"),
    "another length": (arrays(state=np.ones((9, 4))), "has inputs that differ in their number of samples"),
    "another shape": (arrays(sound=np.zeros((10, 20))), "has 'sound' as torch.float64 (10, 20); expected (10, 1, 20)"),
    "a single number": (arrays(state=np.float32(1)), "has inputs that differ in their number of samples"),
    "whole numbers": (arrays(state=np.ones((10, 4), np.int32)), "has 'state' as torch.int32; expected floats"),
    "text": (arrays(state=np.full((10, 4), "high")), "has array of <U4 (10, 4); expected a tensor or an array of numbers"),
    "objects": (arrays(state=np.array([Owned()] * 10)), "array 'state' has type object; expected numbers"),
    "targets of another length": (arrays(target=np.zeros(9, int)), "has 9 targets for 10 samples"),
    "one target": (arrays(target=np.int64(3)), "has 0 targets for 10 samples"),
    "targets with NaN": (arrays(target=np.full(10, np.nan)), "has NaN or infinity among its targets"),
    "negative classes": (arrays(target=np.arange(10) - 1), "has classes from -1 to 7"),
    "nothing but ignored": (arrays(target=np.full((10, 2, 2), 255)), "are 255, which is ignored"),
    "no samples": (arrays(sound=np.zeros((0, 1, 20)), state=np.zeros((0, 4))), "has inputs without samples"),
    "two samples": ({name: value[:2] for name, value in arrays().items()}, "has 2 samples; expected 3 or more"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_arrays_that_are_no_samples_are_refused_before_anything_is_made(what: str, compress: Command) -> None:
    write_module("sound", SOUND)
    content, message = FAULTS[what]
    np.savez("data.npz", **content)
    done = compress("--data", "arrays:data.npz", model="sound:make")
    assert done.code == 3
    assert message in done.err
    assert "data.npz" in done.err
    assert not Path("owned").exists()
    assert nothing_made()


def bomb(path: Path) -> None:
    """A few KB that unpack to 3 MB, which the test allows no more."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10, 1, 20)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("sound.npy", header.getvalue() + bytes(800))
        with archive.open("state.npy", "w", force_zip64=True) as entry:
            entry.write(bytes(3 << 20))


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: path.write_bytes(b""), "invalid .npz file data.npz: File is not a zip file"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Owned())), "File is not a zip file"),
    "a folder": (lambda path: path.mkdir(), "cannot read data.npz: no such file"),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere.npz"), "cannot read data.npz: no such file"),
    "a bomb": (bomb, "data.npz unpacks to 2 arrays with 3.15 MB"),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_hold_no_arrays_are_refused(what: str, compress: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_arrays, "MOST_BYTES", 2 << 20)
    write_module("sound", SOUND)
    make, message = FILES[what]
    make(Path("data.npz"))
    with frugally(seconds=60):
        done = compress("--data", "arrays:data.npz", model="sound:make")
    assert done.code == 3
    assert message in done.err
    assert not Path("owned").exists()
    assert nothing_made()


def test_names_in_arrays_and_folders_cannot_steer_the_terminal(compress: Command) -> None:
    write_module("sound", SOUND)
    np.savez("data.npz", **{"so\x1b[31mund": np.zeros((10, 1, 20))})
    done = compress("--data", "arrays:data.npz", model="sound:make")
    assert done.code == 3
    assert "\x1b" not in done.err
    Path("pictures").mkdir()
    Path("pictures", "a\x1b[31m.png").write_bytes(b"no picture")
    for index in range(4):
        Image.new("RGB", (9, 9)).save(f"pictures/{index}.png")
    done = compress("--data", "images:pictures")
    assert done.code == 3
    assert "cannot read the image" in done.err
    assert "\x1b" not in done.err


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        ("images", 2, "--data images needs a folder"),
        ("images:", 2, "Write images:PATH."),
        ("masks:", 2, "Write masks:PATH."),
        ("arrays:", 2, "Write arrays:FILE.npz."),
        ("images:nowhere", 3, "folder nowhere does not exist"),
        ("masks:pictures", 3, "folder pictures/images does not exist"),
        ("images:pictures", 3, "no pictures below pictures"),
        ("arrays:nowhere.npz", 3, "cannot read nowhere.npz: no such file"),
        ("folder:pictures", 3, "For pictures without classes give images:pictures."),
    ],
)
def test_data_that_is_not_there_is_told_without_torch(data: str, code: int, message: str, compress: Command) -> None:
    Path("pictures").mkdir()
    done = compress("--data", data)
    assert done.code == code
    assert message in done.err
    assert nothing_made()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--mean", "0.5,half"), "expected one for each channel, such as 0.5,0.5,0.5"),
        (("--std", "0,1,1"), "invalid std '0, 1, 1': expected numbers above 0"),
        (("--mean", "nan"), "invalid mean 'nan': expected numbers"),
        (("--value-range", "255..0"), "invalid value range '255..0': expected LOW..HIGH, LOW below HIGH"),
        (("--value-range", "0-255"), "invalid value range '0-255'"),
        (("--resize", "0"), "--resize"),
        (("--crop", "corner"), "--crop"),
        (("--channel-order", "gbr"), "--channel-order"),
        (("--mean", "0.5,0.5"), "mean has 2 numbers and std 3"),
        (("--std", "1,1,1,1"), "mean has 3 numbers and std 4"),
    ],
)
def test_preprocessing_that_makes_no_sense_is_refused(option: tuple[str, str], message: str, compress: Command) -> None:
    Path("pictures").mkdir()
    for index in range(5):
        Image.new("RGB", (9, 9)).save(f"pictures/{index}.png")
    done = compress("--data", "images:pictures", *option)
    assert done.code == 2
    assert message in done.err
    assert nothing_made()

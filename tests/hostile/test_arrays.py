"""Arrays of somebody else's for ``bench --input``: no pickle runs, no lie about a size costs memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrexport.artifacts import arrays
from lrexport.artifacts.arrays import npz_bytes, read_arrays
from lrexport.errors import InputError


class Owned:
    """Writes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("owned", "w")


def _archive(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


def _lying(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(16)


BAD = {
    "nothing": (b"", "File is not a zip file"),
    "text": (b"x = 1\n" * 50, "File is not a zip file"),
    "a single array": (_npy(np.ones(3)), "File is not a zip file"),
    "half of an archive": (npz_bytes({"x": np.ones(900)})[:400], "File is not a zip file"),
    "no array": (_archive({}), "it contains no arrays"),
    "a pickle": (_archive({"x.npy": _npy(np.array([Owned()], object))}), "array 'x' has type object; expected numbers"),
    "another file": (_archive({"x.txt": b"1"}), "unexpected entry 'x.txt'"),
    "a header that promises a terabyte": (_archive({"x.npy": _lying((1 << 38,))}), "array 'x' has at least 16 bytes"),
    "a header of less": (_archive({"x.npy": _lying((1,))}), "array 'x' has at least 5 bytes; its header says 4"),
    "negative sizes": (_archive({"x.npy": _lying((-1,))}), "array 'x' has"),
    "no header": (_archive({"x.npy": b"\x93NUMPY\x01\x00"}), "EOF"),
    "a header that is cut": (_archive({"x.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', "}), "x.npz"),
    "a header that is no Python": (_archive({"x.npy": b"\x93NUMPY\x01\x00\x06\x00{'a': ("}), "x.npz"),
    "another version": (_archive({"x.npy": b"\x93NUMPY\x07\x00" + bytes(99)}), "format version (7, 0)"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_an_archive_of_plain_arrays_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = BAD[what]
    Path("x.npz").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_arrays(Path("x.npz"))
    assert words in caught.value.message
    assert "numpy.savez" in (caught.value.hint or "")
    assert not Path("owned").exists()


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "MOST_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(1 << 18))
    with pytest.raises(InputError, match=r"unpacks to 1 arrays with 2\.1 MB; expected at most 1000 arrays and 1\.05 MB"):
        read_arrays(tmp_path / "x.npz")


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None])
def test_what_is_not_a_file_is_named(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"x\.npz"):
        read_arrays(tmp_path / "x.npz")


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=9),
        st.lists(st.integers(0, 3), max_size=3),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["<f4", ">f8", "f2", "i8", "u1", "?", "<U3"]),
)
def test_arrays_come_back_as_they_were_sent_whatever_they_are_called(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]], kind: str
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "x.npz"
    given = {name: np.ones(shape).astype(kind) for name, shape in shapes.items()}
    path.write_bytes(npz_bytes(given))
    found = read_arrays(path)
    assert set(found) == set(given)
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype.newbyteorder("=")

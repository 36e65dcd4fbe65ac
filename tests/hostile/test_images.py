"""Image files that cannot be read: docs/faults.md, Data and images."""

from __future__ import annotations

import io
import os
import random
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrexport.data.datasets import load_data
from lrexport.data.decoding import FORMATS
from lrexport.data.reading import in_threads, read_image
from lrexport.errors import InputError
from lrexport.runs.record import load_record
from tests.hostile.support import TINY, Command, Outcome, frugally, nothing_made, write_module

# Two classes, and batches small enough that several workers have something to do.
PAIR = TINY.replace("nn.Linear(32, 10)", "nn.Linear(32, 2)")
QUICK = ("--svd-epochs", "0", "--fine-tune-epochs", "1", "--batch-size", "4", "--heldout", "0.2", "--precision", "float32")


def truncated(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_image(path: Path) -> None:
    path.write_text("<html>404 not found</html>")


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it has 60,000 × 60,000 pixels."""

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"\0") + _chunk(b"IEND", b""))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.jpg")


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, "truncated"),
    "empty": (empty, "its content is not JPEG, PNG, BMP, GIF, PPM, TIFF or WEBP"),
    "no image": (no_image, "its content is not JPEG"),
    "a decompression bomb": (bomb, "decompression bomb"),
    "a folder": (folder, "Is a directory"),
    "a link to nowhere": (link_to_nowhere, "No such file or directory"),
}


@pytest.fixture
def images(here: Path) -> Path:
    """The folder ``images``: 12 training and 4 test images of either class."""
    write_module("pair", PAIR)
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for name in ("cat", "dog"):
            (here / "images" / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(here / "images" / part / name / f"{index:02}.jpg")
    return Path("images")


@pytest.fixture
def train(images: Path, compress: Command) -> Command:
    def command(kind: str, *arguments: str | Path) -> Outcome:
        return compress("--data", f"{kind}:{images}", *QUICK, *arguments, model="pair:make")

    return command


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("kind", ["folder", "imagenet"])
@pytest.mark.parametrize("what", DAMAGE)
def test_an_image_that_cannot_be_read_is_named_whoever_reads_it(
    what: str, kind: str, workers: str, images: Path, train: Command
) -> None:
    damage, reason = DAMAGE[what]
    damage(images / "train" / "dog" / "03.jpg")
    done = train(kind, "--workers", workers)
    assert done.code == 3
    assert "lrexport: cannot read the image images/train/dog/03.jpg: " in done.err
    assert reason in done.err
    assert "Remove or replace it" in done.err
    assert "worker" not in done.err
    assert not Path("out/model.safetensors").exists()


@pytest.fixture
def damaged(images: Path) -> Path:
    """The folder ``images`` with three files that cannot be read."""
    truncated(images / "train" / "cat" / "07.jpg")
    bomb(images / "train" / "dog" / "03.jpg")
    empty(images / "val" / "dog" / "00.jpg")
    return images


@pytest.mark.usefixtures("damaged")
@pytest.mark.parametrize("kind", ["folder", pytest.param("imagenet", marks=pytest.mark.slow)])
def test_images_that_cannot_be_read_are_left_out_where_that_is_asked_for(kind: str, train: Command) -> None:
    done = train(kind, "--workers", "1", "--max-bad", "3")
    assert done.code == 0, done.err
    assert (
        f"warning: left out 3 unreadable images of {kind}:images: train/cat/07.jpg, train/dog/03.jpg, val/dog/00.jpg\n"
    ) in done.err
    data = load_record(Path("out")).data
    assert data is not None
    assert (data.skipped, data.train + data.heldout, data.test) == (3, 22, 7)


@pytest.mark.usefixtures("damaged")
@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_more_of_them_than_were_allowed_are_named(kind: str, train: Command) -> None:
    done = train(kind, "--max-bad", "2")
    assert done.code == 3
    assert "3 images cannot be read, --max-bad allows 2: images/train/cat/07.jpg, images/train/dog/03.jpg" in done.err
    assert "leave them out with --max-bad 3" in done.err
    assert nothing_made()


@pytest.mark.usefixtures("damaged")
def test_a_dry_run_names_them_too(train: Command) -> None:
    done = train("folder", "--max-bad", "5", "--dry-run")
    assert done.code == 0
    assert "left out 3 unreadable images of folder:images: train/cat/07.jpg" in done.err


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_a_class_of_which_nothing_is_left_is_named(kind: str, images: Path, train: Command) -> None:
    for path in (images / "val" / "cat").iterdir():
        no_image(path)
    done = train(kind, "--max-bad", "100")
    assert done.code == 3
    assert "class folder images/val/cat has no readable images" in done.err
    assert nothing_made()


@pytest.mark.usefixtures("damaged")
def test_the_export_of_a_run_without_some_images_leaves_them_out_too(train: Command, lrexport: Command) -> None:
    assert train("folder", "--max-bad", "3").code == 0
    done = lrexport("onnx", "out", "--rounds", "0")
    assert done.code == 0, done.err
    assert "accuracy on 7 test images" in done.out
    assert "warning: left out 3 unreadable images of folder:images" in done.err


@pytest.mark.usefixtures("damaged")
def test_a_run_without_some_images_is_not_taken_for_one_of_other_choices(train: Command, images: Path) -> None:
    here = ("--workers", "0")  # further processes would take most of the time
    assert train("imagenet", *here, "--max-bad", "3").code == 0
    assert train("imagenet", *here, "--max-bad", "3", "--resume").code == 0
    assert "max-bad was 3, now 4" in train("imagenet", *here, "--max-bad", "4", "--resume").err
    done = train("imagenet", *here, "--max-bad", "4", "-o", "other")
    assert done.code == 0
    once = load_record(Path("other")).digests["data_sha256"]
    assert once == load_record(Path("out")).digests["data_sha256"]
    truncated(images / "train" / "dog" / "05.jpg")
    assert train("imagenet", *here, "--max-bad", "4", "-o", "less").code == 0
    assert load_record(Path("less")).digests["data_sha256"] != once


def test_of_many_of_them_ten_are_named_and_names_are_made_visible(images: Path) -> None:
    odd = images / "train" / "cat" / "\x1b[2J\n.jpg"
    (images / "train" / "cat" / "00.jpg").rename(odd)
    bad = [odd, *sorted((images / "train").rglob("0[1-6].jpg"))]
    for path in bad:
        empty(path)
    (warning,) = load_data("folder:images", (3, 8, 8), max_bad=13).warnings
    assert warning.startswith("left out 13 unreadable images of folder:images: train/cat/")
    assert warning.endswith("and 3 more")
    assert "\\x1b[2J\\x0a.jpg" in warning
    assert "\n" not in warning
    with pytest.raises(
        InputError, match=r"^13 images cannot be read, --max-bad allows 12: images/train/cat/.* and 3 more\n"
    ):
        load_data("folder:images", (3, 8, 8), max_bad=12)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _picture(height: int = 30, width: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    content = io.BytesIO()
    (image or _picture()).save(content, kind, **options)
    return content.getvalue()


def _in_png(*chunks: bytes) -> bytes:
    """A sound PNG with more chunks behind its header."""
    whole = _saved("PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]


def _many_scans() -> bytes:
    whole = _saved("JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * 500 + whole[-2:]


def _repeated_strips(size: int = 100, strips: int = 5000) -> bytes:
    """A grey TIFF that lists two halves of the image again and again (TIFF 6.0, section 2)."""
    pixels = bytes(size * size)
    tags = {256: size, 257: size, 258: 8, 259: 1, 262: 1, 277: 1, 278: size // 2}
    place = 8 + len(pixels)
    lists = place + 2 + 12 * (len(tags) + 2) + 4
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items()]
    entries += [struct.pack("<HHII", tag, 4, strips, lists + 4 * strips * (tag == 279)) for tag in (273, 279)]
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    offsets, sizes = struct.pack("<I", 8) * strips, struct.pack("<I", len(pixels) // 2) * strips
    return b"II*\0" + struct.pack("<I", place) + pixels + directory + offsets + sizes


def _gif(width: int, height: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0;"


ALLOWED = {
    **{kind: lambda kind=kind: _saved(kind) for kind in FORMATS},
    "several in one JPEG": lambda: _saved("MPO", save_all=True, append_images=[_picture()]),
    "a progressive JPEG": lambda: _saved("JPEG", progressive=True),
    "a film behind a JPEG": lambda: _saved("JPEG") + random.Random(0).randbytes(2_000_000),
    "markers in a JPEG's metadata": lambda: _saved("JPEG", exif=b"Exif\0\0" + b"\xff\xda" * 1000),
    "a PNG in small chunks": lambda: _in_png(*[_chunk(b"prVt", bytes(9))] * 5000),
}
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "EPS": (lambda: _saved("EPS"), "its content is not JPEG"),
    "PDF": (lambda: _saved("PDF"), "its content is not JPEG"),
    "ICO": (lambda: _saved("ICO"), "its content is not JPEG"),
    "PCX": (lambda: _saved("PCX"), "its content is not JPEG"),
    "XPM": (lambda: b'/* XPM */\nstatic char *x[] = {"1 1 1 1","a c #000000","a"};', "its content is not JPEG"),
    "96 megapixels of nothing": (
        lambda: _saved("PNG", Image.new("1", (12_000, 8_000))),
        "it has 96.0 megapixels; the limit is 89.5",
    ),
    "a GIF of 3,600 megapixels": (lambda: _gif(60_000, 60_000), "decompression bomb"),
    "text that is 200 MB unpacked": (
        lambda: _in_png(_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000), 1))),
        "Decompressed data too large",
    ),
    "colours that are 200 MB unpacked": (
        lambda: _in_png(_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(200_000_000), 1))),
        "Decompressed data too large",
    ),
    "a PNG in half a million chunks": (lambda: _in_png(_chunk(b"prVt", b"") * 500_000), "more than 12,9"),
    "a JPEG of 500 scans": (_many_scans, "scans of 40×30 pixels, too many for an image"),
    "a TIFF that lists its strips again and again": (_repeated_strips, "its parts cover the image many times over"),
    "70 MB behind a small BMP": (lambda: _saved("BMP") + bytes(70 << 20), "bytes, too many for 40×30 pixels"),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_an_image_of_a_data_set_is_read_whatever_it_is_called(tmp_path: Path, what: str) -> None:
    path = tmp_path / "picture.eps"
    path.write_bytes(ALLOWED[what]())
    assert read_image(path).size == (40, 30)


@pytest.mark.parametrize("what", REFUSED)
def test_an_image_that_costs_more_than_it_shows_is_refused_before_it_is_decoded(tmp_path: Path, what: str) -> None:
    make, message = REFUSED[what]
    path = tmp_path / "picture.png"
    path.write_bytes(make())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with frugally(), pytest.raises(InputError, match=r"cannot read the image .*picture\.png: ") as raised:
            read_image(path)
    assert message in raised.value.message


def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "picture.png")
    with pytest.raises(InputError, match=r"picture\.png is a FIFO; expected a plain file"):
        read_image(tmp_path / "picture.png")


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_no_program_is_started_for_an_image_whatever_its_content_asks_for(
    kind: str, workers: str, images: Path, train: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "programs").mkdir()
    for name in ("gs", "gswin64c", "gswin32c", "djpeg"):
        program = here / "programs" / name
        program.write_text(f'#!/bin/sh\necho {name} >> {here}/started\n[ "$1" = --version ] && echo 10.0\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{here / 'programs'}{os.pathsep}{os.environ['PATH']}")
    (images / "train" / "cat" / "05.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n"
    )
    done = train(kind, "--workers", workers)
    assert done.code == 3
    assert "cannot read the image images/train/cat/05.jpg: its content is not JPEG" in done.err
    done = train(kind, "--workers", workers, "--max-bad", "1")
    assert done.code == 0
    assert not (here / "started").exists()


def test_reading_that_is_stopped_begins_no_further_image() -> None:
    begun: list[Path] = []

    def read(path: Path) -> Path:
        begun.append(path)
        time.sleep(0.01)
        return path

    paths = [Path(str(number)) for number in range(1000)]
    results = in_threads(read, paths)
    assert next(results) == paths[0]
    results.close()
    assert len(begun) < 500

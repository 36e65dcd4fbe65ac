"""Image files that cannot be read: docs/faults.md 26."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrexport.data.resolve import load_data
from lrexport.errors import InputError
from lrexport.record import load_record
from tests.hostile.support import TINY, Command, Outcome, nothing_made, write_module

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

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"\0") + chunk(b"IEND", b""))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.jpg")


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, "truncated"),
    "empty": (empty, "cannot identify image file"),
    "no image": (no_image, "cannot identify image file"),
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
@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_images_that_cannot_be_read_are_left_out_where_that_is_asked_for(kind: str, train: Command) -> None:
    done = train(kind, "--workers", "1", "--max-bad", "3")
    assert done.code == 0, done.err
    assert (
        f"warning: left out of {kind}:images, as unreadable: 3 images: train/cat/07.jpg, train/dog/03.jpg, val/dog/00.jpg\n"
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
    assert "3 images: train/cat/07.jpg" in done.err


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_a_class_of_which_nothing_is_left_is_named(kind: str, images: Path, train: Command) -> None:
    for path in (images / "val" / "cat").iterdir():
        no_image(path)
    done = train(kind, "--max-bad", "100")
    assert done.code == 3
    assert "class folder images/val/cat has no image that can be read" in done.err
    assert nothing_made()


@pytest.mark.usefixtures("damaged")
def test_the_export_of_a_run_without_some_images_leaves_them_out_too(train: Command, lrexport: Command) -> None:
    assert train("folder", "--max-bad", "3").code == 0
    done = lrexport("onnx", "out", "--rounds", "0")
    assert done.code == 0, done.err
    assert "accuracy on 7 test images" in done.out
    assert "warning: left out of folder:images, as unreadable: 3 images" in done.err


@pytest.mark.usefixtures("damaged")
def test_a_run_without_some_images_is_not_taken_for_one_of_other_choices(train: Command, images: Path) -> None:
    assert train("imagenet", "--max-bad", "3").code == 0
    assert train("imagenet", "--max-bad", "3", "--resume").code == 0
    assert "max-bad was 3, is 4" in train("imagenet", "--max-bad", "4", "--resume").err
    done = train("imagenet", "--max-bad", "4", "-o", "other")
    assert done.code == 0
    once = load_record(Path("other")).digests["data_sha256"]
    assert once == load_record(Path("out")).digests["data_sha256"]
    truncated(images / "train" / "dog" / "05.jpg")
    assert train("imagenet", "--max-bad", "4", "-o", "less").code == 0
    assert load_record(Path("less")).digests["data_sha256"] != once


def test_of_many_of_them_ten_are_named_and_names_are_made_visible(images: Path) -> None:
    odd = images / "train" / "cat" / "\x1b[2J\n.jpg"
    (images / "train" / "cat" / "00.jpg").rename(odd)
    bad = [odd, *sorted((images / "train").rglob("0[1-6].jpg"))]
    for path in bad:
        empty(path)
    (warning,) = load_data("folder:images", (3, 8, 8), max_bad=13).warnings
    assert warning.startswith("left out of folder:images, as unreadable: 13 images: train/cat/")
    assert warning.endswith("and 3 more")
    assert "\\x1b[2J\\x0a.jpg" in warning
    assert "\n" not in warning
    with pytest.raises(
        InputError, match=r"^13 images cannot be read, --max-bad allows 12: images/train/cat/.* and 3 more\n"
    ):
        load_data("folder:images", (3, 8, 8), max_bad=12)

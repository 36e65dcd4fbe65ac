"""Image files that cannot be read: docs/faults.md 26."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hostile.support import Command, Outcome, write_module

# Two classes, and batches small enough that several workers have something to do.
PAIR = """
    import torch
    from torch import nn

    def make():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2),
        )

    make.input_shape = (3, 8, 8)
"""
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

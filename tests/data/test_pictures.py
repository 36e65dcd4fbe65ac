"""Pictures without classes, and pictures with masks: in memory, from disk, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrexport.data import picture_sets
from lrexport.data.datasets import load_data
from lrexport.data.images import ArraySet, ImageData, hold_out
from lrexport.data.order import Order
from lrexport.data.preprocessing import Fitting, in_order
from lrexport.data.streamed import StreamedSet
from lrexport.errors import InputError, LrexportError, UsageError
from lrexport.preprocessing import Preprocessing

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures at several depths, each of one grey that says which it is."""
    for index in range(10):
        path = tmp_path / "pictures" / ("a" * (index % 3)) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (20 * index,) * 3).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Ten pictures whose left half is black and of class 0, the right one red and of class 2, with a strip of 255."""
    for folder in ("images", "masks"):
        (tmp_path / "scenes" / folder / "day").mkdir(parents=True)
    for index in range(10):
        pixels, mask = np.zeros((10, 16, 3), np.uint8), np.zeros((10, 16), np.uint8)
        pixels[:, 8:, 0], mask[:, 8:] = 200, 2
        pixels[1], mask[1] = 90, 255
        Image.fromarray(pixels).save(tmp_path / "scenes" / "images" / "day" / f"{index}.bmp")
        Image.fromarray(mask).save(tmp_path / "scenes" / "masks" / "day" / f"{index}.png")
    return tmp_path / "scenes"


def test_every_fifth_picture_at_any_depth_is_a_test_picture(pictures: Path) -> None:
    data = load_data(f"images:{pictures}", SHAPE)
    assert (data.default_task, data.classes, len(data.train), len(data.test)) == ("fidelity", (), 8, 2)
    assert isinstance(data.train, ArraySet)
    _, targets = next(iter(data.train.batches(3, CPU)))
    assert targets is None
    splits = hold_out(data, 0.25)
    assert (len(splits.train), len(splits.heldout)) == (6, 2)


def test_pictures_in_train_and_val_are_used_as_such(pictures: Path) -> None:
    (pictures / "a").rename(pictures / "train")
    (pictures / "aa").rename(pictures / "val")
    data = load_data(f"images:{pictures}", SHAPE)
    assert (len(data.train), len(data.test)) == (3, 3)


@pytest.mark.parametrize("source", ["images", "masks"])
def test_streamed_pictures_are_those_in_memory(source: str, pictures: Path, scenes: Path, monkeypatch) -> None:
    root = pictures if source == "images" else scenes
    asked = {"resize": 9}
    in_memory = load_data(f"{source}:{root}", SHAPE, workers=0, asked=asked)
    monkeypatch.setattr(picture_sets, "_IN_MEMORY_BYTES", 0)
    streamed = load_data(f"{source}:{root}", SHAPE, workers=0, asked=asked)
    assert isinstance(streamed.train, StreamedSet)
    assert streamed.classes == in_memory.classes
    for (one, truth), (other, same) in zip(in_memory.train.batches(4, CPU), streamed.train.batches(4, CPU), strict=True):
        assert torch.equal(one.only, other.only)
        assert (truth is None and same is None) or torch.equal(truth, same)
    assert [len(batch) for batch, _ in streamed.train.batches(4, CPU, Order(0), streamed.augmentation)] == [4, 4]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_mask_is_cropped_and_mirrored_with_its_picture(scenes: Path, streamed: bool, monkeypatch) -> None:
    if streamed:
        monkeypatch.setattr(picture_sets, "_IN_MEMORY_BYTES", 0)
    data = load_data(f"masks:{scenes}", SHAPE, workers=0, asked={"resize": 10, "mean": (0.0,), "std": (1.0,)})
    assert (data.default_task, data.classes) == ("segmentation", ["0", "1", "2"])
    for order in (None, Order(3), Order(4)):
        for inputs, masks in data.train.batches(4, CPU, order, data.augmentation):
            assert masks.dtype == torch.int64
            red = inputs.only[:, 0] > 0.6
            assert torch.equal(masks == 2, red)
            assert bool((masks == 255)[inputs.only[:, 1] > 0.3].all())
            assert bool((masks == 0).any())


def test_processes_that_share_a_batch_see_the_crops_of_one_process(scenes: Path, monkeypatch) -> None:
    monkeypatch.setattr(picture_sets, "_IN_MEMORY_BYTES", 0)
    data = load_data(f"masks:{scenes}", SHAPE, workers=0)
    (whole, masks) = next(iter(data.train.batches(8, CPU, Order(1), data.augmentation)))
    for rank in (0, 1):
        (part, own) = next(iter(data.train.batches(8, CPU, Order(1, rank=rank, world=2), data.augmentation)))
        assert torch.equal(part.only, whole.only[rank::2])
        assert torch.equal(own, masks[rank::2])


def test_palettes_and_single_channels_are_classes(scenes: Path) -> None:
    masks = scenes / "masks" / "day"
    with Image.open(masks / "0.png") as image:
        values = np.array(image)
    indexed = Image.fromarray(values)
    indexed.putpalette([7 * number % 256 for number in range(768)])
    assert indexed.mode == "P"
    indexed.save(masks / "0.png")
    Image.fromarray(np.stack([values] * 3, 2)).save(masks / "1.png")
    Image.fromarray(values == 2).save(masks / "2.png")
    data = load_data(f"masks:{scenes}", SHAPE)
    _, truth = next(iter(data.train.batches(3, CPU)))
    assert truth[0].unique().tolist() == truth[1].unique().tolist() == [0, 2, 255]
    assert truth[2].unique().tolist() == [0, 1]


def test_a_grey_network_gets_grey_pictures(pictures: Path) -> None:
    Image.new("RGB", (8, 8), (200, 100, 50)).save(pictures / "0.png")
    data = load_data(f"images:{pictures}", (1, 8, 8), asked={"mean": (0.0,), "std": (1.0,), "value_range": (0.0, 255.0)})
    assert data.preprocessing is not None
    assert data.preprocessing.channels == "grey"
    first = next(iter(data.train.batches(1, CPU)))[0].only
    with Image.open(pictures / "0.png") as image:
        assert first.unique().tolist() == pytest.approx([float(image.convert("L").getpixel((0, 0)))])
    with pytest.raises(InputError, match="the network takes 4 channels"):
        load_data(f"images:{pictures}", (4, 8, 8))


def test_grey_is_that_of_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.array_equal(in_order(torch.from_numpy(pixels).permute(2, 0, 1)[None], "grey")[0, 0].numpy(), grey)


@pytest.mark.parametrize(
    ("asked", "left", "right"),
    [({"crop": "none"}, 0, 255), ({"resize": 8}, 64, 191), ({"resize": 32}, 120, 136)],
)
def test_pictures_are_resized_and_cropped_as_asked_for(asked: dict, left: int, right: int) -> None:
    ramp = np.tile(np.linspace(0, 255, 16, dtype=np.uint8), (8, 1))
    fitted = np.asarray(Fitting(Preprocessing.of(SHAPE, {**asked, "interpolation": "nearest"}))(Image.fromarray(ramp)))
    assert fitted.shape == (8, 8)
    assert abs(int(fitted[0, 0]) - left) < 20
    assert abs(int(fitted[0, -1]) - right) < 20


def rename(root: Path) -> None:
    (root / "masks" / "day" / "3.png").rename(root / "masks" / "day" / "other.png")


def shrink(root: Path) -> None:
    Image.new("L", (4, 4)).save(root / "masks" / "day" / "3.png")


def colour(root: Path) -> None:
    Image.new("RGB", (16, 10), (0, 128, 255)).save(root / "masks" / "day" / "3.png")


def deep(root: Path) -> None:
    Image.fromarray(np.full((10, 16), 700, np.uint16)).save(root / "masks" / "day" / "3.png")


def jpeg(root: Path) -> None:
    (root / "masks" / "day" / "3.png").unlink()
    Image.new("L", (16, 10)).save(root / "masks" / "day" / "3.jpg")


def cut(root: Path) -> None:
    path = root / "masks" / "day" / "3.png"
    path.write_bytes(path.read_bytes()[:40])


def black_and_white(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        Image.fromarray(np.where(np.arange(160).reshape(10, 16) % 16 < 8, 0, 255).astype(np.uint8)).save(path)


def twice(root: Path) -> None:
    Image.new("RGB", (16, 10)).save(root / "images" / "day" / "3.png")


def no_masks(root: Path) -> None:
    (root / "masks").rename(root / "labels")


def no_files(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        path.unlink()


def two_left(root: Path) -> None:
    for path in [*(root / "masks").rglob("*.*"), *(root / "images").rglob("*.*")]:
        if path.stem not in "01":
            path.unlink()


FAULTS = {
    "a picture without its mask": (rename, r"1 image without mask: .*images/day/3\.bmp"),
    "a mask of another size": (shrink, r"the mask .*3\.png has 4 × 4 pixels; its image .*3\.bmp has 16 × 10"),
    "colours": (colour, r"cannot read the mask .*3\.png: it has colours \(RGB\); expected one channel"),
    "values over 255": (deep, r"3\.png: it has values outside of 0 to 255"),
    "a JPEG as a mask": (jpeg, r"3\.jpg: it is a JPEG, which does not keep the values of a mask"),
    "a truncated mask": (cut, r"cannot read the mask .*3\.png"),
    "white instead of 1": (black_and_white, r"have only the values 0, 255, of which 255 is ignored"),
    "two pictures of one name": (twice, r"two files of one name: .*3\.bmp and .*3\.png"),
    "no folder of masks": (no_masks, r"folder .*masks does not exist"),
    "an empty folder of masks": (no_files, r"no pictures below .*masks"),
    "two pictures": (two_left, r"has 2 samples; expected 3 or more"),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("what", FAULTS)
def test_masks_that_do_not_fit_are_named(what: str, streamed: bool, scenes: Path, monkeypatch) -> None:
    if streamed:
        monkeypatch.setattr(picture_sets, "_IN_MEMORY_BYTES", 0)
    spoil, message = FAULTS[what]
    spoil(scenes)
    with pytest.raises(InputError, match=message):
        read_all(load_data(f"masks:{scenes}", SHAPE, workers=0))


def read_all(data: ImageData) -> None:
    for part in (data.train, data.test):
        list(part.batches(4, CPU))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_pair_that_cannot_be_read_is_left_out_where_that_is_allowed(scenes: Path, streamed: bool, monkeypatch) -> None:
    if streamed:
        monkeypatch.setattr(picture_sets, "_IN_MEMORY_BYTES", 0)
    cut(scenes)
    (scenes / "images" / "day" / "5.bmp").write_bytes(b"")
    data = load_data(f"masks:{scenes}", SHAPE, workers=0, max_bad=2)
    assert len(data.train) + len(data.test) == 8
    assert len(data.skipped) == 2
    assert "left out 2 unreadable images" in data.warnings[0]
    read_all(data)


@pytest.mark.parametrize(
    ("source", "shape", "asked", "kind", "message"),
    [
        ("images:nowhere", SHAPE, {}, InputError, "folder nowhere does not exist"),
        ("images:", SHAPE, {}, UsageError, "--data images needs a folder"),
        ("images:pictures", (1, 160), {}, InputError, "the network takes inputs of shape"),
        ("images:pictures", SHAPE, {"resize": 4}, UsageError, "resized to 4 pixels are smaller than the crop of 8 × 8"),
        ("images:pictures", SHAPE, {"mean": (0.5, 0.5)}, UsageError, "mean has 2 numbers and std 3"),
        ("images:pictures", SHAPE, {"channels": "grey"}, InputError, "given as GREY; the network takes 3 channels"),
        ("digits", SHAPE, {"resize": 9}, UsageError, "--resize and --crop need picture files"),
    ],
)
def test_pictures_that_cannot_be_used_are_refused(
    source: str, shape: tuple, asked: dict, kind: type[LrexportError], message: str, pictures: Path, monkeypatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    with pytest.raises(kind, match=message):
        load_data(source, shape, asked=asked)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no pictures")
    with pytest.raises(InputError, match="no pictures below"):
        load_data(f"images:{tmp_path}", SHAPE)

"""Image folders: in memory and streamed, and everything that can be wrong with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrexport.data.augment import Augmentation
from lrexport.data.datasets import load_data
from lrexport.data.folder import load_folder
from lrexport.data.images import MEAN, STD, ArraySet, Normalisation
from lrexport.data.order import Order
from lrexport.data.streamed import StreamedSet
from lrexport.errors import InputError, UsageError
from lrexport.torch_tools.import_torchvision import torchvision

SHAPE = (3, 16, 16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("cat $(id)", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                pixels[0, 0] = 100 * label
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path


def test_a_folder_is_decoded_once_into_memory(root: Path) -> None:
    data = load_data(f"folder:{root}", SHAPE)
    assert data.classes == ["cat $(id)", "dog"]
    assert isinstance(data.train, ArraySet)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert (data.test.images[:, 0, 0, 0] == 100 * data.test.labels).all()


def test_images_of_another_size_are_resized_and_cropped(root: Path) -> None:
    Image.new("RGB", (64, 32), (10, 20, 30)).save(root / "train" / "dog" / "wide.png")
    data = load_data(f"folder:{root}", SHAPE)
    assert data.train.images[-1].flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 30]


def test_a_streamed_set_gives_what_the_one_in_memory_gives(root: Path) -> None:
    in_memory, streamed = (load_folder("x", root, SHAPE, in_memory=way) for way in (True, False))
    (wanted, labels), (found, same) = (next(iter(way.test.batches(4, torch.device("cpu")))) for way in (in_memory, streamed))
    wanted, found = wanted.only, found.only
    assert torch.equal(labels, same)
    assert found.shape == wanted.shape
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    assert float(((found * std + mean).clamp(0, 1) - (found * std + mean)).abs().max()) < 1e-6
    assert streamed.train.subset(torch.tensor([5])).labels.tolist() == [1]
    assert not list(streamed.train.subset(torch.tensor([], dtype=torch.int64)).batches(4, torch.device("cpu")))
    shuffled = list(streamed.train.batches(4, torch.device("cpu"), Order(0), streamed.augmentation))
    assert [tuple(batch.only.shape) for batch, _ in shuffled] == [(4, 3, 16, 16)] * 2


def test_streamed_crops_depend_on_the_image_alone_not_on_who_reads_it(root: Path) -> None:
    train = load_folder("x", root, SHAPE, in_memory=False).train

    def batches(order: Order, workers: int) -> list[torch.Tensor]:
        part = replace(train, workers=workers)
        return [batch.only for batch, _ in part.batches(4, torch.device("cpu"), order, Augmentation(0, flip=True))]

    whole = batches(Order(3, epoch=1), workers=2)
    for found, wanted in zip(batches(Order(3, epoch=1), workers=0), whole, strict=True):
        assert torch.equal(found, wanted)
    (late,) = batches(Order(3, epoch=1, first=1), workers=1)  # as a run that was stopped goes on
    assert torch.equal(late, whole[1])
    for rank in (0, 1):  # as two processes share a batch
        for found, wanted in zip(batches(Order(3, 1, rank=rank, world=2), workers=0), whole, strict=True):
            assert torch.equal(found, wanted[rank::2])
    assert not torch.equal(batches(Order(3, epoch=2), workers=0)[0], whole[0])


@pytest.mark.parametrize("shape", [(3, 32, 64), (3, 64, 32), (3, 1, 7), (3, 16, 16)], ids=str)
@pytest.mark.parametrize("size", [(40, 40), (64, 32), (32, 64), (300, 7), (5, 5)], ids=str)
def test_a_crop_of_any_shape_lies_inside_the_image(root: Path, shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    for path in (root / "val").rglob("*.png"):
        Image.new("RGB", size, (128, 128, 128)).save(path)
    test = load_folder("x", root, shape, in_memory=False, workers=0).test
    (batch, _) = next(iter(test.batches(4, torch.device("cpu"))))
    images = batch.only
    assert images.shape[1:] == shape
    assert len(images.transpose(0, 1).flatten(1).unique(dim=1).T) == 1  # the grey of the image, and nothing beside it


@pytest.mark.parametrize("size", [(40, 40), (61, 37), (37, 61), (500, 331), (9, 200)], ids=str)
def test_a_square_crop_is_torchvision_s_resize_and_centre_crop(root: Path, size: tuple[int, int]) -> None:
    transforms = torchvision("transforms.v2")
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "val" / "dog" / "1.png")
    for side in (7, 16, 28):
        test = load_folder("x", root, (3, side, side), in_memory=False, workers=0).test
        (batch, _) = next(iter(test.batches(4, torch.device("cpu"))))
        images = batch.only
        steps = [transforms.Resize(round(side * 256 / 224)), transforms.CenterCrop(side), transforms.PILToTensor()]
        wanted = transforms.Compose(steps)(Image.fromarray(pixels))
        assert torch.equal(images[3], Normalisation(MEAN, STD, torch.device("cpu"))(wanted[None])[0])


def test_a_damaged_image_is_named(root: Path) -> None:
    (root / "train" / "dog" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(InputError, match=r"dog/2\.png"):
        load_data(f"folder:{root}", SHAPE)


def test_images_that_are_left_out_leave_the_order_of_the_others_in_memory_and_streamed(root: Path) -> None:
    (root / "train" / "dog" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    in_memory, streamed = (load_folder("x", root, SHAPE, in_memory=way, workers=0, max_bad=1) for way in (True, False))
    for data in (in_memory, streamed):
        assert data.skipped == ("train/dog/2.png",)
        assert data.train.labels.tolist() == [0] * 4 + [1] * 3
    assert isinstance(in_memory.train, ArraySet)
    assert isinstance(streamed.train, StreamedSet)
    for (path, _), pixels in zip(streamed.train.files, in_memory.train.images, strict=True):
        assert torch.equal(torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1), pixels)


def test_an_empty_class_is_named(root: Path) -> None:
    (root / "train" / "emu").mkdir()
    (root / "val" / "emu").mkdir()
    with pytest.raises(InputError, match="train/emu has no images"):
        load_data(f"folder:{root}", SHAPE)


def test_parts_with_different_classes_are_named(root: Path) -> None:
    (root / "val" / "dog").rename(root / "val" / "dogs")
    with pytest.raises(InputError, match="dog only in train, dogs only in val"):
        load_data(f"folder:{root}", SHAPE)


def test_a_single_class_a_missing_part_and_a_missing_root_are_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train and val"):
        load_data(f"folder:{root / 'train'}", SHAPE)
    with pytest.raises(UsageError, match="needs a folder"):
        load_data("folder", SHAPE)
    for part in ("train", "val"):
        (root / part / "dog").rename(root / f"{part}-dog")
    with pytest.raises(InputError, match="expected at least two"):
        load_data(f"folder:{root}", SHAPE)


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UsageError, match="cifar10"):
        load_data("cifar01", SHAPE)


def test_cifar_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--download"):
        load_data(f"cifar10:{tmp_path}", (3, 32, 32))


def test_cifar_in_torchvisions_own_format_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    dataset = torchvision("datasets").CIFAR10
    folder = tmp_path / dataset.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    for name, _ in (*dataset.train_list, *dataset.test_list):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3]}))
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    monkeypatch.setattr(dataset, "_check_integrity", lambda self: True)  # the real files' checksums
    monkeypatch.setitem(dataset.meta, "md5", None)
    data = load_data(f"cifar10:{tmp_path}", (3, 32, 32))
    assert len(data.train) == 20
    assert torch.equal(data.test.images, torch.from_numpy(pixels).view(4, 3, 32, 32))

"""Held-out parts, batches and augmentation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrexport.data import datasets
from lrexport.data.augment import Augmentation
from lrexport.data.datasets import load_data
from lrexport.data.images import ArraySet, ImageData, hold_out
from lrexport.data.order import Order, Purpose, seed_of
from lrexport.errors import InputError

CPU = torch.device("cpu")


def numbered(count: int, classes: int, size: int = 4) -> ArraySet:
    """Images whose pixels say which one they are."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous()
    return ArraySet(images, torch.arange(count) % classes, (0.0,) * 3, (1 / 255,) * 3)


def data(count: int, classes: int) -> ImageData:
    return ImageData("numbered", [str(label) for label in range(classes)], numbered(count, classes), numbered(4, classes))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(20, 200), classes=st.integers(2, 5), share=st.floats(0.05, 0.5), seed=st.integers(0, 9))
def test_held_out_images_are_balanced_and_never_trained_on(count: int, classes: int, share: float, seed: int) -> None:
    splits = hold_out(data(count, classes), share, seed=seed)
    train, heldout = (set(part.images[:, 0, 0, 0].tolist()) for part in (splits.train, splits.heldout))
    assert not train & heldout
    assert len(train) + len(heldout) == count
    counts = splits.heldout.labels.bincount(minlength=classes)
    assert int(counts.max() - counts.min()) <= 1
    again = hold_out(data(count, classes), share, seed=seed)
    assert torch.equal(again.heldout.images, splits.heldout.images)


def test_a_class_with_a_single_image_is_refused() -> None:
    lonely = ImageData(
        "x", ["a", "b"], ArraySet(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1])), numbered(4, 2)
    )
    with pytest.raises(InputError, match="class 'b'"):
        hold_out(lonely)


def test_batches_are_normalised_and_complete() -> None:
    images = torch.randint(0, 256, (10, 3, 5, 5), dtype=torch.uint8)
    part = ArraySet(images, torch.arange(10), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    found = torch.cat([batch.only for batch, _ in part.batches(4, CPU)])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    torch.testing.assert_close(found, (images / 255 - mean) / std)


def test_a_shuffled_epoch_shows_every_image_once_in_an_order_set_by_the_seed() -> None:
    part = numbered(40, 2)

    def epoch(seed: int) -> list[int]:
        return [int(v) for batch, _ in part.batches(16, CPU, Order(seed)) for v in batch.only[:, 0, 0, 0].round()]

    assert sorted(epoch(0)) == list(range(40))
    assert epoch(0) == epoch(0) != epoch(1)


def test_no_two_purposes_share_random_numbers_not_even_at_the_first_step() -> None:
    """To the generator of seeds trailing zeros are nothing: epoch 0, step 0 and process 0 are where they could meet."""
    seeds = [seed_of(Purpose.STAGE, 0, 0), seed_of(Purpose.ORDER, 0, 0)]
    seeds += [seed_of(Purpose.AUGMENTATION, 0, 0, 0), seed_of(Purpose.DROPOUT, 0, 0, 0, 0)]
    assert len(set(seeds)) == len(seeds)
    order, images = Order(0), torch.arange(16, dtype=torch.uint8).expand(4096, 3, 1, 16).contiguous()
    shift = Augmentation(padding=2, flip=False)(images, order.generator(Purpose.AUGMENTATION, 0))[:, 0, 0, 8].double()
    places = torch.cat([batch for _, batch in order.batches(4096, 4096)]).double()
    assert abs(float(torch.corrcoef(torch.stack([shift, places]))[0, 1])) < 0.05


def test_every_image_is_cropped_at_its_own_offset_and_is_a_window_of_the_padded_image() -> None:
    images = torch.randint(1, 256, (64, 3, 8, 8), dtype=torch.uint8)
    out = Augmentation(padding=2, flip=False)(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    offsets = set()
    for index in range(64):
        windows = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(out[index], padded[index, :, y : y + 8, x : x + 8])
        ]
        assert len(windows) == 1
        offsets.add(windows[0])
    assert len(offsets) > 15  # of 25: an offset for the whole batch would be one


def test_about_half_of_the_images_are_mirrored() -> None:
    images = torch.arange(8, dtype=torch.uint8).expand(400, 3, 8, 8)
    out = Augmentation(padding=0, flip=True)(images, torch.Generator().manual_seed(0))
    mirrored = (out[:, 0, 0, 0] == 7).sum().item()
    assert 150 < mirrored < 250
    assert set(out[:, 0, 0, 0].tolist()) == {0, 7}


def test_the_embedded_digits_are_those_of_scikit_learn_with_its_datasets_and_without(monkeypatch) -> None:
    from sklearn.datasets import load_digits  # a second's imports, for this alone

    known = load_digits()
    for place in ("found", "elsewhere"):
        if place == "elsewhere":
            monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda _name: None)
        data = load_data("digits", (1, 8, 8))
        is_test = torch.arange(len(known.target)) % 5 == 4
        for part, chosen in ((data.train, ~is_test), (data.test, is_test)):
            expected = torch.from_numpy(known.images)[chosen].mul(255 / 16).round().to(torch.uint8)
            assert torch.equal(part.images[:, 0], expected)
            assert torch.equal(part.labels, torch.from_numpy(known.target)[chosen])


def test_the_embedded_digits_fit_the_network_that_asks() -> None:
    digits = load_data("digits", (3, 32, 32))
    assert len(digits.train) + len(digits.test) == 1797
    assert tuple(digits.train.images.shape[1:]) == (3, 32, 32)
    assert digits.train.images.max() > 250
    assert load_data("digits", (1, 8, 8)).train.images.shape[1:] == (1, 8, 8)
    assert digits.augmentation is not None
    assert not digits.augmentation.flip


@given(images=st.integers(1, 90), size=st.integers(1, 40), world=st.integers(1, 4), portions=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_processes_share_the_batches_of_one_and_nothing_else(images: int, size: int, world: int, portions: int) -> None:
    pixels = torch.randint(0, 256, (images, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part, vary = ArraySet(pixels, torch.arange(images)), Augmentation(padding=2, flip=True)
    orders = [Order(1, 2, rank=rank, world=world, portions=portions) for rank in range(world)]
    alone = list(part.batches(size, CPU, Order(1, 2), vary))
    for rank, order in enumerate(orders):
        mine = list(part.batches(size, CPU, order, vary))
        assert len(mine) == order.steps(images, size) <= len(alone)
        for (varied, labels), (all_varied, all_labels) in zip(mine, alone, strict=False):
            places = order.part(len(all_labels))
            assert torch.equal(labels, all_labels[places])
            assert torch.equal(varied.only, all_varied.only[places])
            assert order.sizes(len(all_labels)) == [len(p[rank::world]) for p in all_labels.tensor_split(portions)]
    for number in range(orders[0].steps(images, size)):
        together = torch.cat([order.part(len(alone[number][1])) for order in orders])
        assert together.sort().values.tolist() == list(range(len(alone[number][1])))

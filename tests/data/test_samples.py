"""Samples of any shape: what users' callables and arrays give, and how it becomes batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from lrexport.data import callables
from lrexport.data.datasets import load_data
from lrexport.data.images import ArraySet, ImageData, hold_out
from lrexport.data.item_set import ItemSet
from lrexport.data.order import Order
from lrexport.data.tensor_set import TensorSet
from lrexport.errors import InputError, UsageError
from lrexport.signature import Signature

CPU = torch.device("cpu")
PAIR = Signature.of({"image": (3, 4, 4), "state": (2,)})
TOKENS = Signature.of({"tokens": "5:int64:0..9"})


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch):
    """Loads what a callable returns as data for a network of some inputs."""

    def load(made: object, inputs: Signature | tuple[int, ...], **asked: object) -> ImageData:
        monkeypatch.setattr(callables, "import_callable", lambda *_, **__: lambda: made)
        return load_data("mine:make", inputs, asked=asked)

    return load


def numbers(count: int, *shape: int) -> torch.Tensor:
    """Samples whose values say which they are."""
    return torch.arange(count, dtype=torch.float32).view(-1, *(1 for _ in shape)).expand(count, *shape).contiguous()


@pytest.mark.parametrize(
    "made",
    [
        numbers(10, 7),
        list(numbers(10, 7)),
        [(sample,) for sample in numbers(10, 7)],
        [{"sound": sample} for sample in numbers(10, 7)],
        [sample.numpy() for sample in numbers(10, 7)],
        iter(numbers(10, 7)),
        TensorDataset(numbers(10, 7)),
        {"sound": numbers(10, 7)},
    ],
    ids=["a tensor", "a list", "tuples", "dicts", "arrays", "a stream", "a TensorDataset", "a dict of tensors"],
)
def test_every_fifth_sample_of_one_data_set_without_targets_is_a_test_sample(given, made: object) -> None:
    data = given(made, (7,))
    assert data.default_task == "fidelity"
    assert (len(data.classes), data.mean, data.preprocessing) == (0, (), None)
    (inputs, targets) = next(iter(data.test.batches(9, CPU)))
    assert targets is None
    assert inputs.only[:, 0].tolist() == [4, 9]
    assert [len(batch) for batch, _ in data.train.batches(3, CPU)] == [3, 3, 2]


@pytest.mark.parametrize(
    "form", ["a dict", "a tuple", "a flat tuple with the target", "inputs and target", "a dict with it"]
)
def test_several_inputs_are_given_by_name_or_in_order(given, form: str) -> None:
    image, state = torch.rand(3, 4, 4), torch.rand(2)
    item = {
        "a dict": {"state": state, "image": image},
        "a tuple": (image, state),
        "a flat tuple with the target": (image, state, 1),
        "inputs and target": ({"image": image, "state": state}, 1),
        "a dict with it": {"image": image, "state": state, "target": 1},
    }[form]
    data = given([item] * 6, PAIR)
    inputs, targets = next(iter(data.train.batches(4, CPU)))
    assert inputs.names == ("image", "state")
    assert torch.equal(inputs.tensors[0][2], image)
    assert torch.equal(inputs.tensors[1][3], state)
    if form in ("a dict", "a tuple"):
        assert targets is None
        assert data.default_task == "fidelity"
    else:
        assert targets.tolist() == [1] * 4
        assert (data.default_task, data.classes) == ("classification", ["0", "1"])


TARGETS = {
    "classification": (3, torch.int64, (2,)),
    "segmentation": (torch.ones(4, 4, dtype=torch.uint8), torch.int64, (2, 4, 4)),
    "image": (torch.rand(3, 8, 8), torch.float32, (2, 3, 8, 8)),
}


@pytest.mark.parametrize("task", TARGETS)
def test_the_task_is_that_of_the_targets(given, task: str) -> None:
    target, dtype, shape = TARGETS[task]
    data = given([(torch.rand(3, 4, 4), target)] * 6, (3, 4, 4))
    assert data.default_task == task
    _, targets = next(iter(data.train.batches(2, CPU)))
    assert (targets.dtype, tuple(targets.shape)) == (dtype, shape)


def test_targets_of_a_detector_stay_a_list(given) -> None:
    boxes = {"boxes": torch.rand(2, 4), "labels": torch.tensor([1, 2])}
    data = given([(torch.rand(3, 4, 4), boxes)] * 6, (3, 4, 4))
    assert data.default_task == "detection"
    _, targets = next(iter(data.train.batches(2, CPU)))
    assert [each["labels"].tolist() for each in targets] == [[1, 2]] * 2


def test_targets_of_unknown_meaning_leave_the_task_to_the_user(given) -> None:
    assert given([(torch.rand(7), 0.5)] * 6, (7,)).default_task is None


def test_uint8_pictures_with_classes_are_what_they_were(given) -> None:
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    part = [(image, index % 2) for index, image in enumerate(images)]
    data = given((part, part), (3, 4, 4))
    assert isinstance(data.train, ArraySet)
    assert data.train.digest() == ArraySet(images, torch.arange(6) % 2).digest()
    assert data.preprocessing is not None
    assert data.preprocessing.origin == "default"


def test_uint8_pictures_are_normalised_as_asked_for_and_floats_are_left_alone(given) -> None:
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    data = given(images, (3, 4, 4), mean=(0.0,), std=(1.0,), value_range=(0.0, 255.0), channels="bgr")
    inputs, _ = next(iter(data.train.batches(5, CPU)))
    torch.testing.assert_close(inputs.only, images[[0, 1, 2, 3, 5]].flip(1).float())
    floats = given(images.float(), (3, 4, 4))
    assert torch.equal(next(iter(floats.train.batches(1, CPU)))[0].only, images[:1].float())
    with pytest.raises(UsageError, match="need uint8 pictures"):
        given(images.float(), (3, 4, 4), mean=(0.0,))


def test_an_iterable_data_set_of_torch_is_read_once(given) -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(list(numbers(10, 7)))

    assert len(given(Stream(), (7,)).train) == 8


def test_the_users_collate_fn_makes_the_batches(given) -> None:
    class Ragged(list):
        @staticmethod
        def collate_fn(items):
            padded = torch.zeros(len(items), 5, dtype=torch.int64)
            for row, (tokens, _) in zip(padded, items, strict=True):
                row[: len(tokens)] = torch.tensor(tokens)
            return padded, torch.tensor([label for _, label in items])

    data = given(Ragged([([1] * (index % 4 + 1), index % 2) for index in range(20)]), TOKENS)
    assert isinstance(data.train, ItemSet)
    assert data.default_task == "classification"
    assert data.train.labels.bincount().tolist() == [8, 8]
    splits = hold_out(data, 0.25)
    assert splits.heldout.labels.bincount().tolist() == [2, 2]
    inputs, labels = next(iter(splits.train.batches(4, CPU, Order(0))))
    assert tuple(inputs.only.shape) == (4, 5)
    assert labels.dtype == torch.int64
    assert splits.train.digest() == hold_out(data, 0.25).train.digest()


def test_samples_of_a_large_set_are_read_when_they_are_needed(given, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [(sample, index % 3) for index, sample in enumerate(torch.rand(30, 3, 4, 4))]
    small = given(pair, (3, 4, 4))
    monkeypatch.setattr(callables, "_IN_MEMORY_BYTES", 100)
    large = given(pair, (3, 4, 4))
    assert isinstance(small.train, TensorSet)
    assert isinstance(large.train, ItemSet)
    assert large.classes == small.classes
    for order in (None, Order(1)):
        batches = [list(part.train.batches(7, CPU, order)) for part in (small, large)]
        for (one, labels), (other, same) in zip(*batches, strict=True):
            assert torch.equal(one.only, other.only)
            assert torch.equal(labels, same)


def test_a_network_may_change_its_input_without_changing_the_data(given) -> None:
    data = given(torch.ones(10, 7), (7,))
    for batch, _ in data.train.batches(4, CPU):
        batch.only.zero_()
    assert all(bool(batch.only.all()) for batch, _ in data.train.batches(4, CPU))


def test_samples_without_classes_are_held_out_at_random(given) -> None:
    splits = hold_out(given(numbers(100, 7), (7,)), 0.1, seed=3)
    train, heldout = (
        {float(x) for b, _ in part.batches(99, CPU) for x in b.only[:, 0]} for part in (splits.train, splits.heldout)
    )
    assert (len(train), len(heldout)) == (72, 8)
    assert not train & heldout
    assert len(hold_out(given(numbers(100, 7), (7,)), 0.1, seed=4).heldout) == 8


def test_arrays_of_a_file_are_inputs_by_name_with_a_target(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, image=np.zeros((10, 3, 4, 4)), state=np.ones((10, 2), np.float16), target=np.arange(10) % 2)
    data = load_data(f"arrays:{path}", PAIR)
    assert (data.default_task, data.classes, len(data.train), len(data.test)) == ("classification", ["0", "1"], 8, 2)
    inputs, labels = next(iter(data.test.batches(2, CPU)))
    assert [tensor.dtype for tensor in inputs.tensors] == [torch.float32] * 2
    assert labels.tolist() == [0, 1]


def test_targets_of_text_name_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((6, 7)), target=np.array(["dog", "cat", "dog", "cat", "ant", "ant"]))
    data = load_data(f"arrays:{path}", (7,))
    assert data.classes == ["ant", "cat", "dog"]
    assert next(iter(data.train.batches(9, CPU)))[1].tolist() == [2, 1, 2, 1, 0]


def test_tokens_out_of_the_networks_range_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", tokens=np.full((6, 5), 10))
    with pytest.raises(InputError, match="values from 10 to 10; expected 0 to 9"):
        load_data(f"arrays:{tmp_path / 'data.npz'}", TOKENS)


def test_an_image_data_says_its_own_preprocessing(given) -> None:
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    part = ArraySet(images, torch.arange(6) % 2, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    made = ImageData("x", ["a", "b"], part, part)
    data = given(made, (3, 4, 4))
    assert data.preprocessing is not None
    assert (data.preprocessing.mean, data.preprocessing.origin) == ((0.1, 0.2, 0.3), "data")
    with pytest.raises(UsageError, match="returned an ImageData"):
        given(made, (3, 4, 4), mean=(0.5,))


def test_a_label_beside_an_input_is_its_target_and_anything_else_is_refused(given) -> None:
    data = given([{"pixel_values": torch.rand(7), "labels": index % 2} for index in range(6)], (7,))
    assert data.default_task == "classification"
    with pytest.raises(InputError, match="has 'image', 'state', 'depth'; the network takes 'image', 'state'"):
        given([{"image": torch.rand(3, 4, 4), "state": torch.rand(2), "depth": torch.rand(1)}] * 6, PAIR)
    with pytest.raises(InputError, match="has 'x', 'label', 'target'"):
        given([{"x": torch.rand(7), "label": 1, "target": 1}] * 6, (7,))

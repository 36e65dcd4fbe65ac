"""What int8 leaves of networks that are no classifiers, without any label."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from lrexport.data.images import ArraySet
from lrexport.errors import InputError
from lrexport.formats.int8 import quantise_onnx
from lrexport.formats.int8_agreement import compare_int8
from lrexport.formats.onnx import export_onnx
from lrexport.measure.latency import session
from lrexport.torch_tools.batch import Batch

SHAPE = (3, 16, 16)


class Heads(nn.Module):
    """An image, class scores of the whole, and a map of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.image, self.scores = nn.Conv2d(16, 3, 1), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        image = self.image(x)
        return {"image": image, "scores": self.scores(x.mean((2, 3))), "classes": image.argmax(1)}


class Unlabelled:
    """Random inputs of any network, without targets."""

    def __init__(self, *shapes: tuple[int, ...], count: int = 40) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batch = Batch(tuple(torch.randn(count, *shape, generator=generator) for shape in shapes))

    def __len__(self) -> int:
        return len(self.batch)

    def batches(self, size: int, _device: torch.device) -> Iterator[tuple[Batch, None]]:
        for part in self.batch.split(size):
            yield part, None


def _images() -> ArraySet:
    pixels = torch.randint(256, (40, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ArraySet(pixels, torch.zeros(40, dtype=torch.long))


@pytest.mark.parametrize("batch", [1, 7, None])
def test_each_output_is_compared_by_what_it_is(tmp_path: Path, batch: int | None) -> None:
    source = export_onnx(Heads(), tmp_path / "m.onnx", SHAPE, batch=batch).path
    done = quantise_onnx(source, tmp_path / "q.onnx", _images())
    assert {*done.agreement.same} == {"scores", "classes"}
    assert {*done.agreement.sqnr_db} == {"image"}
    assert min(done.agreement.same.values()) > 0.8
    assert done.agreement.sqnr_db["image"] > 20


def test_sqnr_is_the_signal_over_the_error_of_all_inputs(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    source = export_onnx(network, tmp_path / "m.onnx", SHAPE, batch=3).path  # 40 is no multiple of 3
    images = Unlabelled(SHAPE)
    done = quantise_onnx(source, tmp_path / "q.onnx", images)  # type: ignore[arg-type]  # what a set has to have
    files = [session(tmp_path / name) for name in ("m.onnx", "q.onnx")]
    padded = np.concatenate([images.batch.only.numpy(), np.zeros((2, *SHAPE), np.float32)])
    one, other = (
        np.concatenate([file.run(None, {"input": padded[at : at + 3]})[0] for at in range(0, 42, 3)])[:40] for file in files
    )
    expected = 10 * np.log10((one.astype(float) ** 2).sum() / ((one - other).astype(float) ** 2).sum())
    assert done.agreement.sqnr_db == {"output": pytest.approx(expected, abs=0.01)}


def test_several_inputs_are_calibrated_together(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = nn.Linear(12, 32), nn.Linear(5, 32), nn.Linear(32, 4)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return self.last((self.one(first) + self.two(second)).relu()).tanh()[:, :, None]

    source = export_onnx(Two(), tmp_path / "m.onnx", (torch.randn(2, 12), torch.randn(2, 5))).path
    done = quantise_onnx(source, tmp_path / "q.onnx", Unlabelled((12,), (5,)))  # type: ignore[arg-type]
    assert done.agreement.sqnr_db["output"] > 20


def _with_noise(path: Path, share: float) -> onnx.ModelProto:
    """The file with noise in every weight, ``share`` of the weight's own spread."""
    model, generator = onnx.load(str(path)), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim > 1:
            noisy = values + share * values.std() * generator.standard_normal(values.shape)
            tensor.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    return model


def test_little_that_is_left_is_refused_with_how_much(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    source = export_onnx(network, tmp_path / "m.onnx", SHAPE).path
    assert compare_int8(source, _with_noise(source, 0.01), _images()).sqnr_db["output"] > 25
    with pytest.raises(InputError, match=r"in int8 little is left of m\.onnx: its error on 40 calibration inputs is \d+ %"):
        compare_int8(source, _with_noise(source, 3.0), _images())


def test_a_large_mean_does_not_hide_that_nothing_is_left(tmp_path: Path) -> None:
    """The mean alone is 40 dB above the error of a network that returns nothing else."""

    class Bright(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 100 + self.body(x)

    source = export_onnx(Bright(), tmp_path / "m.onnx", SHAPE).path
    with pytest.raises(InputError, match="little is left"):
        compare_int8(source, _with_noise(source, 3.0), _images())


def test_a_file_with_free_sizes_is_quantised_and_counted_at_those_of_the_network(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    done = export_onnx(network, tmp_path / "m.onnx", SHAPE, dynamic=("batch", "height", "width"))
    small = quantise_onnx(done.path, tmp_path / "q.onnx", _images(), {"input": (1, *SHAPE)})
    assert (small.cost.macs, small.cost.uncounted) == (done.cost.macs, ())
    made = session(small.path).run(None, {"input": np.zeros((2, 3, 9, 20), np.float32)})[0]
    assert made.shape == (2, 2, 9, 20)

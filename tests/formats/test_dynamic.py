"""Files with free sizes: compared with torch at other sizes, counted and timed at the network's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrexport.errors import InputError, UsageError
from lrexport.formats.dynamic import free_axes
from lrexport.formats.onnx import Exported, export_onnx
from lrexport.signature import Signature


class AnySize(nn.Module):
    """A segmenter that enlarges its small output to the size of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        small = self.head(self.body(x).relu())
        return {"out": F.interpolate(small, size=x.shape[-2:], mode="bilinear"), "classes": small.mean((2, 3))}


class UNet(nn.Module):
    """Halves twice and puts together again: sizes are multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.up, self.up_again = nn.ConvTranspose2d(8, 8, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x).relu()
        second = self.second(F.max_pool2d(first, 2)).relu()
        third = self.third(F.max_pool2d(second, 2)).relu()
        return self.head(torch.cat([first, self.up_again(torch.cat([second, self.up(third)], 1))], 1))


class OneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().flatten(1))


class OtherBranch(nn.Module):
    """Doubles what it returns for other sizes than its own: a graph has one of the two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return x if x.shape[-1] == 16 else 2 * x


class Resizing(nn.Module):
    """Resizes inputs of another size than its own: traced at its own size, that step is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != (16, 16):
            x = F.interpolate(x, size=(16, 16), mode="bilinear")
        return self.body(x).mean((2, 3))


class Sound(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv1d(2, 8, 5, padding=2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().mean(2))


class Rows(nn.Module):
    """Steps of 6 values each, one after the other: the length is the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).relu()


class Words(nn.Module):
    """Tokens with a table of 16 positions: no text is longer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(30, 8), nn.Parameter(torch.randn(16, 8)), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head((self.words(tokens) + self.places[: tokens.shape[1]]).mean(1))


class Stereo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.state = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(6, 4)

    def forward(self, left: Tensor, right: Tensor, state: Tensor) -> Tensor:
        return (self.left(left) - self.right(right)).mean((2, 3)) + self.state(state)


def _sizes(done: Exported) -> dict[str, list[Any]]:
    graph = onnx.load(done.path).graph
    return {item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in graph.input}


def _agrees(done: Exported, network: nn.Module, *inputs: Tensor) -> None:
    runtime = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    feed = {item.name: tensor.numpy() for item, tensor in zip(runtime.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        expected = network.eval()(*inputs)
    named = expected if isinstance(expected, dict) else {"output": expected}
    for name, made in zip(named, runtime.run(list(named), feed), strict=True):
        np.testing.assert_allclose(made, named[name].numpy(), rtol=1e-3, atol=1e-4)


def test_height_and_width_are_free_and_the_file_is_the_network_at_sizes_that_the_export_never_saw(tmp_path: Path) -> None:
    network = AnySize()
    done = export_onnx(network, tmp_path / "m.onnx", (3, 16, 16), dynamic=("batch", "height", "width"))
    assert _sizes(done) == {"input": ["batch", 3, "height", "width"]}
    assert done.free.sizes == ("height", "width")
    assert done.free.step == 1
    for shape in ((1, 3, 16, 16), (3, 3, 21, 34), (2, 3, 9, 50)):
        _agrees(done, network, torch.randn(shape))


@pytest.mark.slow
def test_macs_of_a_file_with_free_sizes_are_those_of_the_networks_own(tmp_path: Path) -> None:
    fixed = export_onnx(AnySize(), tmp_path / "fixed.onnx", (3, 16, 16))
    for batch, dynamic in ((1, ("height", "width")), (3, ("width",)), (None, ("batch", "height"))):
        free = export_onnx(AnySize(), tmp_path / "free.onnx", (3, 16, 16), batch=batch, dynamic=dynamic)
        assert (free.cost.macs, free.cost.uncounted) == (fixed.cost.macs, ())
        assert _sizes(free)["input"][0] == ("batch" if batch is None else batch)


def test_one_axis_alone_may_be_free(tmp_path: Path) -> None:
    done = export_onnx(AnySize(), tmp_path / "m.onnx", (3, 16, 16), dynamic=("width",))
    assert _sizes(done) == {"input": [1, 3, 16, "width"]}


@pytest.mark.slow
def test_a_network_that_takes_multiples_only_says_which(tmp_path: Path) -> None:
    network = UNet()
    done = export_onnx(network, tmp_path / "m.onnx", (3, 16, 24), dynamic=("height", "width"), batch=2)
    assert done.free.step == 4
    _agrees(done, network, torch.randn(2, 3, 44, 12))


def test_a_network_of_one_size_is_refused_with_what_torch_says_of_others(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="accepts no other height and width than its own, 3 × 16 × 16: RuntimeError"
    ) as raised:
        export_onnx(OneSize(), tmp_path / "m.onnx", (3, 16, 16), dynamic=("height", "width"))
    assert "adaptive pooling" in str(raised.value.hint)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_is_the_network_at_one_size_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a dynamic width, but 'input' was written with 16") as raised:
        export_onnx(OtherBranch(), tmp_path / "m.onnx", (3, 16, 16), dynamic=("height", "width"))
    assert "Without a dynamic height and width" in str(raised.value.hint)
    assert not [*tmp_path.iterdir()]
    assert export_onnx(OtherBranch(), tmp_path / "m.onnx", (3, 16, 16)).free.sizes == ()


def test_a_step_for_other_sizes_only_is_in_the_file(tmp_path: Path) -> None:
    network = Resizing()
    done = export_onnx(network, tmp_path / "m.onnx", (3, 16, 16), dynamic=("height", "width"))
    for shape in ((1, 3, 16, 16), (1, 3, 30, 11)):
        _agrees(done, network, torch.randn(shape))


@pytest.mark.parametrize(("network", "shape", "sizes"), [
    (Sound(), (2, 40), ["batch", 2, "length"]),
    (Rows(), (20, 6), ["batch", "length", 6]),
])  # fmt: skip
def test_the_length_of_a_sequence_is_free_wherever_the_network_has_it(
    tmp_path: Path, network: nn.Module, shape: tuple[int, int], sizes: list[Any]
) -> None:
    done = export_onnx(network, tmp_path / "m.onnx", shape, dynamic="batch,length")
    assert _sizes(done) == {"input": sizes}
    other = [size if isinstance(size, int) else 13 for size in sizes]
    _agrees(done, network, torch.randn(other))


def test_a_length_with_an_upper_limit_is_free_below_it(tmp_path: Path) -> None:
    network = Words()
    done = export_onnx(network, tmp_path / "m.onnx", Signature.parse(["tokens=16:int64:0..29"]), dynamic=("length",))
    _agrees(done, network, torch.randint(30, (1, 7)))


def test_images_of_one_size_share_it_and_other_inputs_keep_theirs(tmp_path: Path) -> None:
    network = Stereo()
    signature = Signature.of({"left": (3, 12, 12), "right": (3, 12, 12), "state": (6,)})
    done = export_onnx(network, tmp_path / "m.onnx", signature, dynamic=("batch", "height", "width"))
    image = ["batch", 3, "height", "width"]
    assert _sizes(done) == {"left": image, "right": image, "state": ["batch", 6]}
    _agrees(done, network, torch.randn(2, 3, 9, 20), torch.randn(2, 3, 9, 20), torch.randn(2, 6))


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        (("hight",), "invalid axis 'hight': expected one or more of batch, height, width, length"),
        (("length",), "no input of the network has a length: it takes 3 × 16 × 16"),
        ("", "invalid axis ''"),
    ],
)
def test_axes_that_are_none_or_that_no_input_has_are_refused(tmp_path: Path, dynamic: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_onnx(AnySize(), tmp_path / "m.onnx", (3, 16, 16), dynamic=dynamic)


def test_a_batch_that_is_fixed_and_dynamic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a batch of 4 and a dynamic batch"):
        export_onnx(AnySize(), tmp_path / "m.onnx", (3, 16, 16), batch=4, dynamic=("batch",))


def test_sizes_to_compare_at_are_some_that_the_network_accepts() -> None:
    free = free_axes(UNet().eval(), Signature.of((3, 16, 24)), ("height", "width"))
    assert [other.shape for other in free.others] == [(3, 20, 32), (3, 12, 16), (3, 8, 12)]

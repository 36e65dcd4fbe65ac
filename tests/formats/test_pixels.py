"""Files with the normalisation in the graph: uint8 pictures in, the network's own outputs out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from lrexport.data.images import ArraySet
from lrexport.errors import UsageError
from lrexport.formats.int8 import quantise_onnx
from lrexport.formats.onnx import Exported, export_onnx
from lrexport.formats.pixels import preprocessing_in, to_pixels
from lrexport.preprocessing import Preprocessing
from lrexport.torch_tools.batch import Batch

ODD = Preprocessing(size=(16, 16), channels="bgr", value_range=(0, 255), mean=(103.5, 116.3, 123.7), std=(57.4, 57.1, 1.0))
KINDS = [
    Preprocessing(size=(16, 16)),
    ODD,
    Preprocessing(size=(16, 16), value_range=(-1.0, 1.0), mean=(0.5,) * 3, std=(0.25,) * 3),
    Preprocessing(size=(16, 16), channels="grey", mean=(0.1307,), std=(0.3081,)),
]


def _network(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()


def _by_hand(pixels: np.ndarray, known: Preprocessing) -> Tensor:
    """(B, H, W, C) uint8 → (B, C, H, W), as the formula of Preprocessing says."""
    low, high = known.value_range
    values = pixels.astype(np.float64) * (high - low) / 255 + low
    if known.channels == "bgr":
        values = values[..., ::-1]
    return torch.from_numpy(((values - known.mean) / known.std).transpose(0, 3, 1, 2).copy()).float()


def _run(path: Path, pixels: np.ndarray) -> np.ndarray:
    runtime = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = runtime.get_inputs()
    assert given.type == "tensor(uint8)"
    made: np.ndarray = runtime.run(None, {given.name: pixels})[0]
    return made


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def _exported(folder: Path, known: Preprocessing, **more: object) -> tuple[Exported, nn.Module]:
    network, channels = _network(len(known.mean)), len(known.mean)
    shape = (channels, 16, 16)
    done = export_onnx(
        network,
        folder / "m.onnx",
        shape,
        preprocessing=known,
        with_preprocessing=True,
        **more,  # type: ignore[arg-type]  # options of the test
    )
    return done, network


@pytest.mark.parametrize("known", KINDS, ids=lambda known: f"{known.channels} {known.value_range}")
def test_the_file_does_what_the_formula_of_the_preprocessing_says(tmp_path: Path, known: Preprocessing) -> None:
    done, network = _exported(tmp_path, known, batch=2)
    pixels = _pixels(2, 16, 16, len(known.mean))
    with torch.no_grad():
        expected = network(_by_hand(pixels, known)).numpy()
    made = _run(done.path, pixels)
    np.testing.assert_allclose(made, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    with torch.no_grad():  # the network takes floats again
        network(torch.zeros(1, len(known.mean), 16, 16))


def test_height_and_width_are_free_in_pictures_too(tmp_path: Path) -> None:
    done, network = _exported(tmp_path, ODD, dynamic=("batch", "height", "width"))
    dims = onnx.load(done.path).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", "height", "width", 3]
    pixels = _pixels(3, 9, 30, 3)
    with torch.no_grad():
        expected = network(_by_hand(pixels, ODD)).numpy()
    np.testing.assert_allclose(_run(done.path, pixels), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert done.cost.macs == export_onnx(network, tmp_path / "float.onnx", (3, 16, 16)).cost.macs


def test_real_inputs_are_turned_back_into_the_pictures_that_they_were(tmp_path: Path) -> None:
    for known in KINDS:
        pixels = _pixels(5, 16, 16, len(known.mean))
        assert (to_pixels(Batch((_by_hand(pixels, known),)), known).only.numpy() == pixels).all()
    _exported(tmp_path, ODD, samples=_by_hand(_pixels(5, 16, 16, 3), ODD))


@pytest.mark.parametrize("in_graph", [True, False])
def test_the_metadata_says_what_the_file_expects_and_its_classes(tmp_path: Path, in_graph: bool) -> None:
    names = ["cat", 'a "dog"', "x\ny"]
    done = export_onnx(
        _network(), tmp_path / "m.onnx", (3, 16, 16), preprocessing=ODD, with_preprocessing=in_graph, classes=names
    )
    runtime = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    metadata = runtime.get_modelmeta().custom_metadata_map
    value = json.loads(metadata["lrexport.preprocessing"])
    assert (value["mean"], value["channels"], value["in_graph"]) == ([103.5, 116.3, 123.7], "bgr", in_graph)
    assert json.loads(metadata["lrexport.classes"]) == names
    assert preprocessing_in(metadata) == (ODD if in_graph else None)


def test_a_file_of_which_nothing_is_known_says_nothing(tmp_path: Path) -> None:
    export_onnx(_network(), tmp_path / "m.onnx", (3, 16, 16))
    assert not onnx.load(tmp_path / "m.onnx").metadata_props


def test_int8_is_calibrated_with_the_same_pictures_and_says_the_same(tmp_path: Path) -> None:
    known = Preprocessing(size=(16, 16))
    done, _ = _exported(tmp_path, known, classes=("a", "b"))
    images = ArraySet(torch.from_numpy(_pixels(40, 3, 16, 16)), torch.zeros(40, dtype=torch.long), known.mean, known.std)
    small = quantise_onnx(done.path, tmp_path / "q.onnx", images)
    assert small.agreement.sqnr_db["output"] > 20
    both = [{each.key: each.value for each in onnx.load(path).metadata_props} for path in (done.path, small.path)]
    assert both[0] == both[1]


def test_networks_that_take_no_picture_or_of_which_nothing_is_known_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs one image"):
        export_onnx(
            nn.Linear(6, 5), tmp_path / "m.onnx", (6,), preprocessing=Preprocessing(size=(16, 16)), with_preprocessing=True
        )
    with pytest.raises(UsageError, match="needs the preprocessing of the network"):
        export_onnx(_network(), tmp_path / "m.onnx", (3, 16, 16), with_preprocessing=True)
    assert not [*tmp_path.iterdir()]

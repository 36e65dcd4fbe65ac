"""The int8 file is the network, in 8 bits, and says how much of it is."""

from __future__ import annotations

import collections
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnxruntime import quantization
from torch import nn

from lrexport.data.datasets import load_data
from lrexport.data.images import ArraySet, hold_out
from lrexport.errors import InputError
from lrexport.formats import int8_agreement
from lrexport.formats.feeding import feed
from lrexport.formats.int8 import Quantised, quantise_onnx
from lrexport.formats.int8_agreement import class_agreement, compare_int8, is_by_chance
from lrexport.formats.onnx import export_onnx
from lrexport.measure.macs.onnx_macs import count_onnx
from tests.formats.digits_net import SHAPE, fitted


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return fitted()


@pytest.fixture(scope="module")
def images() -> ArraySet:
    heldout = hold_out(load_data("digits", SHAPE)).heldout
    assert isinstance(heldout, ArraySet)
    return heldout


@pytest.fixture(scope="module")
def float32(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(trained, tmp_path_factory.mktemp("float32") / "model.onnx", SHAPE).path


@pytest.fixture(scope="module")
def done(float32: Path, images: ArraySet) -> Quantised:
    return quantise_onnx(float32, float32.parent / "model.int8.onnx", images)


def constants(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def producers(path: Path) -> dict[str, onnx.NodeProto]:
    return {name: node for node in onnx.load(path).graph.node for name in node.output}


def multiplying(path: Path) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in onnx.load(path).graph.node if node.op_type in ("Conv", "Gemm")}


def test_every_weight_is_symmetric_per_output_channel_and_half_a_step_from_the_float32_one(
    float32: Path, done: Quantised
) -> None:
    exact, stored, made_by = constants(float32), constants(done.path), producers(done.path)
    nodes = multiplying(done.path)
    assert set(nodes) == set(multiplying(float32))
    assert len(nodes) == 5
    for name, before in multiplying(float32).items():
        dequantise = made_by[nodes[name].input[1]]
        integers, scale, zero = (stored[item] for item in dequantise.input)
        weight = exact[before.input[1]]
        assert integers.dtype == np.int8
        assert np.abs(integers.astype(int)).max() == 64  # two products of uint8 and these fit 16 bits
        assert not zero.any()
        axis = next(attribute.i for attribute in dequantise.attribute if attribute.name == "axis")
        assert (axis, scale.shape) == (0, (len(weight),))  # the head's weight is (out, in) too
        steps = scale.reshape(-1, *[1] * (weight.ndim - 1))
        np.testing.assert_allclose(scale, np.abs(weight).reshape(len(weight), -1).max(1) / 64, rtol=1e-5)
        assert (np.abs(integers * steps - weight) <= 0.5001 * steps).all()


def test_the_input_is_quantised_to_the_range_of_the_calibration_images(done: Quantised, images: ArraySet) -> None:
    first = next(node for node in onnx.load(done.path).graph.node if node.input[0] == "input")
    scale, zero = (constants(done.path)[name] for name in first.input[1:3])
    (batch, _), *_ = images.batches(len(images), torch.device("cpu"))
    pixels = batch.only
    assert zero.dtype == np.uint8
    low, high = (float(scale) * (end - int(zero)) for end in (0, 255))
    assert low == pytest.approx(float(pixels.min()), abs=float(scale))
    assert high == pytest.approx(float(pixels.max()), abs=float(scale))


def test_onnx_runtime_runs_in_int8_what_is_said_to_run_in_int8(done: Quantised, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(done.path), options, providers=["CPUExecutionProvider"])
    ran = collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert (ran["QLinearConv"], ran["QGemm"]) == (4, 1)
    assert not ran.keys() & {"Conv", "FusedConv", "Gemm"}
    assert done.in_float == ()
    assert done.int8_macs == done.cost.macs


def test_macs_and_parameters_are_those_of_the_float32_graph(float32: Path, done: Quantised) -> None:
    before = count_onnx(onnx.load(float32))
    assert done.cost.macs == before.macs == 64 * (16 * 9 + 2 * 16 * 6 * 3 + 16 * 9) + 640
    assert done.cost.params == before.params
    assert [node.weight_shape for node in done.cost.nodes] == [node.weight_shape for node in before.nodes]
    assert all(node.bytes == node.params for node in done.cost.nodes)
    assert not done.cost.uncounted
    assert done.bytes == done.path.stat().st_size


def answers(path: Path, images: ArraySet) -> tuple[np.ndarray, np.ndarray]:
    """A file's output for each image, and the labels."""
    (batch, labels), *_ = images.batches(len(images), torch.device("cpu"))
    runtime = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([runtime.run(None, {"input": image[None].numpy()})[0] for image in batch.only]), labels.numpy()


def test_what_it_answers_is_what_the_float32_file_answers(float32: Path, done: Quantised, images: ArraySet) -> None:
    test = load_data("digits", SHAPE).test
    (exact, labels), (rough, _) = (answers(path, test) for path in (float32, done.path))
    assert (exact.argmax(1) == labels).mean() > 0.9
    assert ((exact - rough) ** 2).sum() < 0.05 * ((exact - exact.mean(0)) ** 2).sum()
    # Errors have no direction: they change as many answers as noise of their size does.
    noise = np.random.default_rng(0).normal(size=(100, *exact.shape)) * (exact - rough).std(0)
    expected = ((exact + noise).argmax(2) != exact.argmax(1)).sum(1).mean()
    assert (exact.argmax(1) != rough.argmax(1)).sum() <= expected + 4 * expected**0.5
    (exact, _), (rough, _) = (answers(path, images) for path in (float32, done.path))
    assert done.agreement.same["output"] == pytest.approx((exact.argmax(1) == rough.argmax(1)).mean())


def test_the_integers_computed_are_those_that_the_standard_defines(done: Quantised, images: ArraySet) -> None:
    model = onnx.load(done.path)
    model.opset_import[0].version = 19  # the same operators; the reference has DequantizeLinear from here on
    standard = onnx.reference.ReferenceEvaluator(model)
    runtime = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    (batch, _), *_ = images.batches(3, torch.device("cpu"))
    pixels = batch.only
    for image in pixels.split(1):
        wanted, found = (one.run(None, {"input": image.numpy()})[0] for one in (standard, runtime))
        np.testing.assert_allclose(found, wanted, atol=5 * float(constants(done.path)["output_scale"]))


@pytest.mark.parametrize(("batch", "opset"), [(None, 18), (3, 21)])
def test_batch_opset_and_names_stay_as_they_are_and_nothing_is_printed(
    trained: nn.Module, images: ArraySet, tmp_path: Path, batch: int | None, opset: int, capfd: pytest.CaptureFixture
) -> None:
    export_onnx(trained, tmp_path / "model.onnx", SHAPE, batch=batch, opset=opset)
    capfd.readouterr()
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    done = quantise_onnx(tmp_path / "model.onnx", tmp_path / "model.int8.onnx", images)
    assert capfd.readouterr() == ("", "")
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.int8.onnx", "model.onnx"]
    before, after = (onnx.load(tmp_path / name) for name in ("model.onnx", "model.int8.onnx"))
    assert [(entry.domain, entry.version) for entry in after.opset_import] == [("", opset)]
    assert [item.name for item in (*after.graph.input, *after.graph.output)] == ["input", "output"]
    assert not after.metadata_props
    sizes = [
        [dim.dim_value for item in (*model.graph.input, *model.graph.output) for dim in item.type.tensor_type.shape.dim]
        for model in (before, after)
    ]
    assert sizes[0] == sizes[1] == [batch or 0, *SHAPE, batch or 0, 10]
    assert done.agreement.same["output"] > 0.97


def test_a_layer_without_an_integer_kernel_is_named(images: ArraySet, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2), nn.Flatten(), nn.Linear(288, 10))
    source = export_onnx(network.eval(), tmp_path / "model.onnx", SHAPE).path
    done = quantise_onnx(source, tmp_path / "model.int8.onnx", images)
    transposed = next(node for node in done.cost.nodes if node.operator == "ConvTranspose")
    assert done.in_float == (transposed.name,)
    assert done.int8_macs == done.cost.macs - transposed.macs > 0


def changed(change: Callable[[onnx.ModelProto], None]) -> Callable[..., None]:
    """onnxruntime's quantiser with its result changed."""
    real = quantization.quantize_static

    def quantise_static(source: Any, path: str, *arguments: Any, **named: Any) -> None:
        real(source, path, *arguments, **named)
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    return quantise_static


def fill(name: str, value: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(item for item in model.graph.initializer if name in item.name)
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, value), tensor.name))

    return change


def widen(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "any"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fill("head.weight_quantized", 0), "hardly more than by chance"),
        (fill("input_scale", 1e-6), "hardly more than by chance"),
        (fill("output_scale", float("nan")), "NaN or infinity in int8"),
        (widen, "declares"),
    ],
    ids=["a head of zeros", "a range of nothing", "NaN", "another batch"],
)
def test_a_file_that_is_not_the_network_any_more_is_not_written(
    float32: Path,
    images: ArraySet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[onnx.ModelProto], None],
    words: str,
) -> None:
    monkeypatch.setattr(quantization, "quantize_static", changed(change))
    with pytest.raises(InputError, match=words) as raised:
        quantise_onnx(float32, tmp_path / "model.int8.onnx", images)
    assert raised.value.exit_code == 3
    assert not list(tmp_path.iterdir())


def test_a_quantiser_that_fails_is_told_with_its_reason(
    float32: Path, images: ArraySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any, **named: Any) -> None:
        raise ValueError("\nNo such tensor.\nMore.")

    monkeypatch.setattr(quantization, "quantize_static", failing)
    with pytest.raises(InputError) as raised:
        quantise_onnx(float32, tmp_path / "model.int8.onnx", images)
    assert raised.value.message == "onnxruntime could not quantise model.onnx: No such tensor."
    assert raised.value.hint == "Export without --int8."
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_an_image_is_told_as_it_is(float32: Path, images: ArraySet, tmp_path: Path) -> None:
    class Unreadable(ArraySet):
        def batches(self, *arguments: Any, **named: Any) -> Any:
            raise InputError("cannot read cat.jpg")
            yield

    with pytest.raises(InputError, match=r"^cannot read cat.jpg$"):
        quantise_onnx(float32, tmp_path / "model.int8.onnx", Unreadable(images.images, images.labels))


@pytest.mark.parametrize("batch", [1, 3, 400, None])
def test_images_are_fed_once_each_in_batches_of_the_files_size(
    trained: nn.Module, images: ArraySet, tmp_path: Path, batch: int | None
) -> None:
    class Runtime:
        def get_inputs(self) -> list[Any]:
            return [type("Input", (), {"shape": [batch or "batch", *SHAPE]})]

    fed = list(feed(images, Runtime()))
    assert {len(array) for array, _, _ in fed} == {batch or len(images)}
    real = np.concatenate([array.only[: len(labels)].numpy() for array, labels, _ in fed])
    (whole, labels), *_ = images.batches(len(images), torch.device("cpu"))
    wanted = whole.only
    np.testing.assert_array_equal(real, wanted.numpy())
    assert torch.equal(torch.cat([part for _, part, _ in fed]), labels)
    filling = np.concatenate([array.only[len(labels) :].numpy() for array, labels, _ in fed])
    assert all((image == real[-1]).all() for image in filling)


class _Saying:
    """A session of a network with two class scores that says the given classes, one image at a time."""

    def __init__(self, *classes: int) -> None:
        self._classes = itertools.chain(classes, itertools.repeat(0))

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="input", shape=[1, 3, 2, 2], type="tensor(float)")]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="output")]

    def run(self, *_given: Any) -> list[Any]:
        return [np.eye(2, dtype=np.float32)[[next(self._classes)]]]


def test_files_that_agree_are_not_refused_where_almost_all_images_are_of_one_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """κ is 0 where one of the two names a single class, whatever the other says."""
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval(), torch.zeros(40, 3, 2, 2, dtype=torch.uint8)
    export_onnx(network, tmp_path / "dense.onnx", (3, 2, 2))
    model = onnx.load(str(tmp_path / "dense.onnx"))
    monkeypatch.setattr(int8_agreement, "session", lambda *_given, **_named: _Saying())
    monkeypatch.setattr(int8_agreement, "open_graph", lambda _model: _Saying(1))
    part = ArraySet(images, torch.zeros(40, dtype=torch.long))
    assert compare_int8(tmp_path / "dense.onnx", model, part).same == {"output": 39 / 40}


def test_a_few_inputs_of_mostly_one_class_are_no_proof_of_chance() -> None:
    assert not is_by_chance(0.8, 0.0, 5)
    assert is_by_chance(0.8, 0.0, 500)
    assert is_by_chance(0.2, 0.0, 5)
    assert not is_by_chance(0.8, 0.5, 500)


def test_agreement_beyond_chance_is_cohens_kappa() -> None:
    from sklearn.metrics import cohen_kappa_score

    generator = torch.Generator().manual_seed(0)
    first = torch.randint(7, (200,), generator=generator)
    for share in (0.0, 0.3, 1.0):
        second = torch.where(
            torch.rand(200, generator=generator) < share, first, torch.randint(7, (200,), generator=generator)
        )
        agreement, kappa = class_agreement(first.numpy(), second.numpy())
        assert agreement == pytest.approx(float((first == second).float().mean()))
        assert kappa == pytest.approx(cohen_kappa_score(first, second))
    zeros = np.zeros(5, np.int64)
    assert class_agreement(zeros, zeros) == (1.0, 1.0)
    assert class_agreement(np.arange(5), zeros)[1] == 0

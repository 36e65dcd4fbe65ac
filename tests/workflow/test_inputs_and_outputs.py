"""Networks with several inputs, or of other types than floats, and outputs that are not a single tensor."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import lrexport
from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.export_options import ExportOptions
from lrexport.config.goals import Macs
from lrexport.errors import InputError, UsageError
from lrexport.events import ignore_events
from lrexport.runs.record import load_record
from lrexport.runs.request import RunRequest
from lrexport.torch_tools.outputs import flat_tensors
from lrexport.workflow.exporting import export_run
from lrexport.workflow.pipeline import compress


class TwoCameras(nn.Module):
    """Colour and depth; the names are in another order than any user would guess."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1))
        self.depth = nn.Conv2d(1, 48, 3, padding=1)
        self.head = nn.Linear(96, 5)

    def forward(self, depth: Tensor, image: Tensor) -> Tensor:
        both = [self.colour(image).mean((2, 3)), self.depth(depth).mean((2, 3))]
        return self.head(torch.cat(both, 1))


class Words(nn.Module):
    """A text classifier with convolutions over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 48)
        self.convolutions = nn.ModuleList(nn.Conv1d(48, 48, size) for size in (3, 5))
        self.head = nn.Linear(96, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.embedding(tokens).transpose(1, 2)
        return self.head(torch.cat([each(embedded).relu().amax(2) for each in self.convolutions], 1))


@dataclass
class Answer:
    boxes: Tensor
    scores: Tensor | None
    nothing: Tensor | None = None


@dataclass
class ModelOutput(OrderedDict[str, Any]):
    """As Hugging Face's models return it: a dataclass that is a dict of its fields without those that are None."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) is not None:
                self[each.name] = getattr(self, each.name)


Pair = namedtuple("Pair", ["boxes", "scores"])
FORMS: dict[str, tuple[Any, list[str]]] = {
    "tuple": (lambda boxes, scores: (boxes, scores), ["output_0", "output_1"]),
    "list": (lambda boxes, scores: [boxes, [scores]], ["output_0", "output_1_0"]),
    "dict": (lambda boxes, scores: {"boxes": boxes, "scores": scores}, ["boxes", "scores"]),
    "dataclass": (Answer, ["boxes", "scores"]),
    "model output": (
        lambda boxes, scores: ModelOutput(logits=scores, hidden_states=(boxes, boxes + 1)),
        ["logits", "hidden_states_0", "hidden_states_1"],
    ),
    "named tuple": (Pair, ["boxes", "scores"]),
    "nested": (lambda boxes, scores: {"head": (boxes, {"scores": scores})}, ["head_0", "head_1_scores"]),
}


class Heads(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.body = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(48, 4, 1), nn.Conv2d(48, 7, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return FORMS[self.form][0](self.boxes(x), self.scores(x))


def two_cameras() -> nn.Module:
    torch.manual_seed(0)
    return TwoCameras()


two_cameras.inputs = {"image": (3, 16, 16), "depth": (1, 16, 16)}  # type: ignore[attr-defined]


def words() -> nn.Module:
    torch.manual_seed(0)
    return Words()


def heads(form: str = "tuple") -> nn.Module:
    torch.manual_seed(0)
    return Heads(form)


heads.input_shape = (3, 16, 16)  # type: ignore[attr-defined]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exported(model: str, batch: int | None = 1, **options: Any) -> onnxruntime.InferenceSession:
    """A compressed and exported network of this module, without data."""
    config = CompressConfig(TrainConfig(f"{__name__}:{model}", **options), Macs(0.5))
    compress(RunRequest(config, Path("run"), ignore_events))
    export_run(Path("run"), ExportOptions(rounds=0, batch=batch), ignore_events)
    onnx.checker.check_model(onnx.load("run/model.onnx"), full_check=True)
    return onnxruntime.InferenceSession("run/model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), None])
def test_a_network_with_two_inputs_is_compressed_and_exported_with_their_names(here: Path, batch: int | None) -> None:
    runtime = exported("two_cameras", batch)
    assert [item.name for item in runtime.get_inputs()] == ["image", "depth"]
    inputs = {"image": torch.randn(1, 3, 16, 16), "depth": torch.randn(1, 1, 16, 16)}
    with torch.no_grad():
        expected = lrexport.load("run").eval()(**inputs)
    (mine,) = runtime.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    np.testing.assert_allclose(mine, expected.numpy(), atol=1e-5)
    record = load_record(Path("run"))
    assert record.model.signature.names == ("image", "depth")
    assert record.results.compressed is not None
    assert record.results.dense is not None
    assert record.results.compressed.macs <= 0.5 * record.results.dense.macs


def test_tokens_have_a_type_and_a_range(here: Path) -> None:
    runtime = exported("words", input=("tokens=20:int64:0..99",))
    (tokens,) = runtime.get_inputs()
    assert (tokens.name, tokens.type, tokens.shape) == ("tokens", "tensor(int64)", [1, 20])
    assert load_record(Path("run")).model.inputs == ("tokens=20:int64:0..99",)


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ("tokens=20", "does not accept inputs of this type", "--input tokens=50:int64:0..999"),
        ("tokens=20:int64:0..500", "IndexError for random inputs", "Give the range"),
    ],
)
def test_a_wrong_type_or_range_is_not_blamed_on_the_shape(here: Path, given: str, message: str, hint: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        exported("words", input=(given,))
    assert hint in str(caught.value.hint)


class Casting(nn.Module):
    """Written for weights in half precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = nn.Linear(4, 4), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_that_casts_to_another_precision_gets_a_hint_at_the_line(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match="casts its inputs to another type than its weights") as caught:
        lrexport.decompose(Casting(dtype), (4,))
    assert f"{Path(__file__).name}, line " in str(caught.value.hint)
    assert "Cast to the weights' type" in str(caught.value.hint)


def test_an_input_that_is_missing_is_asked_for(here: Path) -> None:
    with pytest.raises(InputError, match="missing 1 required positional argument") as caught:
        exported("two_cameras", input_shape=(3, 16, 16))
    assert "--input NAME=SHAPE" in str(caught.value.hint)


@pytest.mark.parametrize(
    "form",
    ["dict", "nested", *(pytest.param(each, marks=pytest.mark.slow) for each in FORMS if each not in ("dict", "nested"))],
)
def test_outputs_of_any_form_are_exported_by_name_and_all_compared(here: Path, form: str) -> None:
    runtime = exported(f"heads?form={form}")
    assert [item.name for item in runtime.get_outputs()] == FORMS[form][1]
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = flat_tensors(lrexport.load("run").eval()(x))
    for mine, torchs in zip(runtime.run(None, {"input": x.numpy()}), expected, strict=True):
        np.testing.assert_allclose(mine, torchs.numpy(), atol=1e-5)


def test_a_dynamic_batch_is_that_of_all_outputs(here: Path) -> None:
    runtime = exported("heads?form=dict", batch=None)
    boxes, scores = runtime.run(None, {"input": np.zeros((3, 3, 16, 16), np.float32)})
    assert (boxes.shape, scores.shape) == ((3, 4, 16, 16), (3, 7, 16, 16))


def test_the_api_takes_several_inputs_by_name_or_in_order() -> None:
    network = TwoCameras()
    image, depth = torch.randn(64, 3, 16, 16), torch.randn(64, 1, 16, 16)
    by_name = lrexport.compress(
        network, {"image": image[:1], "depth": depth[:1]}, Macs(0.5), calibration=[{"image": image, "depth": depth}]
    )
    in_order = lrexport.compress(network, (depth[:1], image[:1]), Macs(0.5), calibration=[((depth, image), "labels")])
    assert by_name.plan == in_order.plan
    assert by_name.signature.names == ("image", "depth")
    assert in_order.signature.names == ("depth", "image")  # the parameters of forward
    assert by_name.output_error == pytest.approx(in_order.output_error)


def test_calibration_of_another_shape_names_the_input() -> None:
    with pytest.raises(InputError, match=r"for 'depth' of shape \(8, 3, 16, 16\): expected \(N, 1, 16, 16\)"):
        lrexport.compress(
            TwoCameras(),
            {"image": torch.zeros(1, 3, 16, 16), "depth": torch.zeros(1, 1, 16, 16)},
            Macs(0.5),
            calibration=[{"image": torch.zeros(8, 3, 16, 16), "depth": torch.zeros(8, 3, 16, 16)}],
        )


def test_two_ways_to_give_inputs_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        TrainConfig("x", input=("a=3",), input_shape=(3,))

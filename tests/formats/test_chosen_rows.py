"""Networks that choose by value what they return: what they choose from is compared, and the choice itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from lrexport.data.images import ArraySet
from lrexport.errors import InputError
from lrexport.formats.chosen_rows import matched_rows
from lrexport.formats.comparison_inputs import extreme_inputs
from lrexport.formats.int8_agreement import compare_int8
from lrexport.formats.rehearsal import rehearse
from lrexport.formats.verify import Reference
from lrexport.signature import Signature
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.import_torchvision import torchvision
from tests.formats.support import exported

SHAPE, SUPPRESS = (3, 12, 12), torchvision("ops").nms
IMAGES = {f"image {n}": Batch.of(torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(n))) for n in range(3)}


class Detector(nn.Module):
    """(1, 3, 12, 12) → boxes (n, 4) and scores (n,) of a picture, of 144 with a box in each pixel, without overlaps."""

    def __init__(self, threshold: float = 0.3, overlap: float = 0.5, spread: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), nn.Conv2d(8, 5, 1)
        nn.init.normal_(self.head.weight, std=spread)
        nn.init.zeros_(self.head.bias)
        self.threshold, self.overlap = threshold, overlap

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        rows = torch.arange(12.0).repeat_interleave(12)
        centres = torch.stack([rows, torch.arange(12.0).repeat(12)], 1)
        chosen = []
        for values in self.head(self.backbone(images)).flatten(2).mT:
            scores, half = values[:, 4].sigmoid(), values[:, 2:4].clamp(max=2).exp()
            middle = centres + values[:, :2]
            boxes = torch.cat([middle - half, middle + half], 1)
            good = scores > self.threshold
            boxes, scores = boxes[good], scores[good]
            kept = SUPPRESS(boxes, scores, self.overlap)
            chosen.append({"boxes": boxes[kept], "scores": scores[kept]})
        return chosen


class AsTensors(Detector):
    """As torch's exporter wants it."""

    def forward(self, images: Tensor) -> Any:
        return tuple(super().forward(images)[0].values())


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return exported(AsTensors().eval(), SHAPE)


def compared(network: Detector, graph: onnx.ModelProto) -> Any:
    return Reference(network.eval(), IMAGES, extreme_inputs(network, Signature.of(SHAPE), 1)).compare(graph)


def test_what_a_detector_chooses_from_is_compared_and_which_boxes_it_keeps_of_random_ones(graph: onnx.ModelProto) -> None:
    agreement = compared(AsTensors(), graph)
    assert agreement.relative_error < 1e-5
    assert agreement.rows.of == ("backbone", "head")
    assert agreement.rows.same == agreement.rows.all > 30


def test_a_detector_whose_scores_are_all_the_same_is_compared_as_well(graph: onnx.ModelProto) -> None:
    tied = onnx.ModelProto()
    tied.CopyFrom(graph)
    weight = next(each for each in tied.graph.initializer if each.name == "head.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((5, 8, 1, 1), np.float32), weight.name))
    rows = compared(AsTensors(spread=0.0), tied).rows
    assert rows.same == rows.all > 30


def test_a_head_that_differs_is_found_whichever_boxes_it_leads_to(graph: onnx.ModelProto) -> None:
    other = AsTensors()
    other.head.bias.data[2] += 0.01
    with pytest.raises(InputError, match=r"differs from torch by .* at output 'head'"):
        compared(other, graph)


@pytest.mark.parametrize("other", [{"overlap": 0.2}, {"threshold": 0.5}])
def test_a_choice_that_differs_is_found(graph: onnx.ModelProto, other: dict[str, float]) -> None:
    with pytest.raises(
        InputError, match=r"% of \d+ rows are chosen only by torch or only by .* outputs of backbone and head"
    ):
        compared(AsTensors(**other), graph)


def test_in_int8_the_boxes_that_are_kept_are_not_compared_in_their_order(graph: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(graph, tmp_path / "model.onnx")
    pictures = ArraySet(torch.randint(256, (8, *SHAPE), dtype=torch.uint8), torch.zeros(8, dtype=torch.long))
    agreement = compare_int8(tmp_path / "model.onnx", graph, pictures, AsTensors().eval())
    names = tuple(item.name for item in graph.graph.output)
    assert (agreement.incomparable, agreement.sqnr_db) == (names, {})


def test_the_trial_export_accepts_a_detector_whose_scores_are_all_the_same() -> None:
    assert not rehearse(Detector(spread=0.0), SHAPE).notes


def test_rows_are_the_same_in_any_order_and_each_has_one_counterpart() -> None:
    boxes = torch.rand(6, 4).double().numpy()
    labels = torch.arange(6).double().numpy()
    order = [3, 1, 0, 5, 2, 4]
    assert matched_rows([boxes, labels], [boxes[order] + 1e-6, labels[order]]) == (6, 6)
    assert matched_rows([boxes, labels], [boxes[order], labels]) == (1, 11)  # the boxes of others' labels
    assert matched_rows([boxes[:1].repeat(3, 0)], [boxes[:1]]) == (1, 3)
    assert matched_rows([boxes[:0]], [boxes[:0]]) == (0, 0)

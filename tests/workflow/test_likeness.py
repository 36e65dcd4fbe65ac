"""Likeness to the network before pruning, also of networks that return as much as they find."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lrexport
from lrexport.data.unlabelled import Given
from lrexport.lowrank.factors.decompose import decompose
from lrexport.torch_tools.batch import Batch
from lrexport.workflow.likeness import DenseOutputs
from tests.lowrank.repair.test_observed import Detector

SHAPE = (3, 8, 8)


class Pyramid(nn.Module):
    """A detector whose layers are large enough for pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU())
        self.head = Detector()
        self.head.backbone = nn.Conv2d(24, 8, 3, padding=1)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return self.head(self.body(images))


class Count(nn.Module):
    """Of a layer's values only how many are positive; the layer itself is called once for each input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 16, 3)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([(self.layer(each[None]) > 0).float().sum() for each in images]).sum()


def given(count: int = 70) -> Given:
    images = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    return Given(Batch.of(images), torch.device("cpu"), 0)


def outputs_of(network: nn.Module) -> DenseOutputs:
    return DenseOutputs(decompose(network, SHAPE, "spatial"), given(), 70)


def test_a_detector_is_judged_by_what_it_chooses_boxes_from() -> None:
    network = Detector().eval()
    dense = outputs_of(network)
    assert dense.error_of(network) == pytest.approx(0, abs=1e-10)
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.head["scores"].bias.add_(0.5)
        body = network.backbone(given().inputs.only)
        scores = network.head["scores"](torch.relu(body))
    deviations = float((scores - scores.mean(0)).double().square().sum())
    assert dense.error_of(changed) == pytest.approx(0.25 * scores.numel() / deviations, rel=1e-4)
    assert dense.likeness_of(changed) < dense.likeness_of(network)


def test_boxes_that_are_as_many_in_the_dense_network_only_are_no_fault() -> None:
    network = Detector(threshold=-1e9).eval()  # all that there are, in every picture
    dense = outputs_of(network)
    assert dense.error_of(network) == pytest.approx(0, abs=1e-10)
    fewer = copy.deepcopy(network)
    fewer.threshold = 0.0
    assert dense.error_of(fewer) == pytest.approx(0, abs=1e-10)  # its scores are the same


def test_a_detector_is_compressed_with_unlabelled_pictures() -> None:
    done = lrexport.compress(Pyramid().eval(), SHAPE, lrexport.Macs(0.6), calibration=given().inputs.only, heal=0.02)
    assert done.output_error is not None
    assert 0 < done.output_error < 1
    assert done.macs <= 0.6 * done.dense_macs


def test_a_network_without_comparable_outputs_is_compressed_and_its_quality_called_unknown() -> None:
    network = Count().eval()
    assert outputs_of(copy.deepcopy(network)).error_of(network) is None
    done = lrexport.compress(network, SHAPE, lrexport.Macs(0.9), calibration=given().inputs.only)
    assert done.output_error is None
    assert any(note.startswith("quality unknown") for note in done.notes)

"""Which outputs of two networks are compared."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.lowrank.repair.observed import comparable, decisive, outputs_of
from lrexport.torch_tools.batch import Batch

IMAGES = Batch.of(torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


class Detector(nn.Module):
    """As torchvision's: boxes above a threshold, as many as there are; (B, 3, H, W) → a list of B dicts."""

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.backbone, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleDict({"scores": nn.Conv2d(8, 1, 1)})
        self.threshold = threshold

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        scores = self.head["scores"](torch.relu(self.backbone(images))).flatten(1)
        return [{"scores": each[each > self.threshold]} for each in scores]


def test_outputs_of_fixed_shape_are_compared_whatever_their_tree() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(4)).eval()
    network(IMAGES.only)
    assert comparable((network, copy.deepcopy(network)), IMAGES) == ("",)
    output = outputs_of(network, ("",), IMAGES)
    torch.testing.assert_close(output, network(IMAGES.only))


def test_of_a_detector_backbone_and_head_are_compared() -> None:
    network = Detector().eval()
    names = comparable((network, copy.deepcopy(network)), IMAGES)
    assert names == ("backbone", "head.scores")
    outputs = outputs_of(network, names, IMAGES)
    assert list(outputs) == list(names)
    torch.testing.assert_close(outputs["backbone"], network.backbone(IMAGES.only))


def test_a_backbone_that_only_the_head_reads_decides_nothing() -> None:
    network = Detector().eval()
    assert decisive((network, copy.deepcopy(network)), IMAGES) == ("head.scores",)


class Proposer(Detector):
    """Boxes where proposals, which pass no gradient, are high; their scores come from the backbone."""

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        features = torch.relu(self.backbone(images))
        proposals = self.head["scores"](features).detach().flatten(1)
        return [{"scores": of[at > 0]} for of, at in zip(features.mean(1).flatten(1), proposals, strict=True)]


def test_modules_that_only_choose_and_those_read_directly_decide() -> None:
    network = Proposer().eval()
    assert decisive((network, copy.deepcopy(network)), IMAGES) == ("backbone", "head.scores")


def test_all_modules_decide_if_none_changes_an_output() -> None:
    network = Detector(threshold=math.inf).eval()  # finds nothing, whatever the scores
    assert decisive((network,), IMAGES) == ("backbone", "head.scores")


def test_a_network_that_only_counts_cannot_be_compared() -> None:
    class Count(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images.flatten() > 0).sum()

    with pytest.raises(InputError, match="no output whose shape is the same for all inputs"):
        comparable((Count(),), IMAGES)

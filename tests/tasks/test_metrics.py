"""Closed forms of the tasks' losses and metrics, against torchmetrics and numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrexport.errors import InputError, UsageError
from lrexport.metric import TOP1, Metric
from lrexport.tasks.detection import Detection
from lrexport.tasks.image import ImageToImage
from lrexport.tasks.packages import need
from lrexport.tasks.segmentation import IGNORED, Segmentation


def _of_torchmetrics(module: str) -> Any:
    """Imported where it is used: with torchvision it takes two seconds, in every worker that collects this file."""
    return need("", f"torchmetrics.{module}")[0]


def _maps(classes: int = 4) -> tuple[Tensor, Tensor]:
    maps, masks = torch.randn(6, classes, 9, 7), torch.randint(0, classes, (6, 9, 7))
    masks[torch.rand(masks.shape) < 0.2] = IGNORED
    return maps, masks


def _measured(task: Any, *batches: tuple[Any, Any]) -> dict[str, float]:
    meter = task.meter()
    for outputs, targets in batches:
        meter.update(outputs, targets)
    return dict(meter.compute())


def test_miou_over_several_batches_is_torchmetrics_jaccard_index() -> None:
    maps, masks = _maps()
    found = _measured(Segmentation(), (maps[:2], masks[:2]), ({"out": maps[2:]}, masks[2:]))
    truth = _of_torchmetrics("classification").MulticlassJaccardIndex(4, ignore_index=IGNORED)(maps.argmax(1), masks)
    assert found["mIoU"] == pytest.approx(float(truth), abs=1e-6)
    counts = masks != IGNORED
    assert found["pixel accuracy"] == pytest.approx(float((maps.argmax(1) == masks)[counts].double().mean()))


def test_classes_that_are_nowhere_do_not_count_in_miou() -> None:
    maps = torch.zeros(1, 5, 2, 2)
    maps[:, 1] = 1.0
    masks = torch.tensor([[[1, 1], [1, 2]]])
    assert _measured(Segmentation(), (maps, masks))["mIoU"] == pytest.approx((3 / 4 + 0) / 2)


def test_the_loss_of_segmentation_is_the_mean_over_the_pixels_that_count_with_half_the_auxiliary_one() -> None:
    maps, masks = _maps()
    plain = Segmentation().loss(maps, masks)
    assert torch.allclose(plain, F.cross_entropy(maps, masks, ignore_index=IGNORED))
    assert torch.allclose(Segmentation().loss({"out": maps, "aux": maps}, masks), 1.5 * plain)
    assert Segmentation().loss(maps, torch.full_like(masks, IGNORED)) == 0


def test_coarse_maps_are_resized_to_the_masks() -> None:
    maps, masks = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    large = F.interpolate(maps, size=(8, 8), mode="bilinear", align_corners=False)
    assert torch.allclose(Segmentation().loss(maps, masks), F.cross_entropy(large, masks))
    assert _measured(Segmentation(), (maps, masks)) == _measured(Segmentation(), (large, masks))


def test_masks_of_classes_that_the_network_does_not_have_are_refused() -> None:
    with pytest.raises(InputError, match="the masks have classes from 0 to 7; the network has 4 outputs for each pixel"):
        _measured(Segmentation(), (torch.randn(1, 4, 1, 2), torch.tensor([[[0, 7]]])))


@pytest.mark.parametrize("outputs", [torch.randn(2, 3), {"boxes": torch.randn(2, 3, 4, 4)}, "text"])
def test_outputs_that_are_no_maps_are_refused_with_what_is_expected(outputs: Any) -> None:
    with pytest.raises(InputError, match="expects class scores"):
        Segmentation().loss(outputs, torch.zeros(2, 4, 4, dtype=torch.int64))


def test_psnr_and_ssim_are_the_means_of_torchmetrics_values_of_single_images() -> None:
    images = torch.rand(5, 3, 16, 16)
    outputs = images + 0.1 * torch.randn(images.shape)
    found = _measured(ImageToImage(), (outputs[:3], images[:3]), (outputs[3:], images[3:]))
    theirs = _of_torchmetrics("functional.image")
    psnr = [float(theirs.peak_signal_noise_ratio(a, b, data_range=1.0)) for a, b in zip(outputs, images, strict=True)]
    assert found["PSNR"] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert found["SSIM"] == pytest.approx(
        float(theirs.structural_similarity_index_measure(outputs, images, data_range=1.0)), abs=1e-5
    )


def test_equal_images_have_a_psnr_of_100_db_and_bytes_are_shares_of_255() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert _measured(ImageToImage(), (images.float() / 255, images)) == {"PSNR": 100.0, "SSIM": pytest.approx(1.0)}
    assert ImageToImage().loss(images.float() / 255, images) == 0


def test_targets_of_another_shape_than_the_image_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"targets of shape \(1, 3, 4, 4\); the network returns images of shape \(1, 3, 8, 8\)"
    ):
        ImageToImage().loss(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 4))


def test_map_is_1_for_the_right_boxes_and_falls_with_a_missed_one() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]])
    truth = [{"boxes": boxes, "labels": torch.tensor([1, 2])}]
    right = [{"boxes": boxes, "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([1, 2])}]
    assert _measured(Detection(), (right, truth)) == {"mAP": pytest.approx(1.0), "mAP50": pytest.approx(1.0)}
    missed = [{name: value[:1] for name, value in right[0].items()}]
    assert _measured(Detection(), (missed, truth))["mAP50"] == pytest.approx(0.5)


def test_the_loss_of_detection_is_the_sum_of_those_in_the_network() -> None:
    from lrexport.torch_tools.batch import Batch

    weight = torch.tensor(2.0, requires_grad=True)

    def network(batch: Batch, targets: Any) -> dict[str, Tensor]:
        assert targets == ["truth"]
        return {"boxes": weight * 3, "classes": weight}

    loss, outputs = Detection().training_loss(network, Batch.of(torch.rand(1, 3, 4, 4)), ["truth"])
    assert loss.item() == 8.0
    assert outputs is None


@given(st.floats(0, 1), st.floats(0, 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_metric_orders_values_by_its_direction(old: float, new: float, higher: bool) -> None:
    metric = Metric("x", higher_is_better=higher)
    assert metric.is_better(new, old) == (new > old if higher else new < old)
    assert metric.best([old, new]) == (max(old, new) if higher else min(old, new))
    assert (metric.loss(old, new) > 0) == metric.is_better(old, new)
    assert metric.is_better(old, metric.worst)
    assert not metric.is_better(math.nan, old)


def test_shares_are_shown_in_percent_and_points_and_others_in_their_unit() -> None:
    assert (TOP1.format(0.9178), TOP1.change(0.93, 0.9178)) == ("91.78 %", "-1.22 points")
    psnr = Metric("PSNR", "dB")
    assert (psnr.format(31.204), psnr.change(31.2, 31.1), psnr.axis) == ("31.20 dB", "-0.10 dB", "PSNR, dB")
    ssim = Metric("SSIM")
    assert (ssim.format(0.97), ssim.change(0.97, 0.96), ssim.axis) == ("0.9700", "-0.0100", "SSIM")
    assert TOP1.loss(0.9, 0.89) == pytest.approx(1.0)
    assert Metric("LPIPS", higher_is_better=False).loss(0.1, 0.3) == pytest.approx(0.2)


def test_a_metric_without_a_name_is_refused() -> None:
    with pytest.raises(UsageError, match="invalid metric '': expected a name"):
        Metric("")

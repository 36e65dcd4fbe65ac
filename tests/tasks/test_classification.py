"""Accuracy and BatchNorm re-estimation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from lrexport.data.images import ArraySet
from lrexport.formats.file_scores import score_onnx
from lrexport.tasks.classification import count_correct
from lrexport.tasks.scoring import NotANumber, score
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.batchnorm import reestimate_batchnorm
from tests.formats.support import exported

CPU = torch.device("cpu")


def test_top1_and_top5_agree_with_scikit_learn() -> None:
    logits, labels = torch.randn(500, 12), torch.randint(0, 12, (500,))
    first, five = count_correct(logits, labels)
    from sklearn.metrics import top_k_accuracy_score  # a second's imports, for this alone

    truth = [top_k_accuracy_score(labels, logits.numpy(), k=k, labels=np.arange(12)) for k in (1, 5)]
    assert [first / 500, five / 500] == truth


def test_with_fewer_than_five_classes_top5_is_everything() -> None:
    assert count_correct(torch.randn(20, 3), torch.randint(0, 3, (20,)))[1] == 20


def test_scoring_counts_every_image_once_and_puts_the_mode_back() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).train()
    images = ArraySet(torch.randint(0, 256, (33, 3, 2, 2), dtype=torch.uint8), torch.randint(0, 4, (33,)))
    whole, pieces = (score(network, images, CPU, "test", batch_size=size) for size in (33, 7))
    assert whole == pieces
    assert whole.n == 33
    assert network.training


class Strange(nn.Module):
    """(B, 3, 2, 2) → (B, 2): NaN for images that are dark all over, and an infinity that is a logit like others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = x.mean((1, 2, 3)).unsqueeze(1)
        return torch.cat([level, level / level * 0 - torch.inf], 1)


def test_a_network_that_gives_nan_has_no_score_in_torch_and_none_in_onnx_runtime(tmp_path: Path) -> None:
    pixels = torch.randint(1, 256, (30, 3, 2, 2), dtype=torch.uint8)
    sound = ArraySet(pixels, torch.zeros(30, dtype=torch.int64), (0.0,) * 3, (1.0,) * 3)
    assert score(Strange(), sound, CPU, "test").top1 == 1
    shaded = pixels.clone()
    shaded[[3, 17, 28]] = 0
    dark = ArraySet(shaded, torch.zeros(30, dtype=torch.int64), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(NotANumber, match="the network gives NaN on 3 of 30 held-out images, so it has no score") as caught:
        score(Strange(), dark, CPU, "heldout", batch_size=7)
    assert caught.value.exit_code == 3
    path = tmp_path / "model.onnx"
    onnx.save(exported(Strange().eval(), (3, 2, 2)), path)
    assert score_onnx(path, sound, "test").top1 == 1
    with pytest.raises(NotANumber, match=r"model\.onnx in ONNX Runtime gives NaN on 3 of 30 test images"):
        score_onnx(path, dark, "test")


def test_batchnorm_gets_the_mean_and_variance_of_its_inputs() -> None:
    norm = nn.BatchNorm2d(3, momentum=0.1)
    norm.running_mean.fill_(99)
    network = nn.Sequential(norm, nn.Dropout(0.5)).eval()
    inputs = [3 + 2 * torch.randn(50, 3, 4, 4) for _ in range(4)]
    assert reestimate_batchnorm(network, map(Batch.of, inputs))
    everything = torch.stack(inputs)
    torch.testing.assert_close(norm.running_mean, everything.mean((0, 1, 3, 4)))
    torch.testing.assert_close(norm.running_var, everything.permute(0, 2, 1, 3, 4).flatten(2).var(2).mean(0))
    assert norm.momentum == 0.1
    assert not norm.training
    assert not reestimate_batchnorm(nn.Linear(2, 2), [])

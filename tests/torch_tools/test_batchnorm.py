"""BatchNorms over the images of several processes: sums are doubled, as by a second process with the same images."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrexport.torch_tools.batchnorm import global_statistics


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: an activation, and the counting of batches, in its own forward."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(input, mean, var, self.weight, self.bias, self.training, self.momentum or 0.0, self.eps).relu()


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, Activated])
def test_a_subclass_keeps_its_activation_and_counts_once(
    kind: type[nn.BatchNorm2d], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.mul_(2))
    alone = nn.Sequential(kind(3)).train()
    both = copy.deepcopy(alone)
    images = torch.randn(8, 3, 4, 4)
    expected = alone(images)
    with global_statistics(both, 2):
        output = both(images)
    assert torch.allclose(output, expected, atol=1e-5)
    assert torch.equal(both[0].num_batches_tracked, torch.tensor(1))
    assert torch.allclose(both[0].running_mean, alone[0].running_mean, atol=1e-6)
    with global_statistics(both.eval(), 2):
        assert torch.allclose(both(images) if kind is Activated else both(images).relu(), both(images).relu())

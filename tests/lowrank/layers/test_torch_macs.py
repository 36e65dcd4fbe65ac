"""MACs of torch networks: held to torch's own counter where that counts, and nothing that may multiply goes unnamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.networks.cifar_resnet import CifarResNet
from lrexport.torch_tools.import_torchvision import torchvision
from tests.lowrank.layers.drawn import layers

# Attention as one operator on the CPU is missing in torch's list: it would count nothing.
FUSED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_args, out_shape, **_options: (
        sdpa_flop_count(query, key, value)
    )
}


def flops_by_torch(network: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, dict[str, int]]:
    """Of the whole and of every module that multiplies; 2 FLOPs are one MAC."""
    root = f"{type(network).__name__}."
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as counter:
        network.eval()(torch.zeros(1, *input_shape))
    counts = {name.removeprefix(root): sum(of.values()) for name, of in counter.get_flop_counts().items()}
    return counter.get_total_flops(), counts


@settings(max_examples=15, deadline=None)
@given(drawn=layers())
def test_layers_of_every_kind_have_half_the_flops_that_torch_counts(drawn: tuple[Any, Tensor]) -> None:
    layer, images = drawn
    network, shape = nn.Sequential(layer), tuple(images.shape[1:])
    assert 2 * count_torch_macs(network, shape).total == flops_by_torch(network, shape)[0]


class Mixed(nn.Module):
    """(B, 4, 9) → (B, 9, 9): functional convolutions, products, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.twice = nn.Parameter(torch.ones(4, 2, 3)), nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv1d(x, self.kernel, padding="same", groups=2)
        x = F.conv_transpose1d(x, self.kernel, padding=1, groups=2)[:, :4]
        x = self.twice(self.twice(x))
        return torch.einsum("bci,bcj->bij", x, x) @ x.mT @ x


@pytest.mark.parametrize(
    ("build", "shape", "in_shortcuts"),
    [
        (lambda: CifarResNet(20), (3, 32, 32), 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8),
        (lambda: torchvision("models").mobilenet_v3_small(), (3, 32, 32), 0),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (6, 8), 0),
        (Mixed, (4, 9), 0),
    ],
    ids=["ResNet-20", "MobileNetV3", "encoder", "mixed"],
)
def test_networks_and_their_layers_have_half_the_flops_that_torch_counts(
    build: Callable[[], nn.Module], shape: tuple[int, ...], in_shortcuts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One fused operator, which neither counts, would hide the encoder's products from torch's counter.
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    network = build()
    counted = count_torch_macs(network, shape)
    total, by_module = flops_by_torch(network, shape)
    assert (2 * (counted.total - in_shortcuts), counted.uncounted) == (total, ())
    for name, macs in counted.by_layer.items():
        assert 2 * macs == by_module[name]


class Using(nn.Module):
    """A Linear, and a product of its output in some other way."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.multiply = nn.Linear(8, 8), multiply

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(self.layer(x), self.layer.weight)


@torch.jit.script
def scripted(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


class OwnGradient(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight


@torch.library.custom_op("lrexport_tests::product", mutates_args=())
def custom_product(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


@pytest.mark.parametrize(
    ("multiply", "name"),
    [
        (scripted, "a scripted function"),
        (OwnGradient.apply, "OwnGradient"),
        (custom_product, "lrexport_tests::product"),
        (lambda x, _: torch.cov(x[0]), "cov"),
        (lambda x, _: torch.corrcoef(x[0]), "corrcoef"),
        (lambda x, _: F.pdist(x[0]), "pdist"),
        (lambda x, weight: torch.sparse.mm(weight.to_sparse(), x[0].mT), "_sparse_mm"),
    ],
)
def test_what_a_trace_does_not_look_into_is_named_and_not_taken_for_nothing(
    multiply: Callable[[Tensor, Tensor], Tensor], name: str
) -> None:
    counted = count_torch_macs(Using(multiply), (4, 8))
    assert (counted.total, counted.uncounted) == (4 * 8 * 8, (name,))


def test_operators_that_multiply_nothing_are_not_named() -> None:
    def profiled(x: Tensor, _weight: Tensor) -> Tensor:
        with torch.profiler.record_function("part"):
            return F.gelu(x).softmax(-1).cumsum(-1)

    assert count_torch_macs(Using(profiled), (4, 8)).uncounted == ()

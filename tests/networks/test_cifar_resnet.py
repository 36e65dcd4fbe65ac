"""The CIFAR ResNets: exact MACs with fvcore as the oracle, and the published weights with the accuracy they have."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from PIL import Image

from lrexport.data.images import ArraySet
from lrexport.errors import UsageError
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.networks.building import resolve
from lrexport.networks.cifar_resnet import BasicBlock, CifarResNet
from lrexport.networks.weights import load_weights
from lrexport.tasks.scoring import score


@pytest.mark.parametrize(
    ("depth", "macs", "params"), [(20, 40_551_040, 269_722), (32, 68_862_592, 464_154), (56, 125_485_696, 853_018)]
)
def test_macs_and_parameters_are_those_of_the_literature_and_of_two_shortcuts(depth: int, macs: int, params: int) -> None:
    network = CifarResNet(depth).eval()
    # Convolutions by hand: 3·16·9·32² + 2n blocks a stage of 16²·9·32² (the first of a stage has half its input) + 64·10
    blocks = (depth - 2) // 6
    whole, half = 16 * 16 * 9 * 32 * 32, 16 * 32 * 9 * 16 * 16
    by_hand = 3 * 16 * 9 * 32 * 32 + 2 * blocks * whole + 2 * ((2 * blocks - 1) * whole + half) + 640
    assert by_hand == macs
    # An exported file has the two shortcuts as 1×1 convolutions: 16 → 32 channels at 16², 32 → 64 at 8²
    assert count_torch_macs(network, (3, 32, 32)).total == macs + 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8
    operators = FlopCountAnalysis(network, torch.zeros(1, 3, 32, 32)).unsupported_ops_warnings(False).by_operator()
    assert operators["conv"] + operators["linear"] == macs
    assert sum(parameter.numel() for parameter in network.parameters()) == params


def test_the_shortcut_has_no_parameters_and_pads_half_the_new_channels_on_either_side() -> None:
    block = BasicBlock(4, 8, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # leaves relu(shortcut)
    images = torch.rand(1, 4, 6, 6)
    out = block(images)
    assert torch.equal(out[:, 2:6], images[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()


@pytest.mark.parametrize(
    ("depth", "top1"),
    [(20, 81.03), pytest.param(32, 82.56, marks=pytest.mark.slow), pytest.param(56, 83.20, marks=pytest.mark.slow)],
)
def test_the_published_weights_have_their_accuracy_on_the_jpeg_test_images(shared: Path, depth: int, top1: float) -> None:
    data = np.load(shared / "data" / "cifar10_jpeg.npz")
    offset = data["test_offset"]
    raw = [data_slice.tobytes() for data_slice in np.split(data["test_jpeg"], offset[1:-1])]
    images = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in raw])
    test = ArraySet(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(data["test_label"]).long())
    network = resolve(f"resnet{depth}").build()
    load_weights(network, shared / "weights" / f"cifar10_resnet{depth}.safetensors")
    found = score(network, test, torch.device("cpu"), "test")
    assert found.n == 10_000
    assert 100 * found.top1 == pytest.approx(top1, abs=0.05)  # a near-tie may fall either way on another CPU
    assert found.top5 > 0.98


def test_both_names_of_the_classifier_are_accepted(tmp_path: Path) -> None:
    source = CifarResNet(20)
    weights = {name.replace("linear.", "fc."): value for name, value in source.state_dict().items()}
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "w.pt")
    network = resolve("resnet20").build()
    load_weights(network, tmp_path / "w.pt")
    assert torch.equal(network.linear.weight, source.linear.weight)


def test_a_name_resolves_with_its_options_and_the_number_of_classes_of_the_data() -> None:
    assert resolve("resnet20?num_classes=7").build().linear.out_features == 7
    recipe = resolve("resnet32").with_classes(100)
    assert recipe.build().linear.out_features == 100
    assert recipe.to_record().kwargs == {"num_classes": 100}
    assert resolve("resnet20?num_classes=7").with_classes(100).build().linear.out_features == 7


def test_torchvision_networks_build_beside_a_cpu_build_of_torch() -> None:
    recipe = resolve("torchvision:resnet18?num_classes=5")
    assert recipe.signature.shape == (3, 224, 224)
    assert recipe.build().fc.out_features == 5


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"Did you mean .*resnet20"):
        resolve("resnet21")
    with pytest.raises(UsageError, match="resnet18"):
        resolve("torchvision:resnet_18")

"""torchvision's networks with one tensor out and no auxiliary classifiers; published weights still fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lrexport.artifacts import tensors
from lrexport.errors import InputError, UsageError
from lrexport.networks.building import from_record, resolve
from lrexport.networks.torchvision_zoo import options_of_weights
from lrexport.networks.weights import load_weights
from lrexport.runs.record import ModelSource
from lrexport.torch_tools.import_torchvision import torchvision
from tests.conftest import SmallNet


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_a_segmentation_network_gives_its_scores_and_its_layers_keep_their_names(name: str) -> None:
    network = resolve(f"torchvision:{name}").build()
    plain = torchvision("models").get_model(name, weights=None, weights_backbone=None).eval()
    plain.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(images), plain(images)["out"])
    assert [layer for layer, _ in network.named_modules()] == [layer for layer, _ in plain.named_modules()]


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_networks_with_auxiliary_classifiers_train_on_their_one_output(name: str, size: int) -> None:
    network = resolve(f"torchvision:{name}?num_classes=3").build().train()
    assert network(torch.randn(2, 3, size, size)).shape == (2, 3)


@pytest.mark.parametrize("asked", ["googlenet?aux_logits=true", "fcn_resnet50?aux_loss=true"])
def test_asking_for_auxiliary_classifiers_is_refused(asked: str) -> None:
    with pytest.raises(UsageError, match="with an auxiliary classifier") as caught:
        resolve(f"torchvision:{asked}").build()
    assert caught.value.hint == "It is only for training; lrexport trains and exports a single output."


@pytest.mark.parametrize(
    ("name", "options"),
    [("googlenet", {"init_weights": False}), ("fcn_resnet50", {"weights_backbone": None, "aux_loss": True})],
)
def test_weights_published_with_auxiliary_classifiers_fit(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    published = torchvision("models").get_model(name, weights=None, **options).state_dict()
    assert any("aux" in key for key in published)
    tensors.save(tmp_path / "published.safetensors", published)
    network = resolve(f"torchvision:{name}").build()
    load_weights(network, tmp_path / "published.safetensors")
    assert all(torch.equal(value, published[key]) for key, value in network.state_dict().items())


def test_a_layer_of_that_name_in_another_network_is_not_left_out(tmp_path: Path) -> None:
    tensors.save(tmp_path / "other.safetensors", {**SmallNet().state_dict(), "aux1.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"unexpected \(1\): aux1.weight"):
        load_weights(SmallNet(), tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("name", "weights", "options"),
    [
        ("googlenet", "DEFAULT", {"num_classes": 1000, "transform_input": True}),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", {"num_classes": 1000, "image_size": 384}),
        ("lraspp_mobilenet_v3_large", "DEFAULT", {"num_classes": 21}),
    ],
)
def test_what_published_weights_set_beside_values_is_kept_when_a_run_builds_its_network(
    name: str, weights: str, options: dict[str, Any]
) -> None:
    assert options_of_weights(name, weights) == options
    source = ModelSource(source=f"torchvision:{name}", kwargs={"weights": weights}, input_shape=(3, 224, 224))
    recipe = from_record(source, Path("run/run.json"))
    assert recipe.kwargs == options

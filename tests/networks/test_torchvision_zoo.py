"""torchvision's networks with one tensor out and no auxiliary classifiers; published weights still fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lrexport.artifacts import tensors
from lrexport.errors import InputError, UsageError
from lrexport.networks.building import from_record, resolve
from lrexport.networks.torchvision_zoo import options_of_weights
from lrexport.networks.weights import load_weights
from lrexport.runs.sources import ModelSource
from lrexport.torch_tools.import_torchvision import _nms, torchvision
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


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("resnet18", (3, 224, 224)),
        ("inception_v3", (3, 299, 299)),
        ("vit_b_16?weights=IMAGENET1K_SWAG_E2E_V1", (3, 384, 384)),
        ("lraspp_mobilenet_v3_large", (3, 520, 520)),
        ("ssd300_vgg16", (3, 300, 300)),
        ("ssdlite320_mobilenet_v3_large", (3, 320, 320)),
        ("retinanet_resnet50_fpn", (3, 800, 800)),
        ("fcos_resnet50_fpn?min_size=256", (3, 256, 256)),
        ("r3d_18", (3, 16, 112, 112)),
        ("s3d", (3, 16, 224, 224)),
    ],
)
def test_networks_take_inputs_of_the_size_that_they_were_trained_with(model: str, shape: tuple[int, ...]) -> None:
    assert resolve(f"torchvision:{model}").signature.shape == shape
    assert resolve(f"torchvision:{model}", (3, 64, 64)).signature.shape == (3, 64, 64)


def test_optical_flow_takes_two_images_by_name() -> None:
    assert resolve("torchvision:raft_small").signature.names == ("image1", "image2")


def test_weights_that_are_asked_for_bring_their_preprocessing_and_detectors_normalise_themselves() -> None:
    assert not resolve("torchvision:resnet18").preprocessing
    chosen = resolve("torchvision:efficientnet_b1?weights=IMAGENET1K_V2", (3, 120, 120)).preprocessing
    assert chosen is not None
    assert (chosen["resize"], chosen["mean"]) == (128, (0.485, 0.456, 0.406))  # 240 of 255, bicubic or not
    detector = resolve("torchvision:ssd300_vgg16").preprocessing
    assert detector == {"mean": (0.0,) * 3, "std": (1.0,) * 3, "value_range": (0.0, 1.0)}


SMALL_DETECTOR = "torchvision:ssdlite320_mobilenet_v3_large?num_classes=3"


def detector(**options: Any) -> nn.Module:
    """A detector whose classifier is as sure as a trained one: few boxes, far from every threshold."""
    query = "".join(f"&{name}={value}" for name, value in options.items())
    return resolve(SMALL_DETECTOR + query).build()


def test_a_detector_takes_a_batch_and_returns_the_boxes_of_each_image_as_torchvision_does() -> None:
    network = detector()
    plain = torchvision("models").get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3
    )
    plain.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        mine, theirs = network(images), plain.eval()(list(images))
    assert [set(each) for each in mine] == [{"boxes", "scores", "labels"}] * 2
    assert all(torch.equal(mine[at][key], theirs[at][key]) for at in (0, 1) for key in mine[at])


def test_the_heads_of_a_detector_are_its_predictions_for_all_anchors() -> None:
    network = detector(heads="true")
    with torch.no_grad():
        output = network(torch.rand(2, 3, 64, 64))
    assert {name: tuple(tensor.shape[::2]) for name, tensor in output.items()} == {
        "bbox_regression": (2, 4),
        "cls_logits": (2, 3),
    }
    truth = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}] * 2
    losses = network.train()(torch.rand(2, 3, 64, 64), truth)
    assert set(losses) == {"bbox_regression", "classification"}


def test_a_detector_of_a_record_is_built_as_with_its_weights_which_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("weights were fetched"))
    kwargs = {"weights": "DEFAULT", "weights_backbone": "DEFAULT"}
    source = ModelSource(source="torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", kwargs=kwargs, input_shape=(3, 64, 64))
    recipe = from_record(source, Path("run/run.json"))
    network: Any = recipe.as_made([])
    kinds = {type(module).__name__ for module in network.modules()}
    assert "FrozenBatchNorm2d" in kinds
    assert "BatchNorm2d" not in kinds
    assert network.roi_heads.box_predictor.cls_score.out_features == 91
    assert nn.Module.load_state_dict.__name__ == "load_state_dict"
    nn.Linear(2, 2).load_state_dict(nn.Linear(2, 2).state_dict())
    with pytest.raises(InputError, match="torchvision has no weights 'nonsense'"):
        from_record(source.model_copy(update={"kwargs": {"weights": "nonsense"}}), Path("run/run.json"))


def test_networks_without_classes_have_weights_too() -> None:
    assert options_of_weights("raft_small", "DEFAULT") == {}


@pytest.mark.parametrize("name", ["resnet18", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_networks_without_heads_say_which_have_them(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} has no heads") as caught:
        resolve(f"torchvision:{name}?heads=true").build()
    assert caught.value.hint == "ssd, ssdlite, retinanet and fcos have."


@pytest.mark.parametrize("count", [0, 1, 40, 700])
def test_boxes_are_suppressed_by_better_ones_that_overlap_them(count: int) -> None:
    corners = torch.rand(count, 2) * 2 * count**0.5
    boxes, scores = torch.cat([corners, corners + 5 + torch.rand(count, 2) * 10], 1), torch.rand(count)
    kept = _nms(boxes, scores, 0.5)
    assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)
    ious, better = torchvision("ops").box_iou(boxes, boxes)[:, kept], scores[kept] > scores[:, None]
    assert kept.sort().values.tolist() == (~(better & (ious > 0.5)).any(1)).nonzero().flatten().tolist()

"""timm's networks by name: what they take, how their images are made, and what a record may not do."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
import torch

from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.goals import Macs
from lrexport.errors import DeviceError, UsageError
from lrexport.events import ignore_events
from lrexport.networks.building import from_record, resolve
from lrexport.networks.names import check_name
from lrexport.networks.timm_zoo import timm
from lrexport.runs.loading import load
from lrexport.runs.record import load_record
from lrexport.runs.request import RunRequest
from lrexport.runs.sources import ModelSource
from lrexport.workflow.pipeline import compress

pytestmark = pytest.mark.skipif(PathFinder.find_spec("timm") is None, reason="needs the extra timm")


def test_a_network_takes_images_of_its_own_size_made_as_it_was_trained_with() -> None:
    recipe = resolve("timm:tf_efficientnetv2_s.in21k")
    assert recipe.signature.shape == (3, 300, 300)
    assert recipe.preprocessing == {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "value_range": (0.0, 1.0),
        "interpolation": "bicubic",
        "crop": "center",
        "resize": 300,
    }


@pytest.mark.parametrize(
    ("model", "inputs", "shape", "resize"),
    [
        ("resnet18", None, (3, 224, 224), 235),
        ("resnet18", (3, 64, 64), (3, 64, 64), 67),
        ("vit_tiny_patch16_224?img_size=96", None, (3, 96, 96), 106),
        ("resnet18?in_chans=1", None, (1, 224, 224), 235),
    ],
)
def test_the_shorter_side_is_resized_by_the_share_that_is_cut_out(
    model: str, inputs: tuple[int, ...] | None, shape: tuple[int, ...], resize: int
) -> None:
    recipe = resolve(f"timm:{model}", inputs)
    assert recipe.signature.shape == shape
    assert recipe.preprocessing is not None
    assert recipe.preprocessing["resize"] == resize
    assert len(recipe.preprocessing["mean"]) == shape[0]


def test_a_network_of_one_size_is_built_for_the_size_that_is_asked_for() -> None:
    recipe = resolve("timm:test_vit", (3, 64, 64))
    assert recipe.kwargs == {"img_size": 64}
    with torch.no_grad():
        assert recipe.with_classes(5).build()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_the_number_of_classes_comes_from_the_data_unless_it_is_given() -> None:
    assert resolve("timm:test_resnet").with_classes(7).build().num_classes == 7
    assert resolve("timm:test_resnet?num_classes=3").with_classes(7).build().num_classes == 3


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("resnet19", "timm has no model 'resnet19'", "Close: resnet18"),
        ("resnet18.a9_in1k", "timm has no model 'resnet18.a9_in1k'", "Close: resnet18.a"),
        ("hf-hub:someone/net", "timm has no model 'hf-hub:someone/net'", None),
        ("local-dir:/tmp/net", "timm has no model 'local-dir:/tmp/net'", None),
    ],
)
@pytest.mark.parametrize("how", [check_name, resolve])
def test_unknown_names_and_tags_are_refused_with_the_nearest_ones(
    name: str, message: str, hint: str | None, how: Any
) -> None:
    with pytest.raises(UsageError) as caught:
        how(f"timm:{name}")
    assert caught.value.message == message
    assert hint is None or str(caught.value.hint).startswith(hint)


@pytest.mark.slow
def test_every_name_of_the_registry_passes_the_check_that_needs_no_torch() -> None:
    names = set(timm().list_models(include_tags=True)) | set(timm().list_models())
    for name in sorted(names)[::40]:
        check_name(f"timm:{name}")


def test_checking_a_name_loads_neither_timm_nor_torch() -> None:
    code = "import sys; from lrexport.networks.names import check_name; check_name('timm:resnet18.a1_in1k');"
    code += "print({'timm', 'torch', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PathFinder, "find_spec", lambda *_: None)
    with pytest.raises(DeviceError, match="needs timm") as caught:
        check_name("timm:resnet18")
    assert caught.value.hint == "Install it with: pip install 'lrexport[timm]'"


@pytest.mark.parametrize("option", ["checkpoint_path=w.pt", "pretrained_cfg=in21k", "cache_dir=/tmp"])
def test_options_that_load_weights_past_lrexport_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"invalid option '{option.partition('=')[0]}'"):
        resolve(f"timm:test_resnet?{option}")


def test_nothing_is_fetched_for_a_record() -> None:
    source = ModelSource(source="timm:test_resnet.r160_in1k", kwargs={"pretrained": True}, input_shape=(3, 32, 32))
    recipe = from_record(source, Path("run.json"))
    assert recipe.kwargs == {}
    assert recipe.signature.shape == (3, 32, 32)
    recipe.build()


def test_only_weights_that_were_asked_for_make_a_network_not_random() -> None:
    assert resolve("timm:test_resnet").is_random(None)
    assert not resolve("timm:test_resnet?pretrained=true").is_random(None)


@pytest.mark.slow
def test_a_network_with_padding_of_its_own_is_compressed_and_built_again_from_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = "timm:test_efficientnet?pad_type=same&num_classes=4"
    config = CompressConfig(TrainConfig(model, input_shape=(3, 32, 32)), Macs(0.7))
    compress(RunRequest(config, Path("run"), ignore_events))
    record = load_record(Path("run"))
    assert record.model.source == "timm:test_efficientnet"
    assert record.model.kwargs == {"pad_type": "same", "num_classes": 4}
    assert any("Conv2dSame by padding and Conv2d" in note for note in record.notes)
    assert load("run")(torch.zeros(1, 3, 32, 32)).shape == (1, 4)

"""Checkpoints as frameworks and training scripts leave them, and which of their weights are taken."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lrexport.errors import InputError, UsageError
from lrexport.networks.weights import check_finite, load_weights

Weights = dict[str, Tensor]


def _network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), inner, nn.Flatten(), nn.Linear(16, 5))


def _weights(seed: int = 1) -> Weights:
    return _network(seed).state_dict()


def _below(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def _optimizer() -> dict[str, Any]:
    network = _network()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 3, 6, 6)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def _load(content: object, tmp_path: Path, **options: Any) -> tuple[Weights, tuple[str, ...]]:
    path = tmp_path / "w.pt"
    torch.save(content, path)
    network = _network()
    notes = load_weights(network, path, **options)
    return network.state_dict(), notes


def _same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def _averaged(weights: Weights) -> object:
    network = _network()
    network.load_state_dict(weights)
    return AveragedModel(network).state_dict()


FORMS: dict[str, Callable[[Weights], object]] = {
    "plain": lambda w: w,
    "DataParallel": lambda w: _below("module.", w),
    "DataParallel of a part": lambda w: {name.replace("2.", "2.module.", 1): value for name, value in w.items()},
    "torch.compile": lambda w: _below("_orig_mod.", w),
    "torch.compile of a part": lambda w: {name.replace("2.", "2._orig_mod.", 1): value for name, value in w.items()},
    "torch.compile of DistributedDataParallel": lambda w: {"model": _below("_orig_mod.module.", w)},
    "DistributedDataParallel of torch.compile": lambda w: {"model": _below("module._orig_mod.", w)},
    "AveragedModel": _averaged,
    "Lightning": lambda w: {
        "epoch": 3,
        "global_step": 7,
        "state_dict": _below("model.", w),
        "hyper_parameters": {"lr": 0.1},
    },
    "Lightning and torch.compile": lambda w: {"state_dict": _below("model._orig_mod.", w)},
    "Lightning with a criterion": lambda w: {"state_dict": {**_below("net.", w), "criterion.weight": torch.ones(5)}},
    "one of several in a module": lambda w: {
        "state_dict": {**_below("generator.", w), "discriminator.0.weight": torch.ones(5)}
    },
    "any prefix": lambda w: _below("backbone.body.", w),
    "BasicSR": lambda w: {"params": w},
    "BasicSR, averaged alone": lambda w: {"params_ema": w},
    "HiFi-GAN": lambda w: {"generator": w},
    "DeepSpeed": lambda w: {"module": w, "buffer_names": [], "optimizer": None},
    "model_state": lambda w: {"model_state": w, "optimizer_state": _optimizer(), "epoch": 3},
    "EMA in a mapping": lambda w: {"ema": {"decay": 0.99, "shadow": w}},
    "nested": lambda w: {"checkpoint": {"model": {"weights": w}}},
    "in a list": lambda w: [w, {"epoch": 3}],
    "beside numbers": lambda w: {**w, "epoch": 3},
    "counts of thop": lambda w: {**w, "total_ops": torch.zeros(1), "2.total_params": torch.zeros(1)},
    "NumPy numbers and options": lambda w: {
        "state_dict": w,
        "best": np.float64(0.9),
        "step": np.int32(3),
        "args": argparse.Namespace(lr=0.1, path="x", nested=argparse.Namespace(a=np.float32(1))),
    },
    "optimizer": lambda w: {"optimizer": _optimizer(), "model": w, "scheduler": {"last_epoch": 3}},
    "float64": lambda w: {name: value.double() if value.is_floating_point() else value for name, value in w.items()},
    "parameters": lambda w: {name: nn.Parameter(value, requires_grad=False) for name, value in w.items()},
    "not contiguous": lambda w: {name: value.mT.contiguous().mT if value.ndim > 1 else value for name, value in w.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_wherever_a_script_put_them(form: str, tmp_path: Path) -> None:
    loaded, _ = _load(FORMS[form](_weights()), tmp_path)
    assert _same(loaded, _weights())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_of_less_precision_are_read_as_they_are(kind: torch.dtype, tmp_path: Path) -> None:
    saved = {name: value.to(kind) if value.is_floating_point() else value for name, value in _weights().items()}
    loaded, _ = _load(saved, tmp_path)
    assert _same(loaded, {name: value.to(loaded[name].dtype) for name, value in saved.items()})


def test_a_prefix_goes_in_safetensors_too(tmp_path: Path) -> None:
    safetensors.torch.save_file(_below("model.", _weights()), tmp_path / "w.safetensors")
    network = _network()
    load_weights(network, tmp_path / "w.safetensors")
    assert _same(network.state_dict(), _weights())


@pytest.mark.parametrize("prefix", ["module.", "", "_orig_mod.", "model.module."])
def test_a_network_that_has_a_child_called_module_takes_its_own_weights_and_those_without(
    prefix: str, tmp_path: Path
) -> None:
    torch.save({"state_dict": _below(prefix, _weights())}, tmp_path / "w.pt")
    network = nn.DataParallel(_network())
    load_weights(network, tmp_path / "w.pt")
    assert _same(network.state_dict(), _below("module.", _weights()))


@given(st.lists(st.sampled_from(["module", "_orig_mod", "model", "net", "student", "0"]), max_size=4))
def test_any_prefix_that_all_tensors_share_is_removed(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    prefix = "".join(f"{part}." for part in parts)
    loaded, _ = _load(_below(prefix, _weights()), tmp_path_factory.getbasetemp())
    assert _same(loaded, _weights())


SEVERAL: dict[str, tuple[Callable[[Weights, Weights], object], str, str]] = {
    "timm": (lambda w, e: {"state_dict": w, "state_dict_ema": e}, "state_dict", "state_dict_ema"),
    "torchvision": (lambda w, e: {"model_ema": e, "model": w}, "model", "model_ema"),
    "BasicSR": (lambda w, e: {"params_ema": e, "params": w}, "params", "params_ema"),
    "one state dict": (
        lambda w, e: {"state_dict": {**_below("ema_model.", e), **_below("model.", w)}},
        "state_dict.model",
        "state_dict.ema_model",
    ),
    "beside the network": (lambda w, e: {**w, "ema": {"module": e}}, ".", "ema.module"),
}


@pytest.mark.parametrize("form", SEVERAL)
def test_of_weights_and_their_average_the_weights_are_taken_and_both_are_noted(form: str, tmp_path: Path) -> None:
    make, plain, averaged = SEVERAL[form]
    loaded, notes = _load(make(_weights(1), _weights(2)), tmp_path, option="--weights-key")
    assert _same(loaded, _weights(1))
    assert notes[0].startswith(
        f"{tmp_path / 'w.pt'} has several weights that fit: took {plain}; choose another with --weights-key"
    )
    assert averaged in notes[0]


@pytest.mark.parametrize("form", SEVERAL)
def test_a_key_chooses_the_average(form: str, tmp_path: Path) -> None:
    make, plain, averaged = SEVERAL[form]
    loaded, notes = _load(make(_weights(1), _weights(2)), tmp_path, key=averaged)
    assert _same(loaded, _weights(2))
    assert not [note for note in notes if "several" in note]
    assert _same(_load(make(_weights(1), _weights(2)), tmp_path, key=plain)[0], _weights(1))


def test_the_same_weights_at_two_places_are_no_choice(tmp_path: Path) -> None:
    weights = _weights()
    assert _load({"state_dict": weights, "model": weights}, tmp_path)[1] == ()


def test_tensors_that_are_left_out_beside_a_prefix_are_noted(tmp_path: Path) -> None:
    content = {"state_dict": {**_below("student.", _weights()), "teacher.a": torch.ones(1), "teacher.b": torch.ones(1)}}
    _, notes = _load(content, tmp_path)
    assert notes == (f"{tmp_path / 'w.pt'}: took the tensors at state_dict.student; 2 others are not used",)


def test_a_key_that_the_file_does_not_have_is_refused_with_those_that_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        _load({"params": _weights(), "params_ema": _weights(2)}, tmp_path, key="ema", option="--weights-key")
    assert caught.value.message == f"invalid --weights-key 'ema': expected the place of weights in {tmp_path / 'w.pt'}"
    assert caught.value.hint == "Weights that fit the network are at: params, params_ema."


def test_weights_at_a_key_that_do_not_fit_are_told_with_their_names(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"does not fit the network \(its tensors at discriminator\)\n  missing \(\d+\): 0.wei"
    ):
        _load({"generator": _weights(), "discriminator": {"a": torch.ones(2)}}, tmp_path, key="discriminator")


def test_where_nothing_fits_the_nearest_tensors_are_compared(tmp_path: Path) -> None:
    weights = _weights()
    weights["4.weight"] = torch.zeros(7, 16)
    content = {"optimizer": _optimizer(), "state_dict": _below("model.", weights), "loss": {"weight": torch.ones(5)}}
    with pytest.raises(InputError) as caught:
        _load(content, tmp_path)
    assert caught.value.message == (
        f"{tmp_path / 'w.pt'} does not fit the network (its tensors at state_dict.model)\n"
        "  other shapes (1): 4.weight (7, 16) instead of (5, 16)"
    )


def test_integers_do_not_stand_for_weights(tmp_path: Path) -> None:
    weights = _weights()
    weights["4.weight"] = weights["4.weight"].to(torch.int8)
    with pytest.raises(InputError, match=r"other shapes \(1\): 4.weight int8 instead of float32"):
        _load(weights, tmp_path)


def test_infinity_may_stand_in_a_mask_and_not_in_weights_or_statistics() -> None:
    network = _network()
    network.register_buffer("mask", torch.full((4, 4), float("-inf")))
    check_finite(network, "the network")
    network.get_buffer("1.running_var")[2] = float("nan")
    with pytest.raises(InputError, match=r"NaN or infinity in the weights of the network: 1.running_var"):
        check_finite(network, "the network")


def test_a_network_is_left_as_it_was_where_weights_are_refused(tmp_path: Path) -> None:
    network, weights = _network(), _weights()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights["2.0.bias"][0] = float("inf")
    torch.save({"state_dict": weights}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"NaN or infinity in the weights of .*w.pt: 2.0.bias"):
        load_weights(network, tmp_path / "w.pt")
    assert _same(network.state_dict(), before)

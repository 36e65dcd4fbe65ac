"""ONNX files made by others, and exports that differ from the network: docs/faults.md, ONNX files, Exports."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import lrexport as api
from lrexport.formats import onnx as onnx_export
from tests.hostile.support import Command, frugally, listing, write_module


def _model(
    nodes: list[onnx.NodeProto] | None = None, weights: list[TensorProto] | None = None, domains: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """(1, 3, 4, 4) → one 1×1 convolution, or ``nodes``, with ``weights``."""
    weights = [numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")] if weights is None else weights
    nodes = nodes or [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])
    graph = helper.make_graph(nodes, "graph", [given], [result], weights)
    imports = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _external(location: str, **more: object) -> TensorProto:
    """The weight of :func:`_model` in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3, 1, 1], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _lying() -> TensorProto:
    """The weight of :func:`_model`, with a size that its bytes do not have."""
    return TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40, 3, 1, 1], raw_data=bytes(24))


def _nested(depth: int) -> bytes:
    """Protobuf of a graph whose node has an attribute that is a graph, and so on."""

    def field(number: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while size > 0x7F:
            length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = field(2, b"inner")
    for _ in range(depth):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    return b"\x08\x0a" + field(7, graph)


def test_a_sound_model_is_inspected(lrexport: Command) -> None:
    onnx.save(_model(), "model.onnx")
    done = lrexport("inspect", "model.onnx")
    assert done.code == 0
    assert "2×3×1×1" in done.out
    assert "96 MACs" in done.out


def test_an_empty_model_is_said_to_be_empty(lrexport: Command) -> None:
    Path("model.onnx").write_bytes(b"")
    done = lrexport("inspect", "model.onnx")
    assert done.code == 3
    assert "empty file: model.onnx" in done.err


MALFORMED: dict[str, tuple[Callable[[], bytes], str]] = {
    "random bytes": (lambda: random.Random(0).randbytes(5000), "Error parsing message"),
    "text": (lambda: b"this is not a model\n" * 20, "Error parsing message"),
    "a truncated model": (lambda: _model().SerializeToString()[:-20], "Error parsing message"),
    "graphs in graphs in graphs": (lambda: _nested(3000), "Error parsing message"),
    "a weight whose size is a lie": (lambda: _model(weights=[_lying()]).SerializeToString(), "(tensor name: w)"),
    "a node without its weight": (
        lambda: _model([helper.make_node("Conv", ["x"], ["y"])]).SerializeToString(),
        "has input size 1 not in range [min=2, max=3]",
    ),
    "an operator that does not exist": (
        lambda: _model([helper.make_node("Convolve", ["x", "w"], ["y"])]).SerializeToString(),
        "No Op registered for Convolve",
    ),
    "an input from nowhere": (
        lambda: _model([helper.make_node("Conv", ["x", "v"], ["y"])]).SerializeToString(),
        "Nodes in a graph must be topologically sorted",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_model_is_an_error_and_no_crash(lrexport: Command, what: str) -> None:
    make, detail = MALFORMED[what]
    Path("model.onnx").write_bytes(make())
    done = lrexport("inspect", "model.onnx", "--json", "nodes.json")
    assert done.code == 3
    assert "invalid ONNX file model.onnx: " in done.err
    assert detail in done.err
    assert not Path("nodes.json").exists()
    assert done.out == ""


ESCAPES: dict[str, Callable[[], onnx.ModelProto]] = {
    "a parent folder": lambda: _model(weights=[_external("../secret.bin")]),
    "a parent folder within": lambda: _model(weights=[_external("a/../../secret.bin")]),
    "a parent folder in Windows' way": lambda: _model(weights=[_external("..\\secret.bin")]),
    "an absolute path": lambda: _model(weights=[_external(os.path.abspath("../secret.bin"))]),
    "a node's own tensor": lambda: _model([helper.make_node("Constant", [], ["y"], value=_external("../secret.bin"))], []),
}


@pytest.mark.parametrize("what", ESCAPES)
def test_external_data_outside_of_the_folder_is_refused(
    lrexport: Command, here: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "secret.bin").write_bytes(bytes(24))
    (here / "models").mkdir()
    monkeypatch.chdir(here / "models")
    Path("model.onnx").write_bytes(ESCAPES[what]().SerializeToString())
    done = lrexport("inspect", "model.onnx")
    assert done.code == 3
    assert "external data outside of the file's folder" in done.err
    assert "secret.bin" in done.err


def test_external_data_beside_the_model_is_read_from_wherever_the_command_runs(lrexport: Command, here: Path) -> None:
    (here / "models").mkdir()
    (here / "models" / "w.bin").write_bytes(bytes(24))
    (here / "models" / "model.onnx").write_bytes(_model(weights=[_external("w.bin", length=24)]).SerializeToString())
    done = lrexport("inspect", "models/model.onnx")
    assert done.code == 0
    assert "96 MACs" in done.out


PLACES: dict[str, tuple[dict[str, object], str]] = {
    "an offset beyond the file": ({"offset": 4096, "length": 24}, "w at 4096 + 24 of 24 bytes in w.bin"),
    "a length beyond the file": ({"offset": 0, "length": 10**15}, "w at 0 + 1000000000000000 of 24 bytes in w.bin"),
    "a negative offset": ({"offset": -8, "length": 24}, "w at -8 + 24 of 24 bytes in w.bin"),
    "an offset that is no number": ({"offset": "many", "length": 24}, "w at many + 24 of 24 bytes in w.bin"),
}


@pytest.mark.parametrize("what", PLACES)
def test_external_data_at_a_place_that_is_not_there_is_refused(lrexport: Command, what: str) -> None:
    place, message = PLACES[what]
    Path("w.bin").write_bytes(bytes(24))
    Path("model.onnx").write_bytes(_model(weights=[_external("w.bin", **place)]).SerializeToString())
    done = lrexport("inspect", "model.onnx")
    assert done.code == 3
    assert f"missing external data: {message}" in done.err


@pytest.mark.parametrize(("link", "message"), [(os.symlink, "symbolic link"), (os.link, "hard link")])
def test_external_data_through_a_link_is_refused(
    lrexport: Command, here: Path, link: Callable[[str, str], None], message: str
) -> None:
    (here / "models").mkdir()
    (here / "secret.bin").write_bytes(bytes(24))
    link(str(here / "secret.bin"), str(here / "models" / "w.bin"))
    (here / "models" / "model.onnx").write_bytes(_model(weights=[_external("w.bin", length=24)]).SerializeToString())
    done = lrexport("inspect", "models/model.onnx")
    assert done.code == 3
    assert "invalid ONNX file" in done.err
    assert message in done.err


@pytest.mark.parametrize("field", ["key", "value"])
def test_external_data_in_bytes_that_are_no_text_is_refused(lrexport: Command, here: Path, field: str) -> None:
    content = _model(weights=[_external("w.bin", length=24)]).SerializeToString()
    name = {"key": b"location", "value": b"w.bin"}[field]
    assert content.count(name) == 1
    (here / "model.onnx").write_bytes(content.replace(name, b"\xff" * len(name)))
    done = lrexport("inspect", "model.onnx")
    assert done.code == 3
    assert "external data of 'w'" in done.err
    assert "not UTF-8" in done.err


def test_an_opset_beyond_any_is_an_error_and_no_crash(lrexport: Command) -> None:
    model = _model()
    model.opset_import[0].version = 2**62
    Path("model.onnx").write_bytes(model.SerializeToString())
    done = lrexport("inspect", "model.onnx")
    assert done.code == 3
    assert "model.onnx" in done.err
    assert "incompatible function arguments" not in done.err


def test_external_data_through_a_linked_folder_is_refused(lrexport: Command, here: Path) -> None:
    for folder in ("models", "secrets"):
        (here / folder).mkdir()
    (here / "secrets" / "w.bin").write_bytes(bytes(24))
    (here / "models" / "data").symlink_to(here / "secrets")
    (here / "models" / "model.onnx").write_bytes(_model(weights=[_external("data/w.bin")]).SerializeToString())
    done = lrexport("inspect", "models/model.onnx")
    assert done.code == 3
    assert "external data outside of the file's folder: data/w.bin, through a symbolic link" in done.err


def test_a_model_of_more_than_two_gigabytes_is_checked_by_its_path_and_its_data_counts_as_its_size(
    lrexport: Command, here: Path
) -> None:
    with open("w.bin", "wb") as data:
        data.truncate(3 << 30)  # a hole on the disk: no bytes are written
    Path("model.onnx").write_bytes(
        _model(weights=[_external("w.bin", offset=(3 << 30) - 24, length=24)]).SerializeToString()
    )
    with frugally():
        done = lrexport("inspect", "model.onnx", "--json", "-")
    assert done.code == 0, done.err
    assert json.loads(done.out)["bytes"] == (3 << 30) + Path("model.onnx").stat().st_size


def test_a_single_file_of_more_than_two_gigabytes_is_refused_with_what_to_do(lrexport: Command, here: Path) -> None:
    with open("model.onnx", "wb") as file:
        file.truncate(3 << 30)
    with frugally():
        done = lrexport("inspect", "model.onnx")
    assert done.code == 3
    assert "at most 2 GiB" in done.err
    assert "save_as_external_data=True" in done.err


def test_a_run_too_large_for_a_single_file_is_refused_before_the_export_and_left_as_it_was(
    lrexport: Command, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(finished)
    monkeypatch.setattr(onnx_export, "_MOST_BYTES", 2000)
    done = lrexport("onnx", finished, "--rounds", "0")
    assert done.code == 3
    assert "the network takes" in done.err
    assert "one ONNX file has at most 2 KB" in done.err
    assert "external_data=True" in done.err
    assert listing(finished) == before


def test_modules_in_the_current_folder_are_not_what_the_check_imports(lrexport: Command, here: Path) -> None:
    onnx.save(_model(), "model.onnx")
    Path("json.py").write_text("raise SystemExit('the repository's own module ran')")
    assert lrexport("inspect", "model.onnx").code == 0


STRANGE = {
    "a convolution of another domain": lambda: _model(
        [helper.make_node("Conv", ["x"], ["y"], domain="foo")], None, ("foo",)
    ),
    "a permutation out of range": lambda: _model(
        [helper.make_node("Transpose", ["w"], ["v"], perm=[9, 1, 2, 3]), helper.make_node("Conv", ["x", "v"], ["y"])]
    ),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_model_that_the_checker_lets_pass_is_counted_or_refused_but_does_not_crash(lrexport: Command, what: str) -> None:
    Path("model.onnx").write_bytes(STRANGE[what]().SerializeToString())
    assert lrexport("inspect", "model.onnx").code in (0, 3)


def _perturbed(times: float) -> Callable[..., onnx.ModelProto]:
    """torch's exporter with one weight of the result changed."""
    real = onnx_export._export

    def export(*arguments: Any) -> onnx.ModelProto:
        model = real(*arguments)
        weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(times), weight.name))
        return model

    return export


@pytest.mark.parametrize("times", [1.01, float("nan")], ids=["a wrong weight", "NaN"])
def test_a_graph_that_differs_from_torch_fails_the_export_with_the_error_and_its_place(
    here: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch, times: float
) -> None:
    monkeypatch.setattr(onnx_export, "_export", _perturbed(times))
    with pytest.raises(api.InputError) as raised:
        api.export_onnx(network, here / "model.onnx", (3, 8, 8))
    found = raised.value
    assert found.exit_code == 3
    assert "differs from torch by " in found.message
    assert "on random input, batch 1, at output (0, " in found.message
    assert "instead of" in found.message
    assert "1e-04" in str(found.hint) or "0.0001" in str(found.hint)
    assert [name for name in listing(here) if "onnx" in name] == []


def test_a_differing_graph_leaves_the_run_as_it_was(
    lrexport: Command, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lrexport("onnx", finished, "--rounds", "0").code == 0
    monkeypatch.setattr(onnx_export, "_export", _perturbed(1.01))
    before = listing(finished)
    done = lrexport("onnx", finished, "--rounds", "0")
    assert done.code == 3
    assert "the exported graph differs from torch by" in done.err
    assert "No files were written." in done.err
    assert listing(finished) == before
    assert sorted(path.name for path in finished.iterdir()) == sorted(before)


class Normed(nn.Module):
    """A network whose training mode is another function, with a frozen part in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.frozen = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.frozen(self.norm(self.conv(x)))).mean((2, 3))


def test_a_network_left_in_training_mode_is_exported_in_eval_and_put_back(here: Path) -> None:
    import onnxruntime

    network = Normed().train()
    network.frozen.eval()
    for norm in (network.norm, network.frozen):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    modes = {name: module.training for name, module in network.named_modules()}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    api.export_onnx(network, here / "model.onnx", (3, 8, 8))
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    given = torch.randn(1, 3, 8, 8)
    found = onnxruntime.InferenceSession(here / "model.onnx").run(None, {"input": given.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), network.eval()(given), rtol=1e-4, atol=1e-5)


def test_a_failed_export_puts_the_modes_back_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "_export", _perturbed(1.01))
    network = Normed().train()
    with pytest.raises(api.InputError, match="differs from torch"):
        api.export_onnx(network, here / "model.onnx", (3, 8, 8))
    assert all(module.training for module in network.modules())


class FirstOnly(nn.Module):
    """Answers for the first image alone, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)[:1])


@pytest.mark.parametrize(("batch", "asked"), [(None, "a dynamic batch"), (3, "a batch of 3")])
def test_a_batch_that_the_network_fixes_is_told_with_what_was_asked_and_what_was_written(
    here: Path, batch: int | None, asked: str
) -> None:
    with pytest.raises(api.InputError) as raised:
        api.export_onnx(FirstOnly(), here / "model.onnx", (3, 8, 8), batch=batch)
    assert raised.value.exit_code == 3
    assert f"expected {asked}, but 'output' was written with 1" in raised.value.message
    assert "x.shape[0]" in str(raised.value.hint)
    assert not (here / "model.onnx").exists()


def test_a_run_whose_network_fixes_the_batch_is_not_exported_with_a_dynamic_one(lrexport: Command, here: Path) -> None:
    write_module(
        "fixing",
        """
        from torch import nn
        class Fixing(nn.Module):
            input_shape = (3, 8, 8)
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Linear(192, 64), nn.Linear(64, 10)
            def forward(self, x):
                return self.head(self.body(x.flatten(1)[:1]))
        """,
    )
    assert lrexport("compress", "fixing:Fixing", "--macs", "0.6", "-o", "run", "--device", "cpu").code == 0
    before = listing(here / "run")
    done = lrexport("onnx", "run", "--batch", "dynamic", "--rounds", "0")
    assert done.code == 3
    assert "expected a dynamic batch, but 'output' was written with 1" in done.err
    assert listing(here / "run") == before


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a number": (lambda x: x.sum(), "a tensor of shape ()"),
    "text": (lambda x: {"out": str(x)}, "a dict"),
    "nothing": (lambda x: (None, []), "a tuple"),
}


@pytest.mark.parametrize("what", OUTPUTS)
def test_an_output_without_tensors_that_have_a_batch_is_named(here: Path, what: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return OUTPUTS[what][0](x)

    with pytest.raises(api.InputError) as raised:
        api.export_onnx(Odd(), here / "model.onnx", (3, 8, 8))
    assert f"the network returns {OUTPUTS[what][1]}" in raised.value.message
    assert "expected tensors with the batch first" in raised.value.message
    assert not (here / "model.onnx").exists()


def test_a_file_that_is_no_graph_is_told_for_what_it_seems_to_be(
    lrexport: Command, finished: Path, weights: dict[str, torch.Tensor]
) -> None:
    torch.save(weights, "weights.pth")
    for file, seems in (
        (Path("weights.pth"), "weights that torch saved"),
        (finished / "model.safetensors", "weights in safetensors"),
        (Path("tiny.py"), "text"),
    ):
        for command in (["inspect", file], ["bench", file], ["inspect", finished, file]):
            done = lrexport(*command)
            assert done.code == 3
            assert f"invalid ONNX file {file}: " in done.err
            assert f"It seems to be {seems}; expected an ONNX graph." in done.err

"""Small sound inputs that mutations start from, made by builders."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.budget.make_sample import SAMPLE, network
from tests.report.runs import write_run


def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "conv.bias": torch.zeros(4),
        "bn.num_batches_tracked": torch.tensor(3),
        "half": torch.randn(2, 2).half(),
        "none": torch.zeros(0, 3),
    }


def _saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def safetensors() -> list[bytes]:
    from lrexport.artifacts.tensors import packed

    return [packed(_weights()), packed({"x": torch.ones(3)}, {"lrexport": "{}"})]


def checkpoints() -> list[bytes]:
    weights = _weights()
    optimizer = {"state": {0: {"step": 1, "buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    whole = {"state_dict": weights, "epoch": 3, "optimizer": optimizer, "best": 0.5, "note": "x"}
    wrapped = {"model": {f"module.{name}": value for name, value in weights.items()}, "model_ema": weights}
    return [_saved(value) for value in (weights, whole, wrapped)]


def old_checkpoints() -> list[bytes]:
    return [_saved(value, _use_new_zipfile_serialization=False) for value in (_weights(), {"state_dict": _weights()})]


def _run(part: str) -> Callable[[], list[bytes]]:
    def read() -> list[bytes]:
        with tempfile.TemporaryDirectory() as name:
            write_run(Path(name) / "run")
            return [(Path(name) / "run" / part).read_bytes()]

    return read


def records() -> list[bytes]:
    return [*_run("run.json")(), (SAMPLE / "run" / "run.json").read_bytes()]


spectra, logs = _run("spectra.json"), _run("log.jsonl")


def plans() -> list[bytes]:
    by_hand = {"conv1": "dense", "conv2": {"scheme": "spatial", "rank": 3}, "head": {"dense": True}}
    whole = json.loads((SAMPLE / "run" / "run.json").read_text(encoding="utf-8"))["plan"]
    return [json.dumps(value).encode() for value in (by_hand, {"plan": whole, "digest": "0" * 16}, {"plan": by_hand})]


def settings() -> list[bytes]:
    options = b"""[tool.lrexport]
macs = 0.5
svd-epochs = 3
keep = ["head", "layer1.*"]
[tool.lrexport.compress]
scheme = "spatial"
distill = 0.5
[tool.lrexport.bench]
rounds = 60
[tool.lrexport.budget.one]
path = ["run", "*.onnx"]
max_bytes = "10 KB"
max_macs_growth = "5%"
"""
    return [options, (SAMPLE / "pyproject.toml").read_bytes()]


def own_settings() -> list[bytes]:
    """The same as lrexport.toml has it."""
    return [
        seed[seed.index(b"[tool.") :].replace(b"[tool.lrexport]\n", b"").replace(b"tool.lrexport.", b"")
        for seed in settings()
    ]


def recipes() -> list[bytes]:
    folder = Path(__file__).parents[2] / "lrexport" / "config" / "recipes"
    return [path.read_bytes() for path in sorted(folder.glob("*.toml"))]


def baselines() -> list[bytes]:
    return [(SAMPLE / "lrexport-baseline.json").read_bytes()]


def latencies() -> list[bytes]:
    figures = {"p50": 1.0, "p90": 1.1, "p99": 1.2, "iqr": 0.1, "rounds": 50, "threads": 1, "batch": 1, "ratio": 0.5}
    entry = {"path": "model.onnx", "sha256": "0" * 64, "bytes": 10, "latency_ms": figures, "samples_ms": [1.0, 1.1]}
    value = {"target": "local", "baseline": "a", "environment": {"cpu": "x", "cores": 2}, "files": {"a": entry, "b": entry}}
    return [json.dumps(value).encode()]


def sweeps() -> list[bytes]:
    figures = {"heldout_top1": 0.9, "test_top1": 0.8, "macs": 100, "params": 10, "latency_ratio": 0.5}
    dear = {**figures, "macs": 200, "heldout_top1": 0.95}
    trials = [
        {"number": 0, "state": "finished", "parameters": {"macs": 0.5}, "figures": figures, "run": "trials/0000"},
        {
            "number": 1,
            "state": "finished",
            "parameters": {"macs": 0.7, "scheme": "auto"},
            "figures": dear,
            "run": "trials/0001",
        },
        {"number": 2, "state": "failed", "reason": "disk full", "exit_code": 4},
    ]
    value = {"schema_version": 1, "study": "s", "objective": "macs", "made_with": {"space": ["macs=0.2..0.8"], "model": "x"}}
    value |= {"wanted": 3, "dense": dear, "trials": trials, "front": [0, 1]}
    return [json.dumps(value).encode()]


def graphs() -> list[bytes]:
    return [model.SerializeToString() for model in (network(None), network(2), _branches(), _recurrent(), _quantised())]


def _value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _tensor(name: str, *shape: int, kind: str = "f4") -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, kind), name)


def _model(graph: onnx.GraphProto, functions: tuple[onnx.FunctionProto, ...] = ()) -> onnx.ModelProto:
    domains = [helper.make_opsetid("", 18), *(helper.make_opsetid(function.domain, 1) for function in functions)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10, functions=functions)


def _branches() -> onnx.ModelProto:
    """An If, a Loop, a function, and sizes that are computed."""
    node = helper.make_node
    then, other = (
        helper.make_graph([node("MatMul", ["x", name], [f"{name}y"])], name, [], [_value(f"{name}y", 2, 4)]) for name in "ab"
    )
    body = helper.make_graph(
        [node("Identity", ["go"], ["again"]), node("MatMul", ["state", "a"], ["next"])],
        "body",
        [_value("i", kind=TensorProto.INT64), _value("go", kind=TensorProto.BOOL), _value("state", 2, 4)],
        [_value("again", kind=TensorProto.BOOL), _value("next", 2, 4)],
    )
    twice = helper.make_function(
        "own", "Twice", ["p"], ["q"], [node("Add", ["p", "p"], ["q"])], [helper.make_opsetid("", 18)], []
    )
    nodes = [
        node("If", ["yes"], ["chosen"], then_branch=then, else_branch=other),
        node("Loop", ["count", "yes", "chosen"], ["looped"], body=body),
        node("Twice", ["looped"], ["doubled"], domain="own"),
        node("Shape", ["doubled"], ["sizes"]),
        node("Reshape", ["doubled", "sizes"], ["shaped"]),
        node("Einsum", ["shaped", "a"], ["y"], equation="ij,jk->ik"),
    ]
    constants = [_tensor("a", 4, 4), _tensor("b", 4, 4), numpy_helper.from_array(np.array(3), "count")]
    constants.append(numpy_helper.from_array(np.array(True), "yes"))
    return _model(helper.make_graph(nodes, "g", [_value("x", "N", 4)], [_value("y", "N", 4)], constants), (twice,))


def _recurrent() -> onnx.ModelProto:
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["h"], hidden_size=3),
        helper.make_node("Squeeze", ["h"], ["s"]),
        helper.make_node("ConvTranspose", ["x", "k"], ["t"], strides=[2]),
    ]
    constants = [_tensor("w", 1, 12, 4), _tensor("r", 1, 12, 3), _tensor("k", 2, 3, 2)]
    outputs = [_value("s", 5, 3), _value("t", 5, 3, 9)]
    return _model(helper.make_graph(nodes, "g", [_value("x", 5, 2, 4)], outputs, constants))


def _quantised() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"]),
        helper.make_node("Conv", ["d", "v"], ["y"], group=2),
    ]
    scale = numpy_helper.from_array(np.array(0.1, "f4"), "s")
    zero = numpy_helper.from_array(np.array(0, "i1"), "z")
    outside = _tensor("e", 2, 2)
    outside.external_data.add(key="location", value="weights.bin")
    outside.external_data.add(key="length", value="16")
    outside.data_location = TensorProto.EXTERNAL
    outside.ClearField("raw_data")
    graph = helper.make_graph(
        nodes, "g", [_value("x", 1, 4, 8, 8)], [_value("y", 1, 4, 6, 6)], [_tensor("w", 4, 2, 3, 3, kind="i1")]
    )
    graph.initializer.extend([scale, zero, outside])
    return _model(graph)


def arrays() -> list[bytes]:
    from lrexport.artifacts.arrays import npz_bytes

    plain = {"x": np.ones((1, 3, 4, 4), "f4"), "ids": np.arange(6).reshape(2, 3), "flag": np.array(True)}
    compressed = io.BytesIO()
    np.savez_compressed(compressed, x=np.zeros((4, 100), "f4"))
    return [npz_bytes(plain), compressed.getvalue()]


def images() -> list[bytes]:
    contents = []
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8))
    for form in ("PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF", "GIF"):
        for mode in ("RGB", "L", "P"):
            stream = io.BytesIO()
            try:
                picture.convert(mode).save(stream, form)
            except (OSError, ValueError, KeyError):  # not every format has every mode
                continue
            contents.append(stream.getvalue())
    return contents


def answers() -> list[bytes]:
    """What the runner prints about two files, in one group."""
    machine = {
        "cpu": "Sample CPU",
        "cores": 4,
        "isa": ["neon"],
        "system": "Linux aarch64",
        "python": "3.11.2",
        "celsius": 45.5,
        "onnxruntime": "1.23",
        "throttled": 0,
        "governor": "performance",
    }
    samples = [1.0 + number / 100 for number in range(50)]
    figures = {"samples_ms": samples, "repeats": 1, "batch": 1, "load_ms": 3.0, "first_run_ms": 2.0, "peak_bytes": 1000}
    figures |= {"operators_ms": {"Conv": 0.5}, "nodes_ms": {"conv1": 0.5}}
    figures["inputs"] = {"x": {"shape": [1, 3, 8, 8], "dtype": "float32", "values": "random"}}
    lines = [
        {"environment": machine},
        {
            "progress": {
                "group": 0,
                "stage": "measuring",
                "done": 10,
                "of": 50,
                "samples_ms": {"a": samples[:9], "b": samples[:9]},
            }
        },
        {"group": 0, "models": {"a": figures, "b": figures}},
        {"done": machine},
    ]
    refused = [lines[0], {"group": 0, "error": "it does not fit", "model": "a"}]
    missing = [lines[0], {"error": "no onnxruntime", "missing": "onnxruntime", "python": "/usr/bin/python3"}]
    return ["\n".join(map(json.dumps, part)).encode() for part in (lines, refused, missing)]

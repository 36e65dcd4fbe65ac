"""Makes the models, the run and the baseline of tests/budget/sample, without torch: python -m tests.budget.make_sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lrexport.budget.limits import make_budget
from lrexport.check.run_check import CheckOptions, check
from lrexport.plan import Dense, Pair
from lrexport.runs.figures import Latency, Result, Results
from lrexport.runs.record import Record
from lrexport.runs.scores import Accuracy
from lrexport.runs.sources import DataSource, ModelSource

SAMPLE = Path(__file__).parent / "sample"
MACHINE = {"cpu": "Sample CPU @ 2 GHz", "cores": 4, "isa": ["avx2", "fma"], "system": "Linux x86_64", "python": "3.12.1"}
_CHANNELS, _SIDE, _CLASSES = 16, 8, 10
LATENCIES = {
    "dense": Latency(p50=0.8, p90=0.9, p99=1.1, iqr=0.04, rounds=100, threads=1, batch=1),
    "compressed": Latency(
        p50=0.5, p90=0.6, p99=0.7, iqr=0.03, rounds=100, threads=1, batch=1, ratio=0.625, ratio_iqr=(0.6, 0.65)
    ),
}


def network(rank: int | None) -> onnx.ModelProto:
    """(1, 3, 8, 8) → 10 classes; ``conv2`` is dense or a spatial pair of ``rank``."""
    c = _CHANNELS
    layers = [("conv1", (c, 3, 3, 3), [1, 1, 1, 1])]
    if rank is None:
        layers.append(("conv2", (c, c, 3, 3), [1, 1, 1, 1]))
    else:
        layers += [("conv2.first", (rank, c, 1, 3), [0, 1, 0, 1]), ("conv2.second", (c, rank, 3, 1), [1, 0, 1, 0])]
    nodes, weights, last = [], [], "input"
    for name, shape, pads in layers:
        weights.append(_weight(f"{name}.weight", shape))
        nodes.append(helper.make_node("Conv", [last, f"{name}.weight"], [f"{name}.out"], name=f"node_{name}", pads=pads))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"], name=f"relu_{name}"))
        last = f"{name}.relu"
    weights.append(_weight("head.weight", (_CLASSES, c)))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "head.weight"], ["output"], name="node_head", transB=1),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, _SIDE, _SIDE])
    result = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, _CLASSES])
    graph = helper.make_graph(nodes, "sample", [given], [result], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _weight(name: str, shape: tuple[int, ...]) -> TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def write_run(run: Path, rank: int) -> None:
    """A finished run: record and both ONNX files."""
    run.mkdir(parents=True, exist_ok=True)
    onnx.save(network(rank), run / "model.onnx")
    onnx.save(network(None), run / "dense.onnx")
    pair, whole = 2 * rank * _CHANNELS * 3, _CHANNELS * _CHANNELS * 9
    rest = {"conv1": _CHANNELS * 27, "head": _CLASSES * _CHANNELS}
    area = _SIDE * _SIDE
    kept = {"kind": "kept", "reason": "kept as asked"}
    plan: dict[str, Pair | Dense] = {
        "conv1": Dense(**kept, dense_macs=rest["conv1"] * area, dense_params=rest["conv1"]),
        "conv2": Pair(
            scheme="spatial", rank=rank, full_rank=48, energy_kept=0.93, dense_macs=whole * area, macs=pair * area,
            dense_params=whole, params=pair, shape=(_CHANNELS, _CHANNELS, 3, 3),
        ),
        "head": Dense(**kept, dense_macs=rest["head"], dense_params=rest["head"]),
    }  # fmt: skip
    others = sum(rest.values())
    record = Record(
        model=ModelSource(source="samples:network", input_shape=(3, _SIDE, _SIDE)),
        data=DataSource(source="digits", classes=10, train=1300, heldout=137, test=360, mean=(0.5,), std=(0.5,)),
        environment=MACHINE,
        plan=plan,
        results=Results(
            dense=_result(run / "dense.onnx", others + whole, area, "dense"),
            compressed=_result(run / "model.onnx", others + pair, area, "compressed"),
        ),
    )
    record = record.sealed(run, "model.onnx", "dense.onnx")
    record.save(run)


def _result(file: Path, params: int, area: int, name: str) -> Result:
    head = _CLASSES * _CHANNELS  # works once, the convolutions at every place
    right = {"dense": 342, "compressed": 339}[name]
    return Result(
        macs=(params - head) * area + head,
        macs_counted_on="onnx",
        params=params,
        bytes=file.stat().st_size,
        epochs=8,
        accuracy=Accuracy(top1=right / 360, top5=359 / 360, n=360, split="test"),
        latency_ms={"local": LATENCIES[name]},
    )


def main() -> None:
    (SAMPLE / "exports").mkdir(parents=True, exist_ok=True)
    onnx.save(network(8), SAMPLE / "exports" / "large.onnx")
    onnx.save(network(4), SAMPLE / "exports" / "small.onnx")
    # The baseline is the state before conv2 grew from rank 5 to 6.
    write_run(SAMPLE / "run", rank=5)
    anything = make_budget("any", {"max_bytes": "1 GB"}, lambda key: "here")
    check(["run"], [anything], SAMPLE, CheckOptions(SAMPLE / "lrexport-baseline.json", update_baseline=True))
    write_run(SAMPLE / "run", rank=6)


if __name__ == "__main__":
    import os

    os.chdir(SAMPLE)
    main()

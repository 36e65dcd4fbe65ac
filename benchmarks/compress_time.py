"""Compressing without data over the bare `torch.linalg.svd` of the same layers' matrices, interleaved in one process.

- bare: `torch.linalg.svd` in float32 of every matrix that `decompose` factorises, and nothing else
- core: decompose, select and fold, from a network in memory to the folded one
- whole: `lrexport compress` without data as a call: build, count MACs, core, both networks saved and hashed

    python benchmarks/compress_time.py [--model torchvision:resnet50] [--rounds 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import interleaved, machine, write_markdown
from torch import Tensor, nn

from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.goals import Macs
from lrexport.events import ignore_events
from lrexport.lowrank.eligibility.factorisable import Factorisable
from lrexport.lowrank.eligibility.inspection import inspect_layers
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.lowrank.selection.select import select
from lrexport.measure.statistics import spread
from lrexport.networks.building import resolve
from lrexport.runs.request import RunRequest
from lrexport.workflow import pipeline

MACS = 0.5


def matrices(network: nn.Module, shape: tuple[int, ...]) -> list[Tensor]:
    """Those that `decompose` makes, by the scheme of its choice."""
    made = []
    for name, facts in inspect_layers(network, shape, "spatial").items():
        if isinstance(facts, Factorisable):
            layer = network.get_submodule(name)
            made.append(SCHEMES[facts.scheme].matrix(layer.weight.detach(), spec_of(layer)))
    return made


def steps(model: str) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    recipe = resolve(model)
    network = recipe.build()
    every = matrices(network, recipe.signature)

    def bare() -> None:
        for matrix in every:
            torch.linalg.svd(matrix, full_matrices=False)

    def core() -> None:
        svd = decompose(copy.deepcopy(network), recipe.signature)
        selection = select(svd, Macs(MACS))
        fold(svd, selection)

    def whole() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            config = CompressConfig(TrainConfig(model=model, device="cpu"), Macs(MACS))
            pipeline.compress(RunRequest(config, Path(scratch) / "run", ignore_events))

    return {"bare": bare, "core": core, "whole": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    samples = interleaved(steps(options.model), options.rounds, warm_up=1)
    lines = [
        f"{options.model}, half of the MACs, random weights; {options.rounds} interleaved rounds, {options.threads} threads."
    ]
    lines += ["", "| what | median s | IQR s | over bare | IQR of the ratio |", "|---|---:|---:|---:|---:|"]
    for name, times in samples.items():
        found = spread(times)
        ratio = spread([mine / other for mine, other in zip(times, samples["bare"], strict=True)])
        cells = [name, f"{found.p50:.2f}", f"{found.iqr:.2f}", f"{ratio.p50:.2f}", f"{ratio.p25:.2f}–{ratio.p75:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Goal: `compress` without data takes at most twice the bare SVD of the layers."]
    lines += ["Bare is float32; lrexport decomposes in float64, for factors right to the last bits of float32."]
    write_markdown(Path("compress_time.md"), "Time of compressing without data", lines, machine())


if __name__ == "__main__":
    main()

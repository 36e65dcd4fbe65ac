"""What SVD training costs and how it scales: regularisers' share of a step, steps as ranks fall, one and two processes.

- a step in SVD form over the dense step, with its regularisers' share, at full rank and cut to shares of the MACs; all
  interleaved in one process
- images a second of `lrexport train` on digits with one process on one thread, one on two, two on one each

    python benchmarks/scaling.py [--rounds 8] [--repeats 3]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from common import interleaved, machine, write_markdown
from torch import nn

from lrexport.config.goals import Macs
from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.lowrank.factors.svd_form import cut
from lrexport.lowrank.regularisation.regularisers import losses
from lrexport.lowrank.selection.select import select
from lrexport.measure.statistics import spread
from lrexport.networks.building import resolve
from lrexport.plan import Pair
from lrexport.training.engine import to_fast_layout

CASES = (("resnet20", "resnet20", (3, 32, 32)), ("ResNet-18", "torchvision:resnet18?num_classes=10", (3, 64, 64)))
BATCH = 128
SHARES = (1.0, 0.6, 0.3)
WAYS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}


def cut_to(svd: SVDNetwork, share: float) -> None:
    """Cut the layers to the ranks of the plan at this share of the MACs."""
    selection = select(svd, Macs(share))
    for name, planned in selection.plan.items():
        if isinstance(planned, Pair):
            cut(svd.network.get_submodule(name), *selection.truncations[name][planned.scheme].factors(planned.rank))


def step(network: nn.Module, svd: SVDNetwork | None, images: torch.Tensor, labels: torch.Tensor) -> None:
    loss = F.cross_entropy(network(images), labels)
    if svd is not None:
        loss = loss + losses(svd, 1.0, 0.03)
    loss.backward()
    network.zero_grad(set_to_none=True)


def steps(title: str, model: str, shape: tuple[int, ...], rounds: int) -> list[str]:
    """Table rows of one network."""
    dense = to_fast_layout(resolve(model, shape).build(), shape).train()
    images, labels = torch.randn(BATCH, *shape), torch.randint(0, 10, (BATCH,))
    images = images.contiguous(memory_format=torch.channels_last)
    every = {"dense": lambda: step(dense, None, images, labels)}
    for share in SHARES:
        network = copy.deepcopy(dense)
        svd = decompose(network, shape)
        if share < 1:
            cut_to(svd, share)
        to_fast_layout(network, shape).train()
        every[f"{share} plain"] = lambda network=network: step(network, None, images, labels)
        every[f"{share}"] = lambda network=network, svd=svd: step(network, svd, images, labels)
    times = interleaved(every, rounds, warm_up=2)
    rows = []
    for share in SHARES:
        ratio = spread([mine / base for mine, base in zip(times[f"{share}"], times["dense"], strict=True)])
        part = spread(
            [(mine - plain) / mine for mine, plain in zip(times[f"{share}"], times[f"{share} plain"], strict=True)]
        )
        rows.append(f"| {title} | {share} | {ratio.p50:.2f} ({ratio.iqr:.2f}) | {100 * part.p50:.0f} % |")
    return rows


def rate(processes: int, threads: int) -> float:
    """Images a second of the second and third epoch of dense training, by the log."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        command = ["resnet20", "--data", "digits", "--dense-epochs", "3", "--svd-epochs", "0", "--devices", str(processes)]
        command += ["--device", "cpu", "--precision", "float32", "-o", "run"]
        subprocess.run(
            [sys.executable, "-m", "lrexport", "train", *command],
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
        )
        lines = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if line["event"] == "epoch"]
    return sum(rates[1:]) / len(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    lines = [
        f"Batch {BATCH}, spatial, both regularisers; medians of {options.rounds} interleaved rounds, IQR in brackets.",
        "",
    ]
    lines += ["| network | cut to MACs | step ÷ dense step | regularisers' share of it |", "|---|---:|---:|---:|"]
    for title, model, shape in CASES:
        lines += steps(title, model, shape, options.rounds)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way, setting in WAYS.items():
            found[way].append(rate(*setting))
    lines += ["", "Dense training of ResNet-20 on digits at batch 128, whole processes, repeated in turn.", ""]
    lines += ["| | images a second, median | range |", "|---|---:|---:|"]
    for way, rates in found.items():
        lines.append(f"| {way} | {spread(rates).p50:.0f} | {min(rates):.0f}–{max(rates):.0f} |")
    write_markdown(Path("scaling.md"), "SVD training: cost and scaling", lines, machine())


if __name__ == "__main__":
    main()

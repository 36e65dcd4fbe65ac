"""A training step in bfloat16 (autocast) over one in float32 on this CPU, dense and folded at half the MACs, interleaved.

python benchmarks/cpu_precision.py [--rounds 20] [--threads 1]
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from common import interleaved, machine, write_markdown
from step_time import stepper
from torch import Tensor, nn

import lrexport
from lrexport.measure.statistics import spread
from lrexport.networks.building import resolve

REDUCED = " in bfloat16"
CASES = (
    ("ResNet-20", "resnet20", (3, 32, 32), 128),
    ("ResNet-18", "torchvision:resnet18?num_classes=10", (3, 64, 64), 32),
    ("ResNet-18", "torchvision:resnet18?num_classes=10", (3, 224, 224), 8),
    ("MobileNetV3-large", "torchvision:mobilenet_v3_large?num_classes=10", (3, 96, 96), 32),
)


class Reduced(nn.Module):
    """A network that computes in bfloat16 and returns float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(images).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    features = [name for name in ("avx512_bf16", "amx_tile") if getattr(torch.cpu, f"_is_{name}_supported")()]
    has = f"Of avx512_bf16 and amx_tile the processor has {' and '.join(features) or 'neither'}."
    lines = [f"Median of {options.rounds} interleaved rounds, threads: {options.threads}. {has}", ""]
    lines.append(
        "| network | batch | dense, ms in float32 | bfloat16, ratio, IQR | pairs, ms in float32 | bfloat16, ratio, IQR |"
    )
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for title, model, shape, batch in CASES:
        dense = resolve(model, shape).build()
        pairs = lrexport.compress(copy.deepcopy(dense), shape, lrexport.Macs(0.5)).network
        images = torch.randn(batch, *shape).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, 10, (batch,))
        every = {}
        for kind, network in (("dense", dense), ("pairs", pairs)):
            every[kind] = stepper(copy.deepcopy(network), None, images, labels)
            every[f"{kind}{REDUCED}"] = stepper(Reduced(copy.deepcopy(network)), None, images, labels)
        samples = interleaved(every, options.rounds, warm_up=2)
        cells = []
        for kind in ("dense", "pairs"):
            plain, reduced = samples[kind], samples[f"{kind}{REDUCED}"]
            ratio = spread([mine / other for mine, other in zip(reduced, plain, strict=True)])
            cells += [f"{1e3 * spread(plain).p50:.0f}", f"{ratio.p50:.2f} ({ratio.p25:.2f}–{ratio.p75:.2f})"]
        lines.append(f"| {title} at {shape[1]}×{shape[2]} | {batch} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    write_markdown(Path("cpu_precision.md"), "bfloat16 in training on a CPU", lines, machine())


if __name__ == "__main__":
    main()

"""A training step where glibc keeps freed memory, as lrexport has it on the CPU, over one where it gives it back.

What malloc does holds for a whole process, so each measurement is one: the two take turns, and ratios are of neighbours.

    python benchmarks/held_memory.py [--rounds 6] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import machine, write_markdown
from step_time import CASES, stepper

from lrexport.config.goals import Macs
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.selection.select import select
from lrexport.measure.statistics import spread
from lrexport.networks.building import resolve
from lrexport.torch_tools.memory import hold_freed_memory

_WARM_UP_STEPS, _STEPS = 3, 8
_SHARE = 0.3  # of the MACs, which the low-rank network has


def one(case: int, low_rank: bool, held: bool, threads: int) -> dict[str, float]:
    """Median milliseconds of a step in this process, and the most memory that it had, in MiB."""
    torch.set_num_threads(threads)
    if held and not hold_freed_memory():
        raise SystemExit("there is no glibc here, or it has settings of its own")
    _, model, shape, batch = CASES[case]
    network = resolve(model, shape).build()
    if low_rank:
        svd = decompose(network, shape)
        network = fold(svd, select(svd, Macs(_SHARE)).plan)
    images = torch.randn(batch, *shape).contiguous(memory_format=torch.channels_last)
    step, taken = stepper(network, None, images, torch.randint(0, 10, (batch,))), []
    for number in range(_WARM_UP_STEPS + _STEPS):
        began = time.perf_counter()
        step()
        if number >= _WARM_UP_STEPS:
            taken.append(1e3 * (time.perf_counter() - began))
    return {"ms": statistics.median(taken), "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def row(case: int, low_rank: bool, rounds: int, threads: int) -> str:
    """A line of the table: both kinds of process, whose order changes from round to round."""
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for number in range(rounds):
        for held in (False, True) if number % 2 else (True, False):
            words = ["--one", str(case), str(int(low_rank)), str(int(held)), "--threads", str(threads)]
            output = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
            found[held].append(json.loads(output.stdout))
    title, _, shape, batch = CASES[case]
    kind = f"pairs of {_SHARE:g} of the MACs" if low_rank else "dense"
    ratio = spread([mine["ms"] / other["ms"] for mine, other in zip(found[True], found[False], strict=True)])
    cells = [f"{title} at {shape[1]}×{shape[2]}, batch {batch}, {kind}"]
    cells += [f"{statistics.median(each['ms'] for each in found[held]):.0f}" for held in (False, True)]
    cells += [f"{ratio.p50:.2f}", f"{ratio.p25:.2f}–{ratio.p75:.2f}"]
    cells += [f"{statistics.median(each['MiB'] for each in found[held]):.0f}" for held in (False, True)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case, low_rank, held = options.one
        print(json.dumps(one(case, bool(low_rank), bool(held), options.threads)))
        return
    lines = [f"Medians of {options.rounds} processes of {_STEPS} steps each, threads: {options.threads}, float32.", ""]
    lines += ["| step | given back, ms | held, ms | held ÷ given back | IQR of the ratio | given back, MiB | held, MiB |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    lines += [
        row(case, low_rank, options.rounds, options.threads) for case in range(len(CASES)) for low_rank in (False, True)
    ]
    write_markdown(Path("held_memory.md"), "Training steps that keep the memory they free", lines, machine())


if __name__ == "__main__":
    main()

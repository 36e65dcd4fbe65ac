"""Start-up of the command line over a bare interpreter: whole processes, interleaved, and what they import.

python benchmarks/startup.py [--rounds 20]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from common import machine, write_markdown

from lrexport.measure.statistics import spread

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "lrexport --help": [sys.executable, "-m", "lrexport", "--help"],
    "lrexport compress --help": [sys.executable, "-m", "lrexport", "compress", "--help"],
}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    samples: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        seconds(command)
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            samples[name].append(seconds(command))
    bare = samples["python -c pass"]
    rows = []
    for name, times in samples.items():
        found = spread(times)
        over = spread([mine - other for mine, other in zip(times, bare, strict=True)])
        rows.append([name, f"{found.p50:.3f}", f"{found.iqr:.3f}", f"{over.p50:+.3f}"])
    probe = "import sys; from lrexport.cli.main import run; run(['--help']); print('torch' in sys.modules, file=sys.stderr)"
    imported = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stderr.strip()
    table = ["| command | median s | IQR s | over bare s |", "|---|---:|---:|---:|"]
    table += ["| " + " | ".join(row) + " |" for row in rows]
    lines = [f"{rounds} rounds, interleaved. Goal: `lrexport --help` within 0.25 s of bare Python, no torch imported.", ""]
    lines += [*table, "", f"torch imported by `lrexport --help`: {imported}"]
    write_markdown(Path("startup.md"), "Start-up", lines, machine())


if __name__ == "__main__":
    main()

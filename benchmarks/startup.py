"""Start-up over a bare interpreter: user CPU time of whole processes, interleaved, and what they import.

python benchmarks/startup.py [--rounds 20]
"""

from __future__ import annotations

import argparse
import compileall
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import machine, write_markdown

import lrexport
from lrexport.measure.statistics import spread

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "lrexport --help": [sys.executable, "-m", "lrexport", "--help"],
    "lrexport compress --help": [sys.executable, "-m", "lrexport", "compress", "--help"],
    "lrexport compress --help-all": [sys.executable, "-m", "lrexport", "compress", "--help-all"],
    "python -c 'import onnx'": [sys.executable, "-c", "import onnx"],
    "lrexport check model.onnx": [sys.executable, "-m", "lrexport", "check", "model.onnx"],
    "lrexport check run": [sys.executable, "-m", "lrexport", "check", "run"],
}
# Reported before torch is loaded, with exit code 2 or 3.
MISTAKES = {
    "lrexport compress resnet21 …": ["compress", "resnet21", "--macs", "0.5", "-o", "out"],
    "lrexport compress torchvision:resnet_18 …": ["compress", "torchvision:resnet_18", "--macs", "0.5", "-o", "out"],
    "lrexport compress absent:make …": ["compress", "absent:make", "--macs", "0.5", "-o", "out"],
    "lrexport compress resnet20 --weights absent.pt …": [
        *("compress", "resnet20", "--weights", "absent.pt", "--macs", "0.5", "-o", "out"),
    ],
    "lrexport train resnet20 --data folder:absent -o out": ["train", "resnet20", "--data", "folder:absent", "-o", "out"],
    "lrexport sweep resnet20 -o out": ["sweep", "resnet20", "-o", "out"],
    "lrexport onnx run --data folder:absent": ["onnx", "run", "--data", "folder:absent"],
    "lrexport compress resnet20 --macs 2 -o out": ["compress", "resnet20", "--macs", "2", "-o", "out"],
    "lrexport compress resnet20 --mac 0.5 -o out": ["compress", "resnet20", "--mac", "0.5", "-o", "out"],
    "lrexport inspect absent.onnx": ["inspect", "absent.onnx"],
    "lrexport report absent": ["report", "absent"],
    "lrexport bench run --target phone": ["bench", "run", "--target", "phone"],
}
COMMANDS |= {name: [sys.executable, "-m", "lrexport", *arguments] for name, arguments in MISTAKES.items()}
SAMPLE = Path(__file__).parents[1] / "tests" / "budget" / "sample"
GOALS = (
    "Goals: `lrexport --help` within 0.1 s of bare Python, no torch imported; `lrexport check` within 0.1 s of bare Python "
    "with onnx loaded; mistakes in options (all further rows) within 0.5 s. "
    "Seconds are user CPU time, which other processes hardly change."
)
BUDGET = '[budget]\nmax_bytes = "1 MB"\nmax_macs = "1M"\nforbidden_operators = ["Loop"]\n'


def prepare(folder: Path) -> None:
    """A bare model, a run and a budget for both."""
    shutil.copytree(SAMPLE / "run", folder / "run")
    shutil.copy(SAMPLE / "run" / "model.onnx", folder)
    (folder / "lrexport.toml").write_text(BUDGET, encoding="utf-8")


def seconds(command: list[str], folder: Path) -> float:
    """CPU time of a process, in user mode."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, check=False, capture_output=True, cwd=folder)
    took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    is_mistake = command[3:] in MISTAKES.values()
    assert (done.returncode in (2, 3)) if is_mistake else done.returncode == 0, (command, done.stderr)
    return took


def measure(rounds: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for command in COMMANDS.values():
            seconds(command, Path(folder))
        for _ in range(rounds):
            for name, command in COMMANDS.items():
                samples[name].append(seconds(command, Path(folder)))
    return samples


def row(name: str, times: list[float], others: tuple[list[float], list[float]]) -> str:
    found = spread(times)
    over = [spread([mine - other for mine, other in zip(times, those, strict=True)]).p50 for those in others]
    return f"| {name} | {found.p50:.3f} | {found.iqr:.3f} | {over[0]:+.3f} | {over[1]:+.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    compileall.compile_dir(Path(lrexport.__file__).parent, quiet=2)  # as an installation from a package index does
    samples = measure(rounds)
    bare = samples["python -c pass"], samples["python -c 'import onnx'"]
    probe = "import sys; from lrexport.cli.main import run; run(['--help']); print('torch' in sys.modules, file=sys.stderr)"
    imported = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stderr.strip()
    table = ["| command | median s | IQR s | over bare s | over bare with onnx s |", "|---|---:|---:|---:|---:|"]
    table += [row(name, times, bare) for name, times in samples.items()]
    lines = [f"{rounds} rounds, interleaved. {GOALS}", ""]
    lines += [*table, "", f"torch imported by `lrexport --help`: {imported}"]
    write_markdown(Path("startup.md"), "Start-up", lines, machine())


if __name__ == "__main__":
    main()

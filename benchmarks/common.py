"""What all benchmarks share: the machine in one line, and results as Markdown."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path

from lrexport.measure.environment import environment

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    facts = environment()
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "onnxruntime") if name in facts)
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['system']}; {versions}"


def write_markdown(name: Path, title: str, lines: list[str], where: str) -> None:
    """Write benchmarks/results/NAME with date, machine and command, and print it."""
    command = "python " + shlex.join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    date = datetime.date.today().isoformat()
    head = [f"# {title}", "", f"{date}; {where}", "", f"    {command}", ""]
    text = "\n".join([*head, *lines]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)

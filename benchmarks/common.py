"""Shared by all benchmarks: the machine in one line, and results as Markdown."""

from __future__ import annotations

import datetime
import json
import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrexport.measure.environment import environment

RESULTS = Path(__file__).parent / "results"


def machine(facts: Mapping[str, Any] | None = None) -> str:
    """A machine in one line: this one, or that of a record's ``environment``."""
    facts = facts or environment()
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "onnxruntime") if name in facts)
    cores = "1 core" if facts["cores"] == 1 else f"{facts['cores']} cores"
    accelerator = f", {facts['accelerator']}" if "accelerator" in facts else ""
    return f"{facts['cpu']}, {cores}{accelerator}, {facts['system']}; {versions}"


def interleaved(every: dict[str, Callable[[], object]], rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each function in every round, in shuffled order, after uncounted rounds."""
    samples: dict[str, list[float]] = {name: [] for name in every}
    order, shuffler = list(every), random.Random(0)
    for round_number in range(rounds + warm_up):
        shuffler.shuffle(order)
        for name in order:
            began = time.perf_counter()
            every[name]()
            if round_number >= warm_up:
                samples[name].append(time.perf_counter() - began)
    return samples


def read_rows(path: Path, case: Callable[..., Any]) -> dict[Any, dict[str, Any]]:
    """What :func:`keep_rows` wrote, by ``case``, a frozen dataclass; nothing if there is no file yet."""
    if not path.is_file():
        return {}
    return {case(**entry.pop("case")): entry for entry in json.loads(path.read_text(encoding="utf-8"))}


def keep_rows(path: Path, results: Mapping[Any, Mapping[str, Any]]) -> None:
    """Write all results so far as JSON, so that an interrupted benchmark goes on."""
    entries = [{"case": asdict(case), **entry} for case, entry in results.items()]
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_markdown(name: Path, title: str, lines: list[str], where: str) -> None:
    """Write benchmarks/results/NAME with date, machine and command, and print it."""
    command = "python " + shlex.join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    date = datetime.date.today().isoformat()
    head = [f"# {title}", "", f"{date}; {where}", "", f"    {command}", ""]
    text = "\n".join([*head, *lines]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)

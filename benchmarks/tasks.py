"""Other tasks than pictures' classes, from the command line: dense, pruned, healed without labels, healed with labels.

    python benchmarks/tasks.py run --scratch DIR      # trains, compresses and scores; what is done already is left out
    python benchmarks/tasks.py latency --scratch DIR  # exports the saved runs and times them beside the dense network
    python benchmarks/tasks.py commands --scratch DIR # runs healing's commands again, each in a process of its own
    python benchmarks/tasks.py table --scratch DIR    # writes benchmarks/results/tasks.md

Networks and data are in tasks_networks.py. All compressions are commands of lrexport, printed with the time they took,
without the seconds that importing torch takes; DIR/commands has their outputs. Scores are those of the torch networks on
the test samples; lrexport trains with held-out parts of the training samples. A row needs the packages that it names:

    pip install 'lrexport[tasks,timm]' scikit-learn scikit-image segmentation-models-pytorch transformers sktime

cifar10_jpeg.npz, JPEG copies of CIFAR-10's pictures, is named by the environment variable CIFAR10_JPEG.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tasks_networks
import torch
from common import machine, write_markdown

import lrexport
from lrexport.artifacts.run_files import DENSE, RECORD
from lrexport.cli.main import run as lrexport_command
from lrexport.config.export_options import ExportOptions
from lrexport.runs import loading
from lrexport.runs.record import Record, load_record
from lrexport.tasks.scoring import score
from lrexport.text import number_of
from lrexport.workflow.export_data import load_export_data

BUDGETS, SEEDS = (0.5, 0.33), (0, 1, 2)
ROWS = {
    "free": "pruned without data",
    "unlabelled": "pruned with unlabelled data",
    "healed": "healed without labels",
    "labels": "healed with labels",
}
SHORT = ("--device", "cpu", "--svd-epochs", "0", "--optimizer", "adam", "--batch-size", "32")
TRAINING = ("--dense-lr", "0.002", "--lr", "0.0005")


@dataclass(frozen=True)
class Job:
    """A network with its data: what the commands name, how long it is trained, and the goal at half of the MACs."""

    title: str
    model: str
    data: str
    goal: float  # the largest drop of the metric, in its unit
    epochs: int
    tuning: int  # epochs with labels after pruning
    shape: str | None = None
    needs: tuple[str, ...] = ()
    remark: str = ""

    def missing(self) -> str | None:
        """What is not installed or not given, for a line; None if nothing is."""
        lacking = [name for name in (*self.needs, "sklearn") if importlib.util.find_spec(name) is None]
        if lacking:
            return f"{', '.join(lacking)} is not installed"
        if self.data == "cifar" and not Path(os.environ.get(tasks_networks.CIFAR, "")).is_file():
            return f"{tasks_networks.CIFAR} names no file"
        return None


SCENES = ("skimage",)
DETECTION = ("torchmetrics", "pycocotools", *SCENES)
JOBS = {
    "vowels": Job(
        *("A 1-D network: Japanese Vowels of sktime", "tasks_networks:series", "vowels", 0.5, 40, 10),
        needs=("sktime",),
    ),
    "pair": Job(
        "Two inputs: two noisy pictures of a digit",
        "tasks_networks:Pair",
        "pairs",
        0.5,
        12,
        4,
        needs=SCENES,
    ),
    "hugging": Job(
        *("Hugging Face's ResNet, built from its configuration: digits over textures", "tasks_networks:hugging"),
        *("digits48", 0.5, 12, 4),
        needs=("transformers", *SCENES),
    ),
    "timm": Job(
        *(
            "timm's resnetv2_18, mean and std 0.5: digits over textures",
            "timm:resnetv2_18?num_classes=10",
            "digits32",
            0.5,
            8,
            3,
        ),
        shape="3,32,32",
        needs=("timm", *SCENES),
    ),
    "cifar": Job(
        *("Super-resolution ×2: CIFAR-10 (JPEG)", "tasks_networks:doubler", "cifar", 0.1, 12, 4),
        needs=("torchmetrics",),
    ),
    "photos": Job(
        *("Super-resolution ×2: photographs of scikit-image", "tasks_networks:doubler", "photos", 0.1, 10, 4),
        shape="3,24,24",
        needs=("torchmetrics", *SCENES),
    ),
    "unet": Job(
        *("Segmentation: a U-Net of segmentation-models-pytorch, scenes of digits", "tasks_networks:unet"),
        *("masks32", 1.0, 12, 4),
        needs=("segmentation_models_pytorch", *SCENES),
    ),
    "lraspp": Job(
        *("Segmentation: torchvision's LR-ASPP, scenes of digits", "tasks_networks:lraspp", "masks64", 1.0, 30, 8),
        needs=SCENES,
    ),
    "detector": Job(
        *("Detection: torchvision's SSDlite, scenes of digits", "tasks_networks:detector", "boxes", 1.0, 50, 12),
        needs=DETECTION,
        remark="On an AMD EPYC the same training gave 68.62 %.",
    ),
}


@dataclass(frozen=True)
class Scratch:
    """Where runs, outputs and results are kept, so that an interrupted benchmark continues."""

    folder: Path

    @property
    def lines(self) -> Path:
        return self.folder / "results.jsonl"

    def run(self, job: str, seed: int, row: str, budget: float | None = None) -> Path:
        return self.folder / f"{job}-{seed}-{row}{'' if budget is None else f'-{budget:g}'}"

    def results(self) -> list[dict[str, Any]]:
        """All results, the latest of each kind."""
        if not self.lines.is_file():
            return []
        entries = map(json.loads, self.lines.read_text(encoding="utf-8").splitlines())
        latest = {tuple(entry[key] for key in ("kind", "job", "seed", "row", "budget")): entry for entry in entries}
        return list(latest.values())

    def find(self, kind: str, job: str, seed: int, row: str, budget: float | None) -> dict[str, Any] | None:
        key = {"kind": kind, "job": job, "seed": seed, "row": row, "budget": budget}
        return next((entry for entry in self.results() if key.items() <= entry.items()), None)

    def add(self, **entry: Any) -> None:
        with self.lines.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)

    def command(self, run: Path, *arguments: str) -> float:
        """Run one command of lrexport; the seconds it took. Raises RuntimeError if it fails."""
        log = self.folder / "commands" / f"{run.name}-{arguments[0]}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"lrexport {shlex.join(arguments)}", flush=True)
        began = time.monotonic()
        with (
            log.open("w", encoding="utf-8") as output,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            code = lrexport_command(list(arguments))
        if code in (130, 143):  # stopped by the user: the same command resumes
            raise SystemExit(code)
        if code:
            raise RuntimeError(f"exit code {code}: {log.read_text(encoding='utf-8')[-600:]}")
        return time.monotonic() - began


@dataclass(frozen=True)
class Effort:
    """How long to train and heal; ``share`` is that of a job's epochs, at least one each."""

    heal_minutes: float
    share: float

    def epochs(self, count: int) -> int:
        return max(1, round(self.share * count))


def command_of(scratch: Scratch, name: str, seed: int, row: str, budget: float | None, effort: Effort) -> list[str]:
    """The arguments of lrexport that make a row of a job."""
    job, run = JOBS[name], scratch.run(name, seed, row, budget)
    shape = ["--input-shape", job.shape] if job.shape else []
    common = [*shape, *SHORT, "--seed", str(seed)]
    labelled = f"tasks_networks:{job.data}"
    if row == "dense":
        epochs = str(effort.epochs(job.epochs))
        return ["train", job.model, "--data", labelled, *common, *TRAINING, "--dense-epochs", epochs, "-o", str(run)]
    untuned = ["--data", f"{labelled}_unlabelled", "--fine-tune-epochs", "0", "--heal-minutes"]
    options = {
        "free": [*shape, "--seed", str(seed)],
        "unlabelled": [*common, *untuned, "0"],
        "healed": [*common, *untuned, f"{effort.heal_minutes:g}"],
        "labels": [
            *(*common, "--data", labelled, "--heal-minutes", f"{effort.heal_minutes / 2:g}"),
            *(*TRAINING, "--fine-tune-epochs", str(effort.epochs(job.tuning))),
        ],
    }
    weights = scratch.run(name, seed, "dense") / DENSE
    goal = ["--weights", str(weights), "--macs", f"{budget:g}"]
    return ["compress", job.model, *goal, *options[row], "--no-export-check", "-o", str(run)]


def run_job(scratch: Scratch, name: str, seed: int, budget: float, effort: Effort, rows: Sequence[str]) -> None:
    """Train the dense network of a job, compress it by ``rows``, and score all of them; what is done is left out."""
    for row, goal in (("dense", None), *((row, budget) for row in rows)):
        if scratch.find("score", name, seed, row, goal) is None:
            run = scratch.run(name, seed, row, goal)
            seconds = scratch.command(run, *command_of(scratch, name, seed, row, goal, effort), "--resume")
            _score(scratch, name, seed, row, goal, run, seconds)


def _score(scratch: Scratch, name: str, seed: int, row: str, budget: float | None, run: Path, seconds: float) -> None:
    """Score a run's network on the labelled test samples, and keep it."""
    record = load_record(run)
    dense = row == "dense"
    network = loading.load_start(run, record) if dense else loading.load(run)
    options = ExportOptions(data=f"tasks_networks:{JOBS[name].data}")
    data = load_export_data(record, options, network, run / RECORD)
    assert data.test is not None
    assert data.task is not None
    found = score(network, data.test, torch.device("cpu"), "test", task=data.task)
    compressed = record.results.compressed
    scratch.add(
        kind="score",
        job=name,
        seed=seed,
        row=row,
        budget=budget,
        metric=found.metric.name,
        unit=found.metric.unit,
        value=found.primary,
        samples=found.n,
        macs=compressed and compressed.macs,
        dense_macs=record.results.dense and record.results.dense.macs,
        fidelity=_fidelity(record),
        epochs=record.config.get("dense_epochs" if dense else "fine_tune_epochs"),
        heal_minutes=record.config.get("heal_minutes"),
        seconds=round(seconds, 1),
        load=round(os.getloadavg()[0], 1),
        notes=record.notes,
    )


def _fidelity(record: Record) -> dict[str, Any] | None:
    return json.loads(record.fidelity.model_dump_json()) if record.fidelity is not None else None


def measure_latency(scratch: Scratch, name: str, seed: int, budget: float, rounds: int) -> None:
    """Export the network healed without labels and time it beside the dense one, interleaved."""
    run = scratch.run(name, seed, "healed", budget)
    if not (run / RECORD).is_file():
        return
    scratch.command(run, "onnx", str(run), "--rounds", str(rounds), "--no-rescore")
    results = load_record(run).results
    assert results.dense is not None
    assert results.compressed is not None
    dense, compressed = (next(iter(each.latency_ms.values())) for each in (results.dense, results.compressed))
    scratch.add(
        kind="latency",
        job=name,
        seed=seed,
        row="healed",
        budget=budget,
        rounds=rounds,
        dense_ms=dense.p50,
        compressed_ms=compressed.p50,
        ratio=compressed.ratio,
        load=round(os.getloadavg()[0], 1),
    )


def time_command(scratch: Scratch, name: str, seed: int, budget: float) -> None:
    """Run the command that heals without labels as a user does: a process in a folder with the weights and the module."""
    healed = scratch.find("score", name, seed, "healed", budget)
    weights = scratch.run(name, seed, "dense") / DENSE
    if healed is None or scratch.find("command", name, seed, "healed", budget) is not None:
        return
    folder = scratch.folder / "separate"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / weights.parent.name).mkdir(parents=True)
    shutil.copy(weights, folder / weights.parent.name)
    shutil.copy(tasks_networks.__file__, folder)
    arguments = command_of(Scratch(Path()), name, seed, "healed", budget, Effort(healed["heal_minutes"], 1))
    program, began = Path(sys.executable).with_name("lrexport"), time.monotonic()
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-600:]}")
    seconds = round(time.monotonic() - began, 1)
    load = round(os.getloadavg()[0], 1)
    scratch.add(kind="command", job=name, seed=seed, row="healed", budget=budget, seconds=seconds, load=load)


def table(scratch: Scratch) -> list[str]:
    """All results as Markdown; means over seeds, with the seeds that were measured."""
    results = scratch.results()
    loads = sorted(entry["load"] for entry in results) or [0.0]
    lines = [
        "Small networks and pictures, trained for minutes on one core. Scores are of the test samples, which no",
        "training or repair saw. Seconds are those of the whole command, without importing",
        f"torch, on one core of a machine that others used at the same time (load {loads[0]:g} to {loads[-1]:g}).",
        "Latency is that of the network healed without labels, relative to the dense one, measured in turns in ONNX",
        "Runtime where nothing else ran, seed 0. Dense networks get none of the epochs with labels of the last rows, so",
        "only the rows without labels compare networks of equal training.",
        "",
    ]
    for name, job in JOBS.items():
        scores = [entry for entry in results if entry["kind"] == "score" and entry["job"] == name]
        dense = {entry["seed"]: entry for entry in scores if entry["row"] == "dense"}
        lines += [f"## {job.title}", ""]
        if not dense:
            lines += [f"Not measured: {job.missing() or 'not run yet'}.", ""]
            continue
        lines += [*_head(name, scores, dense), *_rows(scores, dense, _ratios(scratch, name)), ""]
    return [*lines, *_commands(results)]


def _commands(results: list[dict[str, Any]]) -> Iterator[str]:
    timed = [entry for entry in results if entry["kind"] == "command"]
    if timed:
        yield "## Commands as a user runs them"
        yield ""
        yield "Each command above as a process, in a folder with tasks_networks.py and the weights: from the start of"
        yield "Python to the end of healing and scoring."
        yield ""
        yield "| | seed | MACs | healing, at most | seconds | load of the machine |"
        yield "|---|---:|---:|---:|---:|---:|"
        for entry in timed:
            same = ("job", "seed", "row", "budget")
            healed = next(
                each for each in results if each["kind"] == "score" and all(each[key] == entry[key] for key in same)
            )
            run = f"{JOBS[entry['job']].title} | {entry['seed']} | {entry['budget']:g} | {healed['heal_minutes']:g} min"
            yield f"| {run} | {entry['seconds']:.0f} | {entry['load']:g} |"
        yield ""


def _head(name: str, scores: list[dict[str, Any]], dense: dict[int, dict[str, Any]]) -> Iterator[str]:
    job, seeds = JOBS[name], sorted(dense)
    first = dense[seeds[0]]
    values = ", ".join(_shown(dense[seed]["value"], first) for seed in seeds)
    minutes = statistics.mean(entry["seconds"] for entry in dense.values()) / 60
    yield f"Dense: {first['metric']} {values} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}) on"
    yield f"{first['samples']:,} test samples, after {first['epochs']} epochs in {minutes:.1f} minutes."
    if job.remark:
        yield job.remark
    yield _verdict(job, scores, dense)
    yield ""
    healed = next((entry for entry in scores if entry["row"] == "healed"), None)
    if healed is not None:
        effort = Effort(healed["heal_minutes"], 1)
        command = command_of(Scratch(Path()), name, healed["seed"], "healed", healed["budget"], effort)
        yield f"    lrexport {shlex.join(command)}"
        yield ""
    yield f"| MACs | | {first['metric']} | difference to dense | seconds | latency |"
    yield "|---:|---|---:|---:|---:|---:|"


def _verdict(job: Job, scores: list[dict[str, Any]], dense: dict[int, dict[str, Any]]) -> str:
    """Whether the goal at half of the MACs is reached by healing without labels."""
    here = [each for each in scores if (each["row"], each["budget"]) == ("healed", BUDGETS[0])]
    if not here:
        return "The goal at 0.5 was not measured."
    scale = 100 if here[0]["unit"] == "%" else 1
    drop = statistics.mean(scale * (dense[each["seed"]]["value"] - each["value"]) for each in here)
    reached = "reached" if drop <= job.goal else "missed"
    unit = _difference_unit(here[0]).removesuffix("s" if job.goal == 1 else "?")
    return f"Goal at 0.5, healed without labels: at most {job.goal:g} {unit} less; {reached}."


def _rows(scores: list[dict[str, Any]], dense: dict[int, dict[str, Any]], ratios: dict[float, str]) -> Iterator[str]:
    for budget in BUDGETS:
        for row, label in ROWS.items():
            here = [each for each in scores if each["row"] == row and each["budget"] == budget and each["seed"] in dense]
            if not here:
                continue
            here.sort(key=lambda entry: entry["seed"])
            drops = [entry["value"] - dense[entry["seed"]]["value"] for entry in here]
            value = statistics.mean(entry["value"] for entry in here)
            share = statistics.mean(entry["macs"] / entry["dense_macs"] for entry in here)
            each = f" ({', '.join(_difference(drop, here[0]) for drop in drops)})" if len(drops) > 1 else ""
            shown = _difference(statistics.mean(drops), here[0]) + each
            seconds = statistics.mean(entry["seconds"] for entry in here)
            latency = ratios.get(budget, "") if row == "healed" else ""
            if row == "labels":
                label += f", {number_of(here[0]['epochs'], 'epoch')}"
            yield f"| {share:.2f} | {label} | {_shown(value, here[0])} | {shown} | {seconds:.0f} | {latency} |"


def _ratios(scratch: Scratch, name: str) -> dict[float, str]:
    """The latency of the healed network relative to the dense one, by budget."""
    measured: dict[float, list[float]] = {}
    for entry in scratch.results():
        if entry["kind"] == "latency" and entry["job"] == name:
            measured.setdefault(entry["budget"], []).append(entry["ratio"])
    return {budget: f"{statistics.mean(ratios):.2f}×" for budget, ratios in measured.items()}


def _shown(value: float, entry: dict[str, Any]) -> str:
    return f"{100 * value:.2f} %" if entry["unit"] == "%" else f"{value:.2f} {entry['unit']}"


def _difference(value: float, entry: dict[str, Any]) -> str:
    return f"{100 * value:+.2f}" if entry["unit"] == "%" else f"{value:+.2f}"


def _difference_unit(entry: dict[str, Any]) -> str:
    return "points" if entry["unit"] == "%" else str(entry["unit"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("run", "latency", "commands", "table"))
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), help="dense networks are always trained")
    parser.add_argument("--heal-minutes", type=float, default=1.0)
    parser.add_argument("--share", type=float, default=1.0, help="of the epochs; 0: one each, to see that all works")
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    scratch = Scratch(arguments.scratch)
    torch.set_num_threads(1)
    if arguments.do == "table":
        sys.argv[1:] = ["table", "--scratch", "DIR"]  # the folder's name says nothing
        write_markdown(Path("tasks.md"), "Other tasks, with and without labels", table(scratch), machine())
        return
    for seed in arguments.seeds:
        for budget in arguments.budgets:
            for name in arguments.jobs:
                if missing := JOBS[name].missing():
                    print(f"{name}: skipped, {missing}", flush=True)
                    continue
                try:
                    if arguments.do == "run":
                        run_job(scratch, name, seed, budget, Effort(arguments.heal_minutes, arguments.share), arguments.rows)
                    elif arguments.do == "commands":
                        time_command(scratch, name, seed, budget)
                    else:
                        measure_latency(scratch, name, seed, budget, arguments.rounds)
                except (RuntimeError, lrexport.LrexportError) as error:
                    print(f"{name}: failed, {error}", flush=True)


if __name__ == "__main__":
    main()

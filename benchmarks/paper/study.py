"""What all tables of the paper's study share: its schedule, its runs, and where their figures are kept.

A row is one run of `lrexport`, in a folder of its own under WORK. A run that was stopped goes on, one that is finished is
only read, so that the same command takes up a study wherever it was.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, machine
from lrexport.progress import is_stopped
from lrexport.record import DENSE, LOG, RECORD, SVD, Record, load_record

OUT = RESULTS / "paper"


@dataclass(frozen=True)
class Schedule:
    """Epochs of each stage and how they train; ``start`` epochs of dense training come before anything else.

    ``whole`` are options of networks that are not pruned, the dense one and those at full rank: what is trained already
    wants a smaller learning rate than what pruning has just cut. Found on held-out images.
    """

    name: str
    start: int
    svd: int
    fine_tune: int
    options: tuple[str, ...]
    start_options: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    weights: bool = True  # start from the published weights

    @property
    def epochs(self) -> int:
        """Of SVD training and fine-tuning together: what the dense network gets as well."""
        return self.svd + self.fine_tune

    def times(self, factor: int) -> Schedule:
        """With so many times the epochs behind the start."""
        return replace(self, svd=factor * self.svd, fine_tune=factor * self.fine_tune)


SCHEDULES = {
    "short": Schedule(
        "short",
        start=6,
        svd=3,
        fine_tune=2,
        options=("--lr", "0.1", "--batch-size", "128", "--checkpoint-minutes", "5"),
        start_options=("--dense-lr", "0.02"),
        whole=("--lr", "0.03"),
    ),
    "paper": Schedule(
        "paper",
        start=164,
        svd=164,
        fine_tune=164,
        options=(
            *("--optimizer", "adam", "--lr", "0.001", "--weight-decay", "0", "--batch-size", "100"),
            *("--schedule", "step", "--milestones", "81/164,122/164"),
        ),
        start_options=("--dense-lr", "0.001"),
        weights=False,
    ),
}


@dataclass(frozen=True)
class Study:
    """One network on one data set by one schedule and one seed, all of whose runs lie under ``work``."""

    model: str
    data: str
    work: Path
    schedule: Schedule
    weights: Path | None
    seed: int
    times: int = 1  # by which the schedule was multiplied: how the command says it

    @classmethod
    def of(cls, options: argparse.Namespace) -> Study:
        schedule, weights = SCHEDULES[options.schedule].times(options.times), None
        if schedule.weights:
            weights = options.weights_dir / f"cifar10_{options.model}.safetensors"
        work = options.work / f"{options.model}-{schedule.name}-{options.seed}"
        return cls(options.model, options.data, work, schedule, weights, options.seed, options.times)

    @property
    def label(self) -> str:
        return f"{self.model}-{self.schedule.name}-{self.schedule.epochs}-{self.seed}"

    def start(self) -> Path:
        """Weights that every row starts from: the dense network, trained on this data."""
        given = ("--weights", str(self.weights)) if self.weights is not None else ()
        epochs = ("--dense-epochs", str(self.schedule.start), *self.schedule.start_options)
        self.run("start", (*given, *epochs, *_DENSE_ONLY))
        return self.work / "start" / DENSE

    def dense(self, epochs: int) -> dict[str, Any]:
        """The dense network with ``epochs`` more from the start: what rows of as many epochs are compared with."""
        name = f"dense-{epochs}"
        options = ("--baseline-epochs", str(epochs), *_DENSE_ONLY, *self.schedule.whole)
        self.run(name, ("--weights", str(self.start()), *options))
        return self.row(name)

    def compress(self, name: str, *options: str) -> dict[str, Any]:
        """One compression from the start. ``options`` say what differs from the schedule, its epochs included."""
        self.run(name, ("--weights", str(self.start()), *options))
        return self.row(name)

    def go_on(self, name: str, source: str, *options: str) -> dict[str, Any]:
        """Prune a run of :meth:`train`, in a folder of its own."""
        self._lrexport("compress", str(self.work / source), name, options)
        return self.row(name)

    def train(self, name: str, *options: str) -> None:
        """SVD training alone, from the start."""
        start = ("--data", self.data, "--weights", str(self.start()), "--seed", str(self.seed))
        self._lrexport("train", self.model, name, (*start, *options))

    def run(self, name: str, options: Sequence[str]) -> None:
        """`lrexport compress` of the model on the data."""
        self._lrexport("compress", self.model, name, ("--data", self.data, "--seed", str(self.seed), *options))

    def _lrexport(self, command: str, model: str, name: str, options: Sequence[str]) -> None:
        run = self.work / name
        if (run / RECORD).is_file() and not is_stopped(run):
            record = load_record(run)
            if record.results.compressed or (command == "train" and SVD in record.files):
                return
        words = [command, model, *self.schedule.options, *options]
        words += ["-o", str(run), "--resume"]
        print("lrexport", shlex.join(words), flush=True)
        ended = subprocess.run([sys.executable, "-m", "lrexport", *words], check=False).returncode
        if ended:
            raise SystemExit(f"{name}: lrexport ended with {ended}; the same command goes on")

    def record(self, name: str) -> Record:
        return load_record(self.work / name)

    def row(self, name: str) -> dict[str, Any]:
        """Figures of a finished run."""
        record = self.record(name)
        dense, small = record.results.dense, record.results.compressed
        assert dense is not None
        assert small is not None
        shown = dense if name.startswith("dense-") else small
        assert shown.accuracy is not None
        assert shown.heldout_accuracy is not None
        plan = next((event for event in self._events(name) if event["event"] == "plan"), {})
        figures = {
            "top1": shown.accuracy.top1,
            "n": shown.accuracy.n,
            "heldout_top1": shown.heldout_accuracy.top1,
            "macs": shown.macs,
            "dense_macs": dense.macs,
            "params": shown.params,
            "pruned": {key: value for key, value in plan.items() if key.startswith(("heldout", "threshold"))},
        }
        return self.described(name, figures)

    def described(self, name: str, figures: dict[str, Any]) -> dict[str, Any]:
        """A row's figures with what was trained, how long, and where; by the log in its folder."""
        study = {"name": name, "model": self.model, "schedule": self.schedule.name, "seed": self.seed}
        epochs = sum(event["event"] == "epoch" for event in self._events(name))
        return {**study, **figures, "epochs": epochs, "hours": self.hours(name), "machine": machine()}

    def hours(self, name: str) -> float:
        """Of training in one run, without what it went on from."""
        return round(sum(event["seconds"] for event in self._events(name) if event["event"] == "epoch") / 3600, 3)

    def _events(self, name: str) -> list[dict[str, Any]]:
        log = (self.work / name / LOG).read_text(encoding="utf-8")
        return [json.loads(line) for line in log.splitlines()]

    def keep(self, table: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write a table's rows so far."""
        OUT.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"data": self.data.split(":")[0], "rows": list(rows)}, indent=1)
        (OUT / f"{table}-{self.label}.json").write_text(text + "\n", encoding="utf-8")


# The dense network alone, which `compress` scores beside a compressed one that nobody looks at.
_DENSE_ONLY = ("--svd-epochs", "0", "--fine-tune-epochs", "0", "--macs", "0.9")

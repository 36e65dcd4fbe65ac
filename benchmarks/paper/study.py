"""What all tables of the paper's study share: its runs, and where their figures are kept.

A row is one run of `lrexport`, in a folder of its own under WORK. A run that was stopped goes on, one that is finished is
only read, so that the same command takes up a study wherever it was; one that was made with other options is refused.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, machine
from benchmarks.paper.schedules import SCHEDULES, Schedule
from lrexport.artifacts import files
from lrexport.artifacts.run_files import DENSE, LOG, RECORD, SVD
from lrexport.data.datasets import load_data
from lrexport.data.images import Splits, hold_out
from lrexport.runs.figures import Result
from lrexport.runs.record import Record, load_record
from lrexport.runs.resume import is_stopped

OUT = RESULTS / "paper"
SHAPE = (3, 32, 32)
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One network on one data set by one schedule and one seed; its runs lie under ``work``, those of others beside it."""

    model: str
    data: str
    studies: Path
    schedule: Schedule
    weights_dir: Path | None
    seed: int
    times: int = 1  # by which the schedule was multiplied: how the command says it

    @classmethod
    def of(cls, options: argparse.Namespace) -> Study:
        schedule = SCHEDULES[options.schedule].times(options.times)
        weights_dir = options.weights_dir if schedule.weights else None
        return cls(options.model, options.data, options.work, schedule, weights_dir, options.seed, options.times)

    @property
    def work(self) -> Path:
        """The folder of its runs."""
        return self.studies / f"{self._prefix}-{self.seed}"

    @property
    def label(self) -> str:
        return f"{self._prefix}-{self.schedule.epochs}-{self.seed}"

    @property
    def kind(self) -> str:
        """Of the data: ``folder``, or the original ``cifar10``."""
        return self.data.split(":")[0]

    @property
    def strengths(self) -> Mapping[str, Sequence[float]]:
        """λ_s of table 3, by the kind of sparsity."""
        fewer = self.schedule.strengths_of_larger
        return self.schedule.strengths if fewer is None or self.model == "resnet20" else fewer

    @property
    def _prefix(self) -> str:
        kind = "" if self.kind == "folder" else f"{self.kind}-"
        return f"{self.model}-{kind}{self.schedule.name}"

    def start(self) -> Path:
        """Weights that every row starts from: the dense network, trained on this data."""
        given: tuple[str, ...] = ()
        if self.weights_dir is not None:
            given = ("--weights", str(self.weights_dir / f"cifar10_{self.model}.safetensors"))
        epochs = ("--dense-epochs", str(self.schedule.start), "--dense-lr", f"{self.schedule.start_lr:g}")
        # Nobody looks at the compressed network of this run.
        alone = ("--svd-epochs", "0", "--fine-tune-epochs", "0", "--macs", "0.9")
        self._lrexport("compress", self.model, "start", (*self._common, *given, *epochs, *alone))
        return self.work / "start" / DENSE

    def start_row(self) -> Row:
        """The row of the start itself."""
        self.start()
        dense = self.record("start").results.dense
        assert dense is not None
        return self._described("start", dense) | {"epochs": 0, "lr": None, "distill": 0.0}

    def splits(self) -> Splits:
        """Its images, some held out. Raises SystemExit where the start was trained on others."""
        start = self.record("start")
        splits = hold_out(load_data(self.data, SHAPE), start.config["heldout"], seed=self.seed)
        if splits.digest() != start.digests["data_sha256"]:
            raise SystemExit(f"{self.data} has other images than {self.work / 'start'} was trained on: give another --work")
        return splits

    def compress(self, name: str, *options: str) -> Row:
        """One compression from the start. ``options`` say what differs from the schedule, its epochs included."""
        self._lrexport("compress", self.model, name, (*self._common, "--weights", str(self.start()), *options))
        return self.row(name)

    def go_on(self, name: str, source: str, *options: str) -> Row:
        """Prune a run of :meth:`train` or :meth:`compress`, in a folder of its own."""
        self._lrexport("compress", str(self.work / source), name, options)
        return self.row(name) | {"source": self.asked(source)}

    def train(self, name: str, *options: str) -> None:
        """SVD training alone, from the start."""
        self._lrexport("train", self.model, name, (*self._common, "--weights", str(self.start()), *options))

    @property
    def _common(self) -> tuple[str, ...]:
        return "--data", self.data, "--seed", str(self.seed)

    def _lrexport(self, command: str, model: str, name: str, options: Sequence[str]) -> None:
        words = [command, model, *self.schedule.options, *options]
        self.note(name, {"command": self.told(words)})
        run = self.work / name
        if (run / RECORD).is_file() and not is_stopped(run):
            record = load_record(run)
            if record.results.compressed or (command == "train" and SVD in record.files):
                return
        if name != "start":
            self.splits()  # for its error, before hours of training
        words += ["-o", str(run), "--resume"]
        print("lrexport", shlex.join(words), flush=True)
        ended = _waited_for([sys.executable, "-m", "lrexport", *words])
        if ended:
            goes_on = "; the same command goes on" if ended in (130, 143) else ""
            raise SystemExit(f"{name}: lrexport ended with {ended}{goes_on}")

    def told(self, words: Sequence[str]) -> str:
        """A command of lrexport as anyone may read it: with names for what lies elsewhere on other machines."""
        places = {self.work: Path("WORK"), self.studies: Path("STUDIES")}
        if self.weights_dir is not None:
            places[self.weights_dir] = Path("WEIGHTS")

        def tell(word: str) -> str:
            if word == self.data:
                return f"{self.kind}:CIFAR"
            found = next((place for place in places if Path(word).is_relative_to(place)), None)
            return word if found is None else str(places[found] / Path(word).relative_to(found))

        return shlex.join(["lrexport", *map(tell, words)])

    def note(self, name: str, asked: dict[str, Any]) -> None:
        """Note how ``name`` is made, before it is. Raises SystemExit where it was made otherwise, or from another start."""
        path = self.work / "asked" / f"{name}.json"
        asked = {**asked, "start": None if name == "start" else self.start_digest}
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, asked)
        before = self.asked(name)
        if before != json.loads(json.dumps(asked)):
            wrong = "\n".join(f"  {key}: {before.get(key)!r}, now {asked.get(key)!r}" for key in {**before, **asked})
            raise SystemExit(f"{name} was made otherwise; remove {path} and {self.work / name} to make it anew\n{wrong}")

    def asked(self, name: str) -> dict[str, Any]:
        """What :meth:`note` noted."""
        found: dict[str, Any] = json.loads((self.work / "asked" / f"{name}.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def start_digest(self) -> str:
        """SHA-256 of the weights that all rows start from."""
        return files.sha256(self.start())

    def record(self, name: str) -> Record:
        return load_record(self.work / name)

    def row(self, name: str) -> Row:
        """Figures of the compressed network of a finished run."""
        compressed = self.record(name).results.compressed
        assert compressed is not None
        plan = next((event for event in self._events(name) if event["event"] == "plan"), {})
        pruned = {key: value for key, value in plan.items() if key.startswith(("heldout", "threshold"))}
        return self._described(name, compressed) | {"pruned": pruned}

    def _described(self, name: str, shown: Result) -> Row:
        record = self.record(name)
        assert record.results.dense is not None
        assert shown.accuracy is not None
        assert shown.heldout_accuracy is not None
        figures = {
            "top1": shown.accuracy.top1,
            "n": shown.accuracy.n,
            "heldout_top1": shown.heldout_accuracy.top1,
            "macs": shown.macs,
            "dense_macs": record.results.dense.macs,
            "params": shown.params,
            "lr": record.config["lr"],
            "optimizer": record.config["optimizer"],
            "distill": record.config["distill"],
        }
        return self.described(name, figures, record.environment)

    def described(self, name: str, figures: Row, environment: Mapping[str, Any]) -> Row:
        """A row's figures with what was trained, how long, where, by which command; by the log in its folder."""
        study = {"name": name, "model": self.model, "schedule": self.schedule.name, "seed": self.seed}
        asked = self.asked(name)
        stages = [event["stage"] for event in self._events(name) if event["event"] == "epoch"]
        epochs = {"epochs": len(stages), "fine_tune_epochs": stages.count("fine-tune")}
        made = {**epochs, "hours": self.hours(name), "machine": machine(environment), "asked": asked}
        return {**study, "pruned": {}, **figures, **made}

    def hours(self, name: str, stage: str = "") -> float:
        """Of training in one run, or one of its stages; an epoch that was stopped on the way counts what came after that."""
        epochs = [event for event in self._events(name) if event["event"] == "epoch" and stage in event["stage"]]
        return round(sum(event["seconds"] for event in epochs) / 3600, 3)

    def _events(self, name: str) -> list[dict[str, Any]]:
        log = (self.work / name / LOG).read_text(encoding="utf-8")
        return [json.loads(line) for line in log.splitlines()]

    def has_this_start(self, row: Row) -> bool:
        """Whether a row, from whatever machine, goes on from the weights that are this study's start."""
        return bool(row["asked"]["start"] == self.start_digest)

    def kept(self, table: str) -> list[Row]:
        """Rows that :meth:`keep` kept; none where there is no such table."""
        rows: list[Row] = self._table(table).get("rows", [])
        return rows

    def is_done(self, table: str) -> bool:
        """Whether a table has all rows that its command made."""
        return bool(self._table(table).get("done", True))

    def keep(self, table: str, rows: Sequence[Row], done: bool) -> None:
        """Write a table's rows so far; where an earlier life got further, only once all are ``done``."""
        if not done and len(self.kept(table)) > len(rows):
            return
        OUT.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"data": self.kind, "done": done, "rows": list(rows)}, indent=1) + "\n"
        self._path(table).write_text(text, encoding="utf-8")

    def _table(self, table: str) -> dict[str, Any]:
        return read_kept(self._path(table))

    def _path(self, table: str) -> Path:
        return result_file(table, self.label)


def result_file(table: str, label: str, suffix: str = ".json") -> Path:
    """Where a table of the study ``label`` is kept, or its latencies."""
    return OUT / f"{table}-{label}{suffix}"


def read_kept(path: Path) -> dict[str, Any]:
    """What was kept in a JSON file; nothing where there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _waited_for(words: Sequence[str]) -> int:
    """Exit status of a command, which gets the SIGTERM that ends this process too: it saves where it is."""
    process = subprocess.Popen(words)
    before = signal.signal(signal.SIGTERM, lambda number, _frame: process.send_signal(number))
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal has told both
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)

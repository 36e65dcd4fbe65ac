"""What plans take in every runtime: chosen by MACs, on ONNX Runtime, and on the runtime, beside the dense network.

    python benchmarks/runtimes.py prepare --scratch DIR  # layers' files for every runtime, before the machine is quiet
    python benchmarks/runtimes.py plans --scratch DIR    # plans of every network in every runtime, and their times
    python benchmarks/runtimes.py tucker --scratch DIR   # Tucker-2 beside the pairs, by time and by energy
    python benchmarks/runtimes.py formats --scratch DIR  # the largest error of each runtime's files; no times
    python benchmarks/runtimes.py busy --scratch DIR     # the same goal with a process beside it that keeps a core busy
    python benchmarks/runtimes.py table --scratch DIR    # writes benchmarks/results/runtimes.md

Nothing else may run on the machine but for ``prepare``, ``formats`` and ``table``. Every row is kept in --results as
soon as it is measured and not measured again; layer times and runtimes' files are kept in DIR. MNN has an environment of
its own, which --mnn names. Networks are in runtimes_networks.py; --weights holds those of the ResNets. One thread, batch 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common import RESULTS, machine, write_markdown
from runtimes_files import KeptFiles, OnlyPreparedError
from runtimes_networks import NETWORKS
from runtimes_table import lines
from runtimes_tucker import LAYERS, energies, times
from torch import nn

from lrexport.artifacts import files
from lrexport.config.compression import RANK_MULTIPLE
from lrexport.config.goals import Goal, Latency, Macs
from lrexport.config.runtime_titles import title_of
from lrexport.errors import LrexportError, UsageError
from lrexport.events import LayersTimed, OnEvent, Warned
from lrexport.formats.in_runtime import Subject, write_in_runtime
from lrexport.formats.onnx import export_onnx
from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.moments import every_scheme_of
from lrexport.lowrank.selection.by_latency import within_latency
from lrexport.lowrank.selection.costs import plan_macs
from lrexport.lowrank.selection.problem import Problem
from lrexport.lowrank.selection.solve import choose
from lrexport.lowrank.selection.threshold import first_true
from lrexport.measure.latency import measure
from lrexport.measure.layer_times import LayerTimes
from lrexport.measure.runtimes import base
from lrexport.measure.targets import MeasuringJob
from lrexport.plan import Pair, Plan, digest
from lrexport.workflow.pruning import on_target, pose
from lrexport.workflow.target_speed import Speed, measure_speed

RUNTIMES = ("onnxruntime", "ncnn", "mnn", "openvino")
SHARE, MACS = 0.6, 0.5
# The plans of a row, by their names in --results.
BY_MACS, ON_ORT, ON_RUNTIME, SAME_ENERGY = "macs", "onnxruntime", "own", "same-energy"
DENSE = "dense"
BUSY = "while True: pass"
TRIES = ("quiet 1", "busy 1", "quiet 2", "busy 2")


@dataclass(frozen=True)
class Place:
    """Where layer times, plans and rows are kept, and what all measurements share."""

    scratch: Path
    results: Path
    weights: Path
    mnn: str | None
    rounds: int

    def target(self, runtime: str, only_prepares: bool = False) -> KeptFiles:
        python = self.mnn if runtime == "mnn" else None
        return KeptFiles(runtime, python, (self.scratch / "files").resolve(), only_prepares)

    def rows(self) -> dict[str, Any]:
        return json.loads(self.results.read_text(encoding="utf-8")) if self.results.is_file() else {}

    def keep(self, key: str, row: dict[str, Any]) -> None:
        stated = {**row, "load": [round(each, 2) for each in os.getloadavg()], "at": time.strftime("%Y-%m-%d %H:%M")}
        files.write_json(self.results, {**self.rows(), key: stated})
        print(key, json.dumps(stated), flush=True)

    def plan_file(self, network: str) -> Path:
        return self.scratch / "plans" / f"{network}.json"


@dataclass(frozen=True)
class Opened:
    """A network in SVD form, the problem of a goal of latency without data, and the plan by MACs."""

    svd: SVDNetwork
    problem: Problem
    by_macs: Plan

    def on(self, speed: Speed) -> Problem:
        """The problem on a target; its truncations, seconds of work, are the same for all targets."""
        made = on_target(self.problem, speed)
        vars(made)["truncations"] = self.problem.truncations
        return made


@cache
def opened(network: str, weights: Path) -> Opened:
    known = NETWORKS[network]
    svd = decompose(known.open(weights), known.shape, form="implicit")
    return Opened(svd, posed(svd, Latency(SHARE)), choose(Macs(MACS), posed(svd, Macs(MACS))).plan)


def posed(svd: SVDNetwork, goal: Goal) -> Problem:
    """As `lrexport compress` poses it without data: energy weighted by noise."""
    return pose(svd, goal, "spatial", "global", None, None, 0, rank_multiple=RANK_MULTIPLE)


def plans(place: Place, network: str, runtime: str) -> dict[str, Any]:
    """Choose all plans and measure them together with the dense network."""
    notes = list[str]()
    found = opened(network, place.weights)
    svd, problem = found.svd, found.problem
    began = time.perf_counter()
    layer_times = LayerTimes(place.target(runtime), folder=place.scratch / "tables")
    speed = measure_speed(svd, every_scheme_of(svd), layer_times, telling(runtime, notes))
    _, options = layer_times.busy_of(svd, every_scheme_of(svd))
    row: dict[str, Any] = {"table_s": time.perf_counter() - began, "options": options, "notes": notes}
    chosen = {BY_MACS: found.by_macs}
    began = time.perf_counter()
    try:
        selection = choose(Latency(SHARE), found.on(speed))
        chosen[ON_RUNTIME], confirmed = selection.plan, selection.latency
        assert confirmed is not None
        row |= {"confirmed": confirmed.ratio, "misses_goal": confirmed.misses_goal}
        notes += selection.warnings
    except UsageError as refused:
        row["refused"] = f"{refused.message}. {refused.hint or ''}".strip()
    row["choosing_s"] = time.perf_counter() - began
    if runtime == "onnxruntime":
        if ON_RUNTIME in chosen:
            files.write_bytes(place.plan_file(network), chosen[ON_RUNTIME].to_json().encode())
    elif place.plan_file(network).is_file():
        chosen[ON_ORT] = Plan.from_json(place.plan_file(network).read_text(encoding="utf-8"))
        with contextlib.suppress(UsageError):
            chosen[SAME_ENERGY] = fastest_dropping(svd, problem, speed, dropped(chosen[ON_ORT]))
    return {**row, **measured(place, network, speed, chosen, runtime)}


def prepare(place: Place, network: str, runtime: str) -> None:
    """Make the files of all layers and their pairs for the runtime, as :func:`plans` will need them."""
    svd = opened(network, place.weights).svd
    with tempfile.TemporaryDirectory() as tables, contextlib.suppress(OnlyPreparedError):
        LayerTimes(place.target(runtime, only_prepares=True), folder=Path(tables)).of(svd, every_scheme_of(svd))


def telling(runtime: str, notes: list[str]) -> OnEvent:
    """Progress on one line in fifty, warnings kept."""

    def tell(event: object) -> None:
        if isinstance(event, Warned):
            notes.append(event.text)
        if isinstance(event, LayersTimed) and event.done % 50 in (0, 1):
            print(f"{runtime}: {event.done} of {event.of} groups of layers", flush=True)

    return tell


def fastest_dropping(svd: SVDNetwork, problem: Problem, speed: Speed, most: float) -> Plan:
    """The fastest plan by the table that drops at most ``most`` in all, by hundredths of the dense latency."""
    latency = speed.latency

    def plan(hundredths: int) -> Plan:
        budget = max(hundredths / 100 * latency.dense_ms, latency.least_ms)
        return within_latency(svd, problem.truncations, latency, budget).plan

    return plan(first_true(100, lambda hundredths: dropped(plan(hundredths)) <= most))


def dropped(plan: Plan) -> float:
    """Shares of energy dropped, weighted by noise, summed over the layers."""
    return sum(1 - layer.energy_kept for layer in plan.values() if isinstance(layer, Pair))


def measured(place: Place, network: str, speed: Speed, chosen: dict[str, Plan], runtime: str) -> dict[str, Any]:
    """The network of every plan beside the dense one in the runtime, each in a measurement of its own as in `compress`.

    All together they would take one another's caches, which costs the dense network most: its weights are the largest.
    """
    svd, latency = opened(network, place.weights).svd, speed.latency
    row: dict[str, Any] = {"plans": {}}
    for name, plan in chosen.items():
        row["plans"][name] = {
            "digest": digest(plan),
            "schemes": schemes(plan),
            "macs": plan_macs(svd, plan) / svd.dense_macs,
            "dropped": dropped(plan),
            "predicted": latency.of_plan(plan) / latency.dense_ms,
        }
        exported(place, network, plan)
    exported(place, network, Plan())
    beside_dense(place, network, runtime, row)
    return row


def beside_dense(place: Place, network: str, runtime: str, row: dict[str, Any]) -> None:
    """Measure the plans of a row, whose networks are exported, and write their ratios into it."""
    folder = place.scratch / "onnx" / network
    for plan in row["plans"].values():
        paths = {DENSE: folder / f"{digest(Plan())}.onnx", "model": folder / f"{plan['digest']}.onnx"}
        found = measure(paths, DENSE, MeasuringJob((), place.rounds), place.target(runtime))
        latency, dense, facts = found.latencies["model"], found.latencies[DENSE], found.environment
        plan |= {"ratio": latency.ratio, "iqr": latency.ratio_iqr, "warning": latency.warning or dense.warning}
        about = {key: facts[key] for key in ("cpu", "runtime_version", "onnxruntime", "precision") if key in facts}
        row |= {"dense_ms": dense.p50, "about": about}


def exported(place: Place, network: str, plan: Plan) -> Path:
    """The ONNX file of a plan, exported once."""
    path = place.scratch / "onnx" / network / f"{digest(plan)}.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        svd = opened(network, place.weights).svd
        export_onnx(fold(svd, plan), path, svd.signature)
    return path


def schemes(plan: Plan) -> dict[str, int]:
    """How many layers are pairs, by scheme."""
    every = [layer.scheme for layer in plan.values() if isinstance(layer, Pair)]
    return {scheme: every.count(scheme) for scheme in dict.fromkeys(every)}


def formats(place: Place, network: str, runtime: str) -> dict[str, Any]:
    """The largest difference of the runtime's files from the ONNX file, relative to the output's largest value."""
    found, errors = opened(network, place.weights), dict[str, float | None]()
    svd = found.svd
    with tempfile.TemporaryDirectory() as name:
        for part, network_of in ((DENSE, fold(svd, Plan())), (BY_MACS, fold(svd, found.by_macs))):
            source = Path(name) / f"{part}.onnx"
            torch_error = export_onnx(network_of, source, svd.signature).comparison.relative_error
            errors["torch" if part == DENSE else f"torch, {part}"] = torch_error
            if runtime != "onnxruntime":
                paths = [Path(name) / f"{part}{suffix}" for suffix in base.runtime(runtime).suffixes]
                subject = Subject(network_of, svd.signature, {})
                python = place.target(runtime).python
                errors[part] = write_in_runtime(source, paths, runtime, python, subject, None).relative_error
    return {"errors": errors}


@contextlib.contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """A process beside the measurement that does nothing but compute."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def busy(place: Place, network: str, runtime: str = "onnxruntime") -> Iterator[tuple[str, dict[str, Any]]]:
    """The goal on a quiet machine and on a busy one in turns, each from nothing; then all plans on a quiet one."""
    start = opened(network, place.weights)
    svd = start.svd
    chosen: dict[str, Plan] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in TRIES:
        notes = list[str]()
        with tempfile.TemporaryDirectory() as tables, busy_core(name.startswith("busy")):
            try:
                layer_times = LayerTimes(place.target(runtime), folder=Path(tables))
                speed = measure_speed(svd, every_scheme_of(svd), layer_times, telling(runtime, notes))
                selection = choose(Latency(SHARE), start.on(speed))
            except LrexportError as refused:
                found[name] = {"refused": f"{refused.message}. {refused.hint or ''}".strip(), "notes": notes}
                continue
        latency = selection.latency
        assert latency is not None
        chosen[name] = selection.plan
        found[name] = {
            "claimed": latency.ratio,
            "claimed_iqr": latency.ratio_iqr,
            "warning": latency.warning,
            "misses_goal": latency.misses_goal,
            "notes": [*notes, *selection.warnings],
        }
    rows = measured(place, network, speed, chosen, runtime)["plans"]
    for name, row in found.items():
        same = {
            other: sum(chosen[name].get(layer) == entry for layer, entry in chosen[other].items()) / len(chosen[other])
            for other in chosen
            if name in chosen and other != name
        }
        yield name, {**row, **rows.get(name, {}), "same_layers": same}


def run(place: Place, part: str, networks: list[str], runtimes: list[str]) -> None:
    """Measure the rows of a part that are not there yet; what fails is said, and the others are measured."""
    if part == "prepare":
        for network in networks:
            for runtime in (each for each in runtimes if each != "onnxruntime"):
                prepare(place, network, runtime)
        return
    jobs: dict[str, Any] = {}
    for network in networks:
        for runtime in runtimes:
            if part in ("plans", "formats"):
                work = plans if part == "plans" else formats
                jobs[f"{part}/{network}/{runtime}"] = lambda w=work, n=network, r=runtime: w(place, n, r)
    if part == "tucker":
        for channels, size in LAYERS:
            for runtime in runtimes:
                jobs[f"tucker/{channels}@{size}/{runtime}"] = lambda c=channels, s=size, r=runtime: {
                    "forms": times(c, s, place.target(r), place.rounds)
                }
        trained: nn.Module = NETWORKS["resnet56"].open(place.weights)
        jobs["energy/resnet56"] = lambda: {"layers": energies(trained)}
    for key, job in jobs.items():
        if key in place.rows():
            continue
        try:
            place.keep(key, job())
        except LrexportError as error:
            print(f"{key}: {error.message}", file=sys.stderr, flush=True)
    if part == "busy":
        for name, row in busy(place, "resnet56"):
            place.keep(f"busy/{name}", row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("prepare", "plans", "tucker", "formats", "busy", "table"))
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights"))
    parser.add_argument("--mnn", help="the Python that has MNN")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--results", type=Path, default=RESULTS / "runtimes.json")
    options = parser.parse_args()
    place = Place(options.scratch, options.results, options.weights, options.mnn, options.rounds)
    (place.scratch / "plans").mkdir(parents=True, exist_ok=True)
    if options.part == "table":
        titles = {runtime: title_of(runtime) for runtime in RUNTIMES}
        write_markdown(Path("runtimes.md"), "Plans in every runtime", lines(place.rows(), titles), machine())
    else:
        run(place, options.part, options.networks, options.runtimes)


if __name__ == "__main__":
    main()

"""Latencies of layers and of pairs in their place on a target: measured in chains, stored on disk, resumable.

The latencies of a target are one JSON file, named by what they depend on: processor, instruction sets, cores, governor,
runtime with version and precision, threads, batch. Their keys describe a layer's computation, so networks with layers in
common share them.

Between two uses of a layer's weights, the rest of the network passes through the caches. A chain that is run repeatedly has
its weights in the cache and is too fast, pairs by a fifth on ResNet-20; so memory of the size of the rest of the network
is touched before each sample, and the error is a few percent.

A latency whose samples spread widely was measured on a busy machine. It is measured again at once, and if that does not help
it is marked in the table, so that the next command measures it again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lrexport.artifacts import files
from lrexport.artifacts.json_files import read_json
from lrexport.errors import DeviceError, InputError
from lrexport.lowrank.eligibility.factorisable import Factorisable
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.moments import Schemes
from lrexport.lowrank.layers.schemes import SCHEMES, blank
from lrexport.lowrank.selection.costs import whole_cost
from lrexport.lowrank.selection.predicted_latency import LayerLatency
from lrexport.measure.latency import measure, measure_latency
from lrexport.measure.layer_models import COPIES, layer_model
from lrexport.measure.statistics import spread
from lrexport.measure.targets import MeasuringJob, Target, check_times_layers
from lrexport.plan import Pair, Plan, Scheme
from lrexport.runs.figures import Latency
from lrexport.torch_tools.tracing import LayerCall

# Runtimes compute channels in blocks of 4, 8 or 16: a rank between two multiples is not faster than the next one.
_GRAIN = 4
# Between measured multiples of the largest block, latency is linear in rank.
_BLOCK = 16
_MOST_RANKS = 16  # of one layer and scheme
_PAIRS = 8  # in a group, with the dense layer
_GROUP_SECONDS, _MOST_ROUNDS = 1.0, 200
_WHOLE_ROUNDS = 100
_MOST_AMONG_BITS = 25  # 32 MiB: more than any cache holds of the last inference
# Entries of a target's environment that its latencies depend on.
_MATTERS = ("cpu", "isa", "cores", "system", "governor", "onnxruntime")
_OF_RUNTIME = ("runtime", "runtime_version", "precision", "pinned")  # of another runtime than ONNX Runtime, or a phone
# Samples of one file that spread more than this, relative to their median, mean that the machine was busy.
_BUSY = 0.2
_TRIAL_ROUNDS = 10
OnTable = Callable[[int, int], None]


@dataclass(frozen=True)
class _Option:
    """An option for one call of ``layer`` (without values): a pair by ``scheme`` and ``rank``, or the layer itself.

    ``among`` is the size in bytes of the rest of the network, used between two uses of the layer's weights.
    """

    layer: nn.Module
    call: LayerCall
    among: int
    scheme: Scheme | None = None
    rank: int = 0

    @property
    def key(self) -> str:
        """The key of its latency in the table: everything that the layer's latency depends on."""
        positions = "x".join(map(str, self.call.input)) or "rows"
        call = f"{self.layer} on {self.call.samples} x {positions} among {self.among >> 10} KiB"
        return f"{call}, {self.scheme} {self.rank}" if self.scheme else call

    def model(self, copies: int, batch: int) -> bytes:
        """The ONNX file that is measured."""
        made = nn.Sequential(*SCHEMES[self.scheme].pair(self.layer, self.rank)) if self.scheme else self.layer
        return layer_model(made, self.call, copies, batch).SerializeToString()


# A layer in every group, small enough for any cache: it measures the machine's current speed.
_REFERENCE = "reference"
_REFERENCE_LAYER = _Option(nn.Conv2d(16, 16, 3, padding=1, device="meta"), LayerCall(1, (32, 32), (32, 32)), among=0)


class LayerTimes:
    """Latencies of layers on ``target`` in milliseconds, measured when first needed.

    ``folder`` holds the tables; the default is :func:`cache_folder`. ``busy`` are the keys of latencies that were measured
    on a busy machine.
    """

    def __init__(self, target: Target, threads: int = 1, batch: int = 1, folder: Path | None = None) -> None:
        self.target, self.threads, self.batch = target, threads, batch
        check_times_layers(target)
        self.environment = target.environment()
        about = {name: self.environment.get(name) for name in _MATTERS} | {"threads": threads, "batch": batch}
        about |= {name: self.environment[name] for name in _OF_RUNTIME if name in self.environment}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (folder or cache_folder() / "latency") / f"{digest}.json"
        self.about = about
        self.times, self.busy = _read(self.path)
        self.unsaved: str | None = None
        self._seen: dict[str, list[float]] = {}

    def of(self, svd: SVDNetwork, schemes: Schemes, on_table: OnTable = lambda done, of: None) -> dict[str, LayerLatency]:
        """Latencies of every factorisable layer and its pairs by ``schemes``, at ranks on the grain.

        Unknown and busy ones are measured, and those that are then busy once more; ``on_table`` gets the number of groups
        done and the total.
        """
        by_layer = self._by_layer(svd, schemes)
        calls = [options for calls in by_layer.values() for options in calls]
        for _ in range(2):
            if groups := self._unknown(calls):
                self._measure(groups, on_table)
        return {name: self._layer(calls) for name, calls in by_layer.items()}

    def again(self, svd: SVDNetwork, schemes: Schemes, plan: Plan) -> dict[str, LayerLatency]:
        """:meth:`of`, after the latencies that ``plan`` uses have been measured again."""
        by_layer = self._by_layer(svd, schemes)
        groups = [group for name, calls in by_layer.items() for group in _used(calls, plan.get(name))]
        for option in itertools.chain(*groups):
            self._seen.pop(option.key, None)
            self.busy.discard(option.key)
        if groups:
            self._measure(groups, lambda done, of: None)
        return {name: self._layer(calls) for name, calls in by_layer.items()}

    def _by_layer(self, svd: SVDNetwork, schemes: Schemes) -> dict[str, list[list[_Option]]]:
        """By layer and call, the layer itself and its pairs."""
        among = _among(svd)
        return {
            name: [_options(svd, call, among, facts, schemes[name]) for call in facts.calls]
            for name, facts in svd.layers.items()
        }

    def busy_of(self, svd: SVDNetwork, schemes: Schemes) -> tuple[int, int]:
        """How many latencies of this network were measured on a busy machine, and of how many."""
        calls = itertools.chain(*self._by_layer(svd, schemes).values())
        keys = {option.key for options in calls for option in options}
        return len(keys & self.busy), len(keys)

    def check(self, path: Path) -> None:
        """Raise DeviceError unless the target's runtime runs this network: noticed before minutes of measuring layers."""
        measure_latency({path.name: path}, None, MeasuringJob((), _TRIAL_ROUNDS, self.threads, self.batch), self.target)

    def _unknown(self, calls: list[list[_Option]]) -> list[list[_Option]]:
        """Groups to measure, each with the dense layer first. ``calls`` are lists of a call's options, dense first."""
        missing: dict[str, dict[str, _Option]] = {}
        for options in calls:
            known = self.times.keys() - self.busy
            unknown = {option.key: option for option in options if option.key not in known}
            if unknown:
                missing.setdefault(options[0].key, {options[0].key: options[0]}).update(unknown)
        groups = []
        for dense, *pairs in (list(options.values()) for options in missing.values()):
            groups += [[dense, *pairs[start : start + _PAIRS]] for start in range(0, max(1, len(pairs)), _PAIRS)]
        return groups

    def _measure(self, groups: list[list[_Option]], on_table: OnTable) -> None:
        with tempfile.TemporaryDirectory(prefix="lrexport-") as folder:
            written = [
                self._write({str(index): option for index, option in enumerate(group)}, Path(folder) / str(number))
                for number, group in enumerate(groups)
            ]
            job = MeasuringJob(
                written,
                _MOST_ROUNDS,
                self.threads,
                self.batch,
                warmup_runs=2,
                group_seconds=_GROUP_SECONDS,
                evict_bytes=groups[0][0].among,
            )
            for answer in self.target.run(job):
                if "models" in answer:
                    self._note(groups[answer["group"]], answer["models"])
                    self._save()  # a stopped measurement continues from there
                    on_table(answer["group"] + 1, len(groups))

    def _write(self, options: Mapping[str, _Option], folder: Path) -> dict[str, Path]:
        """The files of options and of the reference layer by name, each with both numbers of copies."""
        folder.mkdir()
        written = {}
        for name, option in {_REFERENCE: _REFERENCE_LAYER, **options}.items():
            for copies in COPIES:
                written[f"{name}x{copies}"] = path = folder / f"{name}x{copies}.onnx"
                path.write_bytes(option.model(copies, self.batch))
        return written

    def _note(self, group: list[_Option], models: Mapping[str, Any]) -> None:
        """Latencies by the slope between the numbers of copies; a dense layer's is the median over its groups."""
        scale = self._scale(models, group[0].among)
        for index, option in enumerate(group):
            is_busy, known = _was_busy(models, str(index)), option.key in self.times
            if is_busy and known and option.key not in self.busy:
                continue
            if option.key in self.busy and not is_busy:
                self._seen.pop(option.key, None)
            self._seen.setdefault(option.key, []).append(scale * _slope(models, str(index)))
            self.times[option.key] = float(np.median(self._seen[option.key]))
            (self.busy.add if is_busy else self.busy.discard)(option.key)

    def _scale(self, models: Mapping[str, Any], among: int) -> float:
        """Factor from current latencies, by the reference's samples, to those when the table was started.

        The reference is compared with itself after other files ran and the same memory was touched: from the caches it is
        far faster.
        """
        now = _slope(models, _REFERENCE)
        return self.times.setdefault(f"{_REFERENCE} among {among >> 10} KiB", now) / now

    def whole(self, svd: SVDNetwork, path: Path) -> tuple[float, Latency]:
        """A network's milliseconds on the scale of the table of its layers, and its current latency. Raises DeviceError."""
        with tempfile.TemporaryDirectory(prefix="lrexport-") as folder:
            paths = {path.name: path, **self._write({}, Path(folder) / _REFERENCE)}
            job = MeasuringJob((), _WHOLE_ROUNDS, self.threads, self.batch, evict_bytes=_among(svd))
            found = measure(paths, None, job, self.target)
        models = {name: {"samples_ms": samples} for name, samples in found.samples_ms.items()}
        job = MeasuringJob((), _WHOLE_ROUNDS, self.threads, self.batch)  # as it runs alone
        latency = measure_latency({path.name: path}, None, job, self.target)[path.name]
        return latency.p50 * self._scale(models, _among(svd)), latency

    def _save(self) -> None:
        """Write the table's file. If that fails, only this process uses the latencies, and ``unsaved`` says why."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            table = {"schema_version": 1, "about": self.about, "milliseconds": self.times, "busy": sorted(self.busy)}
            files.write_json(self.path, table)
        except OSError as error:
            self.unsaved = f"cannot write {self.path}: {error.strerror}"
        except DeviceError as error:
            self.unsaved = error.message

    def _layer(self, calls: list[list[_Option]]) -> LayerLatency:
        dense, pairs = 0.0, dict[Scheme, dict[int, float]]()
        for option in (option for options in calls for option in options):
            if option.scheme is None:
                dense += self.times[option.key]
            else:
                times = pairs.setdefault(option.scheme, {})
                times[option.rank] = times.get(option.rank, 0.0) + self.times[option.key]
        return LayerLatency(dense, {scheme: _between(times) for scheme, times in pairs.items()})


def cache_folder() -> Path:
    """``$LREXPORT_CACHE``, else ``lrexport`` in ``$XDG_CACHE_HOME`` or ~/.cache. Raises DeviceError without a home."""
    for variable, below in (("LREXPORT_CACHE", "."), ("XDG_CACHE_HOME", "lrexport")):
        if chosen := os.environ.get(variable):
            return Path(chosen, below)
    try:
        return Path.home() / ".cache" / "lrexport"
    except RuntimeError as error:
        raise DeviceError("this user has no home folder for the latency table", "Set LREXPORT_CACHE to a folder.") from error


def _among(svd: SVDNetwork) -> int:
    """Half of the dense network's bytes, as after compression, as a power of two: similar networks share latencies."""
    return 1 << min(_MOST_AMONG_BITS, round(math.log2(max(1.0, 4 * whole_cost(svd, "params") / 2))))


def _options(
    svd: SVDNetwork, called: tuple[str, LayerCall], among: int, facts: Factorisable, schemes: Iterable[Scheme]
) -> list[_Option]:
    name, call = called
    layer = blank(svd.network.get_submodule(name))
    pairs = (_Option(layer, call, among, scheme, rank) for scheme in schemes for rank in _ranks(facts, scheme))
    return [_Option(layer, call, among), *pairs]


def _ranks(facts: Factorisable, scheme: Scheme) -> list[int]:
    """Ranks on the grain whose pair has fewer MACs than the layer; if too many, every second, fourth …, and the lowest."""
    scheme_facts = facts.schemes[scheme]
    most = min(scheme_facts.full_rank, (facts.dense_macs - 1) // scheme_facts.macs_per_rank)
    if most < _GRAIN:
        return list(range(1, most + 1))
    step = _GRAIN
    low = []
    while most // step > _MOST_RANKS:
        low.append(step)
        step *= 2
    return [*low, *range(step, most + 1, step)]


def _between(times: Mapping[int, float]) -> dict[int, float]:
    """``times`` with interpolated ones at the multiples of the largest block in between."""
    filled = dict(times)
    for low, high in itertools.pairwise(sorted(rank for rank in times if rank % _BLOCK == 0)):
        for rank in range(low + _BLOCK, high, _BLOCK):
            filled[rank] = times[low] + (times[high] - times[low]) * (rank - low) / (high - low)
    return filled


def _used(calls: list[list[_Option]], planned: object) -> list[list[_Option]]:
    """The options that a planned layer uses, one group a call: the layer itself, and the measured ranks around its own."""
    groups = []
    for dense, *pairs in calls:
        ranks = {pair.rank: pair for pair in pairs if isinstance(planned, Pair) and pair.scheme == planned.scheme}
        around = []
        if isinstance(planned, Pair) and ranks:
            below = max((rank for rank in ranks if rank <= planned.rank), default=min(ranks))
            around = [below, min((rank for rank in ranks if rank >= planned.rank), default=below)]
        groups.append([dense, *(ranks[rank] for rank in dict.fromkeys(around))])
    return groups


def _was_busy(models: Mapping[str, Any], name: str) -> bool:
    """Whether the samples of either number of copies spread more than a quiet machine's."""
    spreads = [spread(models[f"{name}x{copies}"]["samples_ms"]) for copies in COPIES]
    return any(each.iqr > _BUSY * each.p50 for each in spreads)


def _slope(models: Mapping[str, Any], name: str) -> float:
    """Milliseconds per copy, from rounds with both numbers of copies."""
    few, many = (np.array(models[f"{name}x{copies}"]["samples_ms"]) for copies in COPIES)
    slope = float(np.median(many - few)) / (COPIES[1] - COPIES[0])
    # Never 0, even if the latency is lost in noise.
    return max(slope, 1e-3 * float(np.median(few)))


def _read(path: Path) -> tuple[dict[str, float], set[str]]:
    """The latencies in a table, and the keys of those that were measured on a busy machine. Raises InputError."""
    try:
        if not path.exists():
            return {}, set()
    except OSError:  # writing it will fail too, which is reported then
        return {}, set()
    try:
        table = read_json(path)
        known = {str(key): float(value) for key, value in table["milliseconds"].items()}
        if not all(value > 0 for value in known.values()):
            raise ValueError("expected times above 0")
        busy = {str(key) for key in table.get("busy", ())} & known.keys()
    except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.message if isinstance(error, InputError) else str(error)
        raise InputError(
            f"{path} is not a latency table: {reason}", "Delete it; the latencies will be measured again."
        ) from error
    return known, busy

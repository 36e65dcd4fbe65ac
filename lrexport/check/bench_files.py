"""Latencies from the output of ``lrexport bench --json``, for the files that it measured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from lrexport.artifacts import files
from lrexport.artifacts.json_files import first_fault, read_json
from lrexport.budget.facts import machine_of
from lrexport.budget.figures import P50, P90, RATIO
from lrexport.check.gather_facts import Gathered, latency
from lrexport.errors import InputError
from lrexport.runs.figures import Latency

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Figures(Latency):
    """Times of a measurement: none is negative, and the median is above 0."""

    p50: _Positive
    p90: _Positive
    p99: _Positive
    iqr: _Milliseconds
    rounds: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=0)]
    batch: Annotated[int, Field(ge=0)]
    ratio: _Positive | None = None
    ratio_iqr: tuple[_Positive, _Positive] | None = None


class _Input(BaseModel):
    """One input that a file was measured with."""

    shape: tuple[int, ...]


class _File(BaseModel):
    """One measured file; fields added later are empty in older outputs."""

    sha256: str
    latency_ms: _Figures
    path: str = "model.onnx"
    inputs: dict[str, _Input] = {}
    samples_ms: tuple[_Positive, ...] = ()


class _Measured(BaseModel):
    """The part of the JSON of ``lrexport bench`` that is used."""

    files: dict[str, _File]
    target: str
    baseline: str | None
    environment: dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """The output of one ``lrexport bench --json``."""

    path: Path
    measured: _Measured

    def of(self, digest: str) -> tuple[str, _File] | None:
        """The name and entry of a file by its sha256, regardless of its path; None if this content was not measured."""
        return next(((name, entry) for name, entry in self.measured.files.items() if entry.sha256 == digest), None)


class _Several(BaseModel):
    """The JSON of ``lrexport bench`` with several targets."""

    targets: list[_Measured]


def read_benches(path: Path) -> list[Bench]:
    """Read an output, one for each target. Raises InputError if it was not written by ``lrexport bench --json``."""
    value = read_json(path)
    try:
        is_several = isinstance(value, dict) and "targets" in value
        several = _Several.model_validate(value).targets if is_several else [_Measured.model_validate(value)]
        return [Bench(path, measured) for measured in several]
    except ValidationError as error:
        message = f"{path} was not written by lrexport bench --json: {first_fault(error)}".splitlines()[0]
        raise InputError(message, "Measure again: lrexport bench FILE --json OUTPUT.") from error


def with_latencies(gathered: Gathered, benches: Sequence[Bench], shapes: Mapping[str, tuple[int, ...]]) -> Gathered:
    """``gathered`` with the latencies in ``benches`` of the same file, at ``shapes`` if a budget gives sizes.

    The ratio is to the dense file in the same rounds, whichever baseline ``bench`` used. :attr:`Gathered.gaps` says why a
    ratio is missing or a latency does not apply, and what helps.
    """
    if gathered.file is None:
        return gathered
    by_target, gaps = dict(gathered.facts.latency_ms), dict(gathered.gaps)
    digest = files.sha256(gathered.file)
    for bench in benches:
        place, target = bench.of(digest), bench.measured.target
        if place is None:
            continue
        _, entry = place
        if other := _other_shapes(entry, shapes):
            gaps |= {(figure.name, target): f"{bench.path} measured it at {other}" for figure in (P50, P90, RATIO)}
            continue
        ratio, why_not = _ratio(bench, entry, gathered.dense_file)
        if why_not:
            gaps[RATIO.name, target] = why_not
        by_target[target] = latency(entry.latency_ms.model_dump() | ratio, machine_of(bench.measured.environment))
    return replace(gathered, facts=replace(gathered.facts, latency_ms=by_target), gaps=gaps)


def _other_shapes(entry: _File, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The sizes that a file was measured at, and how to measure it at those of the budget; "" if they are the same."""
    fed = {name: one.shape for name, one in entry.inputs.items()}
    wrong = {name: shape for name, shape in shapes.items() if fed.get(name, shape) != shape}
    if not wrong:
        return ""
    options = " ".join(f"--shape {name}={_joined(shape)}" for name, shape in wrong.items())
    return f"{', '.join(f'{name}={_joined(fed[name])}' for name in wrong)}: measure with lrexport bench {options}"


def _joined(shape: Sequence[int]) -> str:
    return ",".join(map(str, shape))


def _ratio(bench: Bench, entry: _File, dense_file: Path | None) -> tuple[dict[str, Any], str]:
    """The fields of a latency with its ratio to the dense file, or why there is none and what helps."""
    none = {"ratio": None, "ratio_iqr": None}
    if dense_file is None or not os.path.isfile(dense_file):
        return none, "no dense network to compare with: name the file with dense = in the budget"
    dense = bench.of(files.sha256(dense_file))
    how = f"measure both in one run: lrexport bench --baseline {dense_file} {entry.path} --json {bench.path}"
    if dense is None:
        return none, f"{bench.path} has no latency of the current {dense_file}: {how}"
    name, dense_entry = dense
    if name == bench.measured.baseline:
        return {}, ""
    mine, theirs = entry.samples_ms, dense_entry.samples_ms
    if not mine or len(mine) != len(theirs):
        return none, f"{bench.path} has a ratio to another file than {dense_file}, and not all rounds: {how}"
    from lrexport.measure.statistics import spread

    ratios = spread([one / other for one, other in zip(mine, theirs, strict=True)])
    return {"ratio": ratios.p50, "ratio_iqr": (ratios.p25, ratios.p75)}, ""

"""A run layer by layer: ranks, spectra and costs, dense and compressed, as rows and as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from lrexport.report.plan_tables import BYTES_PER_PARAMETER, PlanRow, facts, rank_text, shape_text
from lrexport.report.reported_run import ReportedRun, Spectrum
from lrexport.report.tables import Table
from lrexport.runs.figures import Latency
from lrexport.text import number_of, visible
from lrexport.units import format_bytes, format_count, format_ms, format_percent, format_share

UNKNOWN = "—"
_MOST = 0.99  # of the energy: the number of singular values that hold it shows how concentrated a spectrum is


@dataclass(frozen=True)
class Cost:
    """One cost of every layer, dense and compressed, and its format; None: not measured."""

    name: str
    unit: str
    dense: tuple[float | None, ...]
    compressed: tuple[float | None, ...]
    form: Callable[[float], str]
    caption: str

    @property
    def is_known(self) -> bool:
        return any(value is not None for value in (*self.dense, *self.compressed))


@dataclass(frozen=True)
class Row:
    """A layer: its printable name, its entry in the plan, and its spectrum if the run has it."""

    name: str
    facts: PlanRow
    spectrum: Spectrum | None

    @property
    def rank(self) -> int | None:
        """The rank; None for a dense layer."""
        return self.facts.rank

    @property
    def full_rank(self) -> int | None:
        return self.facts.full_rank or (len(self.spectrum.dense) if self.spectrum else None)


def rows_of(subject: ReportedRun) -> list[Row]:
    """The layers in the network's order."""
    spectra = subject.spectra or {}
    return [Row(visible(name), facts(entry), spectra.get(name)) for name, entry in subject.record.plan.items()]


def profiled(subject: ReportedRun) -> tuple[str, Latency, Latency] | None:
    """A target, and both networks' latencies on it by layer, if measured."""
    for target, compressed in subject.compressed.latency_ms.items():
        dense = subject.dense.latency_ms.get(target)
        if dense is not None and dense.layers_ms and compressed.layers_ms:
            return target, dense, compressed
    return None


def costs_of(subject: ReportedRun, rows: Sequence[Row]) -> list[Cost]:
    """MACs, bytes and time of ``rows``."""
    layers = [row.facts for row in rows]
    size = tuple(_bytes(layer.dense_params) for layer in layers), tuple(_bytes(layer.params) for layer in layers)
    macs = tuple(layer.dense_macs for layer in layers), tuple(layer.macs for layer in layers)
    counted = "MACs of one input, counted layer by layer on the torch network."
    stored = f"{BYTES_PER_PARAMETER} bytes per parameter (float32), without the rest of the ONNX file."
    costs = [Cost("MACs", "MACs", *macs, format_count, counted), Cost("Bytes", "bytes", *size, format_bytes, stored)]
    timed = profiled(subject)
    if timed is None:
        return [*costs, Cost("Time", "milliseconds", (None,) * len(rows), (None,) * len(rows), format_ms, "")]
    target, dense, compressed = timed
    names = list(subject.record.plan)
    times = [tuple((latency.layers_ms or {}).get(name) for name in names) for latency in (dense, compressed)]
    others = [(latency.layers_ms or {}).get("") for latency in (dense, compressed)]
    where = f"on {visible(target)} with {number_of(dense.threads, 'thread')}"
    caption = f"Milliseconds for a batch of {dense.batch} {where}, from the runtime's profiler, which adds some overhead; "
    caption += "a layer includes what was fused into it. "
    caption += "Outside layers (activations, sums, changes of layout): "
    caption += " dense and ".join(UNKNOWN if value is None else format_ms(value) for value in others) + " compressed."
    return [*costs, Cost("Time", "milliseconds", times[0], times[1], format_ms, caption)]


def rank_table(rows: Sequence[Row]) -> Table:
    """Scheme, rank of full rank, energy kept, and why a layer stays dense."""
    cells: list[tuple[str, ...]] = [
        (
            row.name,
            shape_text(row.facts.shape),
            row.facts.scheme or "dense",
            rank_text(row.facts) if row.facts.scheme else f"{UNKNOWN}/{row.full_rank or UNKNOWN}",
            UNKNOWN if row.facts.energy_kept is None else format_percent(row.facts.energy_kept),
            visible(row.facts.reason),
        )
        for row in rows
    ]
    caption = "Energy kept is weighted by the layer's inputs if there was data, except with --energy or --no-weighting."
    columns: tuple[str, ...] = ("layer", "weight", "scheme", "rank", "energy kept", "why dense")
    if not any(row[-1] for row in cells):
        columns, cells = columns[:-1], [row[:-1] for row in cells]
    return Table(columns, tuple(cells), caption, words=("scheme", "why dense"))


def cost_table(rows: Sequence[Row], costs: Sequence[Cost]) -> Table:
    """All costs of every layer, dense, compressed and their ratio, with the sums."""
    known = [cost for cost in costs if cost.is_known]
    columns = ["layer", *(f"{cost.name} {what}" for cost in known for what in ("dense", "compressed", "ratio"))]
    cells = [
        (row.name, *(text for cost in known for text in _cells(cost, cost.dense[i], cost.compressed[i])))
        for i, row in enumerate(rows)
    ]
    sums = [text for cost in known for text in _cells(cost, _sum(cost.dense), _sum(cost.compressed))]
    caption = " ".join(cost.caption for cost in known)
    return Table(tuple(columns), (*cells, (f"all {len(rows)} layers", *sums)), caption)


def spectrum_table(rows: Sequence[Row]) -> Table:
    """By layer, the number of singular values that hold 99 % of the energy, and the share of energy beyond the cut."""
    cells = []
    for row in rows:
        if row.spectrum is None:
            continue
        spectra = [row.spectrum.dense] + ([row.spectrum.trained] if row.spectrum.trained is not None else [])
        pairs = [(str(values_for(values, _MOST)), beyond(values, row.rank)) for values in spectra]
        pairs += [(UNKNOWN, UNKNOWN)] * (2 - len(pairs))
        cut = "whole" if row.rank is None else f"{row.rank}/{len(row.spectrum.dense)}"
        cells.append((row.name, cut, pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1]))
    most = f"values for {100 * _MOST:.0f} %"
    columns = ("layer", "cut", f"{most}, before", f"{most}, after", "beyond the cut, before", "beyond the cut, after")
    caption = (
        "Before and after SVD training: number of singular values with 99 % of a kernel's energy (Σ s²), and share of the "
    )
    return Table(columns, tuple(cells), caption + "energy beyond the cut.")


def values_for(values: Sequence[float], share: float) -> int:
    """The number of leading values that hold that share of Σ s²."""
    sums = list(accumulate(value * value for value in values))
    return next((i for i, so_far in enumerate(sums, 1) if so_far >= share * sums[-1]), len(sums))


def beyond(values: Sequence[float], rank: int | None) -> str:
    """The share of Σ s² that a cut at ``rank`` drops."""
    total = sum(value * value for value in values)
    if rank is None or not total:
        return UNKNOWN
    share = sum(value * value for value in values[rank:]) / total
    return format_percent(share) if share >= 5e-5 or not share else "< 0.01 %"


def _cells(cost: Cost, dense: float | None, compressed: float | None) -> tuple[str, str, str]:
    texts = [UNKNOWN if value is None else cost.form(value) for value in (dense, compressed)]
    ratio = UNKNOWN if dense is None or compressed is None else format_share(compressed, dense)
    return texts[0], texts[1], ratio


def _bytes(params: int | None) -> int | None:
    return None if params is None else BYTES_PER_PARAMETER * params


def _sum(values: Sequence[float | None]) -> float | None:
    """None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None

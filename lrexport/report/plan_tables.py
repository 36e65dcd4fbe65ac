"""A plan layer by layer, as a table and as JSON; figures that its file lacks are dashes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lrexport.artifacts.plan_file import PlanFile
from lrexport.plan import Dense, Entry, Pair, PairChoice, Scheme
from lrexport.report.tables import Table
from lrexport.units import format_bytes, format_count, format_share, sum_known

BYTES_PER_PARAMETER = 4  # float32
_UNKNOWN = "—"
_EDITED = "The plan was edited, so figures may be outdated; compress MODEL --plan FILE --dry-run updates them."
_COLUMNS: tuple[str, ...]
_COLUMNS = ("layer", "weight", "scheme", "rank", "energy kept", "MACs", "parameters", "bytes", "why dense")
_SPARE = ("why dense", "bytes", "parameters", "weight", "energy kept")
_COSTLY = "its pair would cost more than the layer"


@dataclass(frozen=True)
class PlanRow:
    """One layer of a plan; None: not in the file. ``scheme`` None is a dense layer, for ``reason``."""

    scheme: Scheme | None
    rank: int | None = None
    full_rank: int | None = None
    energy_kept: float | None = None
    dense_macs: int | None = None
    macs: int | None = None
    dense_params: int | None = None
    params: int | None = None
    shape: tuple[int, ...] = ()
    reason: str = ""

    @property
    def choice(self) -> tuple[Scheme | None, int | None]:
        return self.scheme, self.rank


@dataclass(frozen=True)
class Totals:
    """Sums over the layers of a plan; None if a layer's figure is unknown."""

    dense_macs: int | None
    macs: int | None
    dense_params: int | None
    params: int | None


def facts(entry: Entry) -> PlanRow:
    """The row of a plan's entry."""
    if isinstance(entry, Pair):
        return PlanRow(**entry.model_dump())
    if isinstance(entry, Dense):
        macs, params = entry.dense_macs, entry.dense_params
        return PlanRow(None, None, None, None, macs, macs, params, params, entry.shape, entry.reason)
    return PlanRow(entry.scheme, entry.rank) if isinstance(entry, PairChoice) else PlanRow(None)


def totals(layers: Iterable[PlanRow]) -> Totals:
    """Sums over layers."""
    listed = list(layers)
    return Totals(
        sum_known(layer.dense_macs for layer in listed),
        sum_known(layer.macs for layer in listed),
        sum_known(layer.dense_params for layer in listed),
        sum_known(layer.params for layer in listed),
    )


def dense_reasons(plan: Mapping[str, Entry]) -> dict[str, int]:
    """Number of dense layers by reason."""
    counts: dict[str, int] = {}
    for layer in plan.values():
        if isinstance(layer, Dense):
            # Reasons about cost contain the layer's figures: "a spatial pair of rank 9 costs 12K MACs, the layer 9K".
            reason = _COSTLY if layer.kind == "costly" else layer.reason
            counts[reason] = counts.get(reason, 0) + 1
    return counts


def plan_table(plan: Mapping[str, Entry], as_written: bool = True) -> Table:
    """Layer by layer: weight, scheme, rank of full rank, energy kept, and costs before and after; then the sums.

    ``as_written`` False: the plan was edited after its figures were computed.
    """
    layers = {name: facts(entry) for name, entry in plan.items()}
    if not layers:
        return Table((), ())
    rows: list[tuple[str, ...]] = [
        (name, *_choice_cells(layer), *_costs(layer), layer.reason) for name, layer in layers.items()
    ]
    sums = totals(layers.values())
    pairs = sum(layer.scheme is not None for layer in layers.values())
    rows.append((f"all {len(layers)} layers", "", f"{pairs} pair{'' if pairs == 1 else 's'}", "", "", *_costs(sums), ""))
    shares = f"MACs {ratio_text(sums.macs, sums.dense_macs)}, parameters {ratio_text(sums.params, sums.dense_params)}"
    columns = _COLUMNS
    if not any(layer.reason for layer in layers.values()):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    caption = f"These layers: {shares}. MACs of one input; {BYTES_PER_PARAMETER} bytes per parameter (float32)."
    return Table(
        columns,
        tuple(rows),
        caption if as_written else f"{caption} {_EDITED}",
        words=("scheme", "why dense"),
        spare=tuple(name for name in _SPARE if name in columns),
    )


def entry_to_json(layer: PlanRow) -> dict[str, Any]:
    """Scheme and rank, or dense, and the figures; null if unknown."""
    values = asdict(layer)
    reason = values.pop("reason")
    if layer.scheme is not None:
        return values
    return {"dense": True, "reason": reason, **{key: values[key] for key in ("dense_macs", "dense_params", "shape")}}


def plan_to_json(plan: PlanFile) -> dict[str, Any]:
    """The plan as documented in docs/plans.md."""
    layers = {name: facts(entry) for name, entry in plan.entries.items()}
    return {
        "plan": {name: entry_to_json(layer) for name, layer in layers.items()},
        "totals": totals_to_json(totals(layers.values())),
        "as_written": plan.as_written,
    }


def totals_to_json(sums: Totals) -> dict[str, int | None]:
    """Sums over the layers, bytes for float32."""
    values = asdict(sums)
    return {**values, "dense_bytes": _bytes(sums.dense_params), "bytes": _bytes(sums.params)}


def _choice_cells(layer: PlanRow) -> tuple[str, str, str, str]:
    if layer.scheme is None:
        return shape_text(layer.shape), "dense", "", ""
    kept = _UNKNOWN if layer.energy_kept is None else f"{100 * layer.energy_kept:.2f} %"
    return shape_text(layer.shape), layer.scheme, rank_text(layer), kept


def rank_text(layer: PlanRow) -> str:
    """``12/48``: rank of full rank."""
    return f"{layer.rank}/{_UNKNOWN if layer.full_rank is None else layer.full_rank}"


def shape_text(shape: tuple[int, ...]) -> str:
    """``64×64×3×3``."""
    return "×".join(map(str, shape)) or _UNKNOWN


def before_and_after(before: int | None, after: int | None, form: Callable[[float], str] = format_count) -> str:
    """``9.00K → 3.00K``, or one figure if both are the same."""
    old, new = (_UNKNOWN if count is None else form(count) for count in (before, after))
    return old if before == after else f"{old} → {new}"


def ratio_text(part: int | None, whole: int | None) -> str:
    """``0.33×``."""
    return _UNKNOWN if part is None or whole is None else format_share(part, whole)


def _costs(layer: PlanRow | Totals) -> tuple[str, str, str]:
    """MACs, parameters and bytes, before → after if they differ."""
    return (
        before_and_after(layer.dense_macs, layer.macs),
        before_and_after(layer.dense_params, layer.params),
        before_and_after(_bytes(layer.dense_params), _bytes(layer.params), format_bytes),
    )


def _bytes(params: int | None) -> int | None:
    return None if params is None else BYTES_PER_PARAMETER * params

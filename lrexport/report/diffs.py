"""Differences between two plans, as a table and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from lrexport.artifacts.plan_file import PlanFile
from lrexport.report.plan_tables import (
    PlanRow,
    Totals,
    before_and_after,
    entry_to_json,
    facts,
    rank_text,
    ratio_text,
    shape_text,
    totals,
    totals_to_json,
)
from lrexport.report.tables import Table


@dataclass(frozen=True)
class Diff:
    """Differences between two plans by layer; None for a plan that lacks the layer. ``same`` counts the other layers."""

    layers: dict[str, tuple[PlanRow | None, PlanRow | None]]
    same: int
    totals: tuple[Totals, Totals]


def diff_plans(before: PlanFile, after: PlanFile) -> Diff:
    """The changes from ``before`` to ``after``.

    Figures that contradict their rank, because the file was edited, are computed from the other file if possible, else
    omitted.
    """
    old, new = ({name: facts(entry) for name, entry in plan.entries.items()} for plan in (before, after))
    edited = not before.as_written, not after.as_written
    layers: dict[str, tuple[PlanRow | None, PlanRow | None]] = {}
    for name in [*old, *(name for name in new if name not in old)]:
        if name in old and name in new:
            old[name], new[name] = _completed(old[name], new[name], edited)
            if not _differ(old[name], new[name]):
                continue
        layers[name] = old.get(name), new.get(name)
    same = len({**old, **new}) - len(layers)
    return Diff(layers, same, (totals(old.values()), totals(new.values())))


def diff_table(diff: Diff, before: str, after: str) -> Table:
    """One row per layer that differs, and the sums over all layers of each plan."""
    rows = [
        (name, *_both_choices(old, new), before_and_after(_macs(old), _macs(new)), _ratio(old, new))
        for name, (old, new) in diff.layers.items()
    ]
    was, becomes = diff.totals
    macs, share = before_and_after(was.macs, becomes.macs), ratio_text(becomes.macs, was.macs)
    rows.append(("all layers", "", "", macs, share))
    same = f"{diff.same} layer{' is' if diff.same == 1 else 's are'} the same"
    parameters = f"parameters {before_and_after(was.params, becomes.params)} ({ratio_text(becomes.params, was.params)})"
    caption = f"From {before} to {after}: {same} in both; {parameters}."
    return Table(("layer", "from", "to", "MACs", "ratio"), tuple(rows), caption, words=("from", "to"), spare=("ratio",))


def diff_to_json(diff: Diff, before: str, after: str) -> dict[str, Any]:
    """The differences as documented in docs/plans.md."""
    return {
        "from": before,
        "to": after,
        "layers": {
            name: {side: entry and entry_to_json(entry) for side, entry in zip(("from", "to"), pair, strict=True)}
            for name, pair in diff.layers.items()
        },
        "same": diff.same,
        "totals": {side: totals_to_json(sums) for side, sums in zip(("from", "to"), diff.totals, strict=True)},
    }


def _completed(old: PlanRow, new: PlanRow, edited: tuple[bool, bool]) -> tuple[PlanRow, PlanRow]:
    """Both without outdated figures, and with missing figures computed from the other if possible."""
    if not _agree(old, new):
        old, new = (_without_costs(side) if doubtful else side for side, doubtful in zip((old, new), edited, strict=True))
    return _filled(old, new), _filled(new, old)


def _agree(old: PlanRow, new: PlanRow) -> bool:
    """Whether the MACs fit the ranks: with one scheme they are proportional, unless a rank was edited."""
    if old.scheme is None or new.scheme is None or old.dense_macs != new.dense_macs:
        return True
    if old.macs is None or new.macs is None or old.rank is None or new.rank is None:
        return True
    if old.scheme == new.scheme:
        return old.macs * new.rank == new.macs * old.rank
    return (old.macs, old.params, old.energy_kept) != (new.macs, new.params, new.energy_kept)


def _without_costs(layer: PlanRow) -> PlanRow:
    return replace(layer, macs=None, params=None, energy_kept=None)


def _filled(layer: PlanRow, other: PlanRow) -> PlanRow:
    if layer.dense_macs is None:
        layer = replace(layer, dense_macs=other.dense_macs, dense_params=other.dense_params, shape=other.shape)
    if layer.scheme is None:
        return replace(layer, macs=layer.dense_macs, params=layer.dense_params)
    rank, other_rank = layer.rank, other.rank
    if layer.scheme != other.scheme or layer.dense_macs != other.dense_macs or rank is None or other_rank is None:
        return layer
    layer = replace(layer, full_rank=other.full_rank if layer.full_rank is None else layer.full_rank)
    return replace(
        layer,
        macs=_at_rank(layer.macs, other.macs, rank, other_rank),
        params=_at_rank(layer.params, other.params, rank, other_rank, _bias(layer)),
    )


def _at_rank(known: int | None, other: int | None, rank: int, other_rank: int, constant: int | None = 0) -> int | None:
    """``known``, or the figure computed from another rank's: except for a constant, costs are proportional to rank."""
    if known is not None or other is None or constant is None:
        return known
    return constant + (other - constant) // other_rank * rank


def _bias(layer: PlanRow) -> int | None:
    return layer.dense_params - prod(layer.shape) if layer.dense_params is not None and layer.shape else None


def _differ(old: PlanRow, new: PlanRow) -> bool:
    """Whether scheme or rank differ, or the layers' sizes or inputs."""
    return old.choice != new.choice or any(
        mine is not None and theirs is not None and mine != theirs
        for mine, theirs in ((old.dense_macs, new.dense_macs), (old.shape or None, new.shape or None))
    )


def _both_choices(old: PlanRow | None, new: PlanRow | None) -> tuple[str, str]:
    other_weight = bool(old and new and old.shape and new.shape and old.shape != new.shape)

    def text(layer: PlanRow | None) -> str:
        if layer is None:
            return "missing"
        choice = "dense" if layer.scheme is None else f"{layer.scheme} {rank_text(layer)}"
        return f"{choice} of {shape_text(layer.shape)}" if other_weight else choice

    return text(old), text(new)


def _macs(layer: PlanRow | None) -> int | None:
    return layer.macs if layer else None


def _ratio(old: PlanRow | None, new: PlanRow | None) -> str:
    return ratio_text(new.macs, old.macs) if old and new else ""

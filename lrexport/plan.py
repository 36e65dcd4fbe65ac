"""Plans: for every layer the pair it becomes, or dense with the reason. Fields: docs/plans.md and docs/record.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Scheme = Literal["spatial", "channel", "input-channel", "linear"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Pair(_Strict):
    """A layer that becomes a pair of plain layers. ``energy_kept`` is Σ kept s² ÷ Σ s², in [0, 1].

    ``shape`` is the dense weight's; a grouped layer has ``rank`` in every group.
    """

    scheme: Scheme
    rank: int = Field(ge=1)
    full_rank: int = Field(ge=1)
    energy_kept: float
    dense_macs: int
    macs: int
    dense_params: int
    params: int
    shape: tuple[int, ...] = ()


# Why a layer is dense: the user asked for it, it cannot be factorised, its pair costs as much as itself, no pair is faster
# on the target, or the budget is spent better elsewhere.
DenseKind = Literal["kept", "unsupported", "costly", "slow", "chosen"]


class Dense(_Strict):
    """A layer that stays as it is, and why."""

    dense: Literal[True] = True
    kind: DenseKind = "unsupported"
    reason: str
    dense_macs: int = 0
    dense_params: int = 0
    shape: tuple[int, ...] = ()


Plan = dict[str, Pair | Dense]


class PlannedLatency(_Strict):
    """What the plan was predicted to take on ``target``, and what the folded network then took there.

    Milliseconds for one inference of one image: ``dense`` and ``measured`` are medians of the same interleaved rounds,
    ``ratio`` and its quartiles are measured ÷ dense round by round. ``environment`` is the target's.
    """

    target: str
    threads: int
    dense: float
    predicted: float
    measured: float
    ratio: float
    ratio_iqr: tuple[float, float]
    environment: dict[str, Any] = {}
    warning: str | None = None


@dataclass(frozen=True)
class PairChoice:
    """A layer is to become a pair; ``rank`` is at least 1, of every group in a grouped layer."""

    scheme: Scheme
    rank: int


Choice = PairChoice | Literal["dense"]
# What stands in a file for one layer: with the figures lrexport wrote, or the choice alone where somebody wrote it.
Entry = Pair | Dense | Choice


def choice_of(entry: Entry) -> Choice:
    """Scheme and rank, or dense, without the figures."""
    if isinstance(entry, Pair):
        return PairChoice(entry.scheme, entry.rank)
    return "dense" if isinstance(entry, Dense) else entry


def digest(plan: Mapping[str, Entry]) -> str:
    """A hash of the choices alone: by it a file that lrexport wrote tells whether it was edited since."""
    choices = {name: "dense" if (choice := choice_of(entry)) == "dense" else vars(choice) for name, entry in plan.items()}
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()[:16]

"""Plans: for every layer the pair it becomes, or the reason to keep it dense. Fields: docs/plans.md, docs/record.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from lrexport.errors import InputError
from lrexport.stored import Stored

Scheme = Literal["spatial", "channel", "input-channel", "linear"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


class Pair(Stored):
    """A layer that becomes a pair of plain layers. ``energy_kept`` is Σ kept s² ÷ Σ s², in [0, 1].

    ``shape`` is that of the dense weight; in a grouped layer every group has rank ``rank``.
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


# Why a layer is dense: the user asked for it, it cannot be factorised, no pair is cheaper, no pair is faster on the target,
# or other layers make better use of the budget.
DenseKind = Literal["kept", "unsupported", "costly", "slow", "chosen"]


class Dense(Stored):
    """A layer that stays dense, and why."""

    dense: Literal[True] = True
    kind: DenseKind = "unsupported"
    reason: str
    dense_macs: int = 0
    dense_params: int = 0
    shape: tuple[int, ...] = ()


class Plan(dict[str, Pair | Dense]):
    """The pair that each layer becomes, or why it stays dense: by layer name, in the order of the network."""

    def to_json(self) -> str:
        """The plan as JSON, which FromPlan and ``--plan`` read, even after edits by hand; format: docs/plans.md."""
        entries = {name: layer.model_dump(mode="json") for name, layer in self.items()}
        return json.dumps({"digest": digest(self), "plan": entries}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote. Raises InputError if ``text`` is invalid or the plan was edited since."""
        try:
            written = _Written.model_validate_json(text)
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            raise InputError(f"invalid plan: {place + ': ' if place else ''}{fault['msg']}") from error
        if written.digest != digest(written.plan):
            raise InputError(
                "the plan was edited after it was written, so its figures no longer match its choices",
                "To use an edited plan, give its file to lrexport.FromPlan, which computes the figures again.",
            )
        return written.plan

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """As a field of a record: a mapping that becomes a plan."""
        return core_schema.no_info_after_validator_function(cls, handler.generate_schema(dict[str, Pair | Dense]))


class _Written(BaseModel):
    """A plan as it is written to a file."""

    digest: str
    plan: Plan


# Fields of PlannedLatency whose names say their unit, by their keys in files.
_IN_FILES = {"dense_ms": "dense", "predicted_ms": "predicted", "measured_ms": "measured"}


class PlannedLatency(Stored):
    """The predicted latency of the plan on ``target``, and the measured latency of the folded network.

    For one image. ``dense_ms`` and ``measured_ms`` are medians of the same interleaved rounds; ``ratio`` and its quartiles
    are of measured ÷ dense in each round. ``environment`` is the target's. ``misses_goal``: no plan was measured to be as
    fast as asked, this one is the fastest. In files the keys have no unit.
    """

    target: str
    threads: int
    dense_ms: float
    predicted_ms: float
    measured_ms: float
    ratio: float
    ratio_iqr: tuple[float, float]
    environment: dict[str, Any] = Field(default={})
    warning: str | None = None
    misses_goal: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_file(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        fields = {key: field for field, key in _IN_FILES.items()}
        return {fields.get(key, key): value for key, value in values.items()}

    @model_serializer(mode="wrap")
    def _in_file(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {_IN_FILES.get(field, field): value for field, value in serialise(self).items()}


@dataclass(frozen=True)
class PairChoice:
    """The choice to make a layer a pair of ``rank`` ≥ 1; in a grouped layer every group has this rank."""

    scheme: Scheme
    rank: int


Choice = PairChoice | Literal["dense"]
# One layer in a plan file: with figures if lrexport wrote it, or only the choice if a person did.
Entry = Pair | Dense | Choice


def choice_of(entry: Entry) -> Choice:
    """The entry's scheme and rank, or "dense"."""
    if isinstance(entry, Pair):
        return PairChoice(entry.scheme, entry.rank)
    return "dense" if isinstance(entry, Dense) else entry


def digest(plan: Mapping[str, Entry]) -> str:
    """A hash of the choices without their figures, which shows whether a file was edited after lrexport wrote it."""
    choices = {name: "dense" if (choice := choice_of(entry)) == "dense" else vars(choice) for name, entry in plan.items()}
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()[:16]

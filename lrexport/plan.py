"""Plans: for every layer the pair it becomes, or dense with the reason. Fields: docs/plans.md and docs/record.md."""

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


class Dense(Stored):
    """A layer that stays as it is, and why."""

    dense: Literal[True] = True
    kind: DenseKind = "unsupported"
    reason: str
    dense_macs: int = 0
    dense_params: int = 0
    shape: tuple[int, ...] = ()


class Plan(dict[str, Pair | Dense]):
    """For every layer with a weight, by name and in the order of the network, the pair it becomes, or dense and why."""

    def to_json(self) -> str:
        """As JSON, which FromPlan and ``--plan`` read from a file, also edited by hand; format: docs/plans.md."""
        entries = {name: layer.model_dump(mode="json") for name, layer in self.items()}
        return json.dumps({"digest": digest(self), "plan": entries}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote. Raises InputError for another text, and for a plan that was edited since."""
        try:
            written = _Written.model_validate_json(text)
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            raise InputError(f"invalid plan: {place + ': ' if place else ''}{fault['msg']}") from error
        if written.digest != digest(written.plan):
            raise InputError(
                "the plan was edited after it was written, so its figures are not those of its choices",
                "lrexport.FromPlan follows an edited plan, and works the figures out for a network.",
            )
        return written.plan

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """As a field of a record: a mapping, made a plan."""
        return core_schema.no_info_after_validator_function(cls, handler.generate_schema(dict[str, Pair | Dense]))


class _Written(BaseModel):
    """What a plan is written as."""

    digest: str
    plan: Plan


# Fields of PlannedLatency whose names say their unit, by their keys in files.
_IN_FILES = {"dense_ms": "dense", "predicted_ms": "predicted", "measured_ms": "measured"}


class PlannedLatency(Stored):
    """What the plan was predicted to take on ``target``, and what the folded network then took there.

    For one inference of one image: ``dense_ms`` and ``measured_ms`` are medians of the same interleaved rounds, ``ratio``
    and its quartiles are measured ÷ dense round by round. ``environment`` is the target's. In files the keys have no unit.
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

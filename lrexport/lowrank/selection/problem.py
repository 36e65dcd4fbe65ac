"""The problem of choosing a plan: the network in SVD form, the options of its layers, and ways to measure a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from torch import nn

from lrexport.errors import UsageError
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.moments import Moments, Schemes
from lrexport.lowrank.factors.truncation import Selection, Truncations, truncations
from lrexport.lowrank.selection.effects import Outputs, with_effects
from lrexport.lowrank.selection.predicted_latency import NetworkLatency
from lrexport.metric import TOP1, Metric
from lrexport.plan import Choice, Plan, PlannedLatency

Rule = Literal["global", "threshold"]


def check_rule(rule: str) -> None:
    """Raise UsageError for a rule that does not exist."""
    if rule not in get_args(Rule):
        raise UsageError(f"unknown rule {rule!r}", f"Known: {', '.join(get_args(Rule))}.")


@dataclass(frozen=True)
class Problem:
    """The layers of ``svd`` with ``schemes``, by default those of the SVD form; ``moments`` weight their energy.

    ``rule`` "global" minimises the total loss of all layers, "threshold" is equation 4. With ``latency``, ranks are on the
    target's grain; without, by the global rule, ranks are multiples of ``rank_multiple`` (is_multiple). ``choices`` are
    those of a plan from ``source``. Some solvers also need functions: ``written_bytes``, the
    size of a folded network as an ONNX file; ``heldout_score`` in ``metric`` after pruning and repair, of None before;
    ``confirm``, which measures a plan on the target; ``remeasure``, which measures again the layer times that a plan uses.
    With ``outputs``, the global rule also tries energies weighted by what their loss does to the network's outputs.
    ``measured`` are the truncations, if they are already known.
    """

    svd: SVDNetwork
    rule: Rule = "global"
    moments: Moments | None = None
    schemes: Schemes | None = None
    latency: NetworkLatency | None = None
    choices: Mapping[str, Choice] | None = None
    source: str = "the plan"
    written_bytes: Callable[[nn.Module], int] | None = None
    heldout_score: Callable[[Selection | None], float] | None = None
    metric: Metric = TOP1
    confirm: Callable[[Selection], PlannedLatency] | None = None
    remeasure: Callable[[Plan], NetworkLatency] | None = None
    rank_multiple: int = 1
    outputs: Outputs | None = None
    measured: Truncations | None = None

    def __post_init__(self) -> None:
        check_rule(self.rule)
        if self.rank_multiple < 1:
            raise UsageError(f"invalid rank_multiple {self.rank_multiple}: expected a whole number of at least 1")

    @cached_property
    def truncations(self) -> Truncations:
        """Every layer at every rank. First, U, s, V are replaced by the exact SVD of the composed kernels."""
        if self.measured is not None:
            return self.measured
        return truncations(self.svd, self.moments, self.schemes)

    def by_effect(self) -> Problem:
        """The problem with energies weighted by their effects on ``outputs``, which are measured."""
        assert self.outputs is not None
        return replace(self, measured=with_effects(self.svd, self.truncations, self.outputs))

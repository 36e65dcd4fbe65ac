"""The solver of each goal, and the warnings that all plans share."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import singledispatch
from typing import get_args

from lrexport.config.goals import AccuracyDrop, Energy, FromPlan, Goal, Latency, Macs, Params, Size
from lrexport.errors import UsageError
from lrexport.lowrank.factors.moments import own_schemes_of
from lrexport.lowrank.factors.truncation import Selection
from lrexport.lowrank.selection.by_accuracy_drop import by_accuracy_drop
from lrexport.lowrank.selection.by_latency import by_latency
from lrexport.lowrank.selection.by_size import by_size
from lrexport.lowrank.selection.costs import whole_cost
from lrexport.lowrank.selection.effects import closer
from lrexport.lowrank.selection.from_plan import plan_from_choices
from lrexport.lowrank.selection.multiples import down_to_multiple
from lrexport.lowrank.selection.problem import Problem
from lrexport.lowrank.selection.threshold import at_threshold
from lrexport.lowrank.selection.within_budget import within
from lrexport.plan import Pair

_BUDGETS = (Macs, Params, Size)  # goals that no measurement of plans meets


@singledispatch
def solve(goal: object, problem: Problem) -> Selection:
    """The plan for ``goal``. Raises UsageError if it is unreachable, or needs something that ``problem`` lacks."""
    known = ", ".join(kind.__name__ for kind in get_args(Goal))
    raise UsageError(f"invalid goal {goal!r}: expected one of {known}", "For example lrexport.Macs(0.5).")


solve.register(Size, by_size)
solve.register(Latency, by_latency)
solve.register(AccuracyDrop, by_accuracy_drop)


@solve.register
def _macs(goal: Macs, problem: Problem) -> Selection:
    budget = goal.share * whole_cost(problem.svd, "macs")
    return within(problem.svd, problem.truncations, "macs", budget, problem.rule, problem.latency, problem.rank_multiple)


@solve.register
def _params(goal: Params, problem: Problem) -> Selection:
    budget = goal.share * whole_cost(problem.svd, "params")
    return within(problem.svd, problem.truncations, "params", budget, problem.rule, problem.latency, problem.rank_multiple)


@solve.register
def _energy(goal: Energy, problem: Problem) -> Selection:
    return at_threshold(problem.svd, problem.truncations, goal.dropped, problem.latency)


@solve.register
def _from_plan(_goal: FromPlan, problem: Problem) -> Selection:
    assert problem.choices is not None
    return plan_from_choices(problem.svd, problem.choices, problem.source, problem.moments)


def choose(goal: Goal, problem: Problem) -> Selection:
    """The plan for ``goal``, measured on the target if there is one, with a warning if nothing is pruned.

    Of the plans by energies alone and by their effects on outputs, where these are known, it is the one whose repaired
    network follows the dense one more closely. Raises as :func:`solve`.
    """
    selection = solve(goal, problem)
    if problem.outputs is not None and problem.rule == "global" and isinstance(goal, _BUDGETS) and selection.has_pairs:
        selection = closer(selection, solve(goal, problem.by_effect()), problem.outputs)
    if isinstance(goal, Latency):  # its solver measures and warns
        return selection
    if not selection.has_pairs:
        selection = replace(selection, warnings=(*selection.warnings, _why_nothing(goal, problem, selection)))
    if problem.confirm is None:
        return selection
    return replace(selection, latency=problem.confirm(selection))


def predict(goal: Goal, problem: Problem) -> Selection:
    """The plan for ``goal`` without measurements, from predicted latency. Raises as :func:`solve`."""
    return solve(goal, replace(problem, confirm=None))


def even_ranks(goal: Goal, problem: Problem) -> dict[str, int]:
    """The rank of each layer by equation 4, with one e for all that meets the goal, in the scheme of its SVD form.

    Rounded down to ranks that the global rule may choose, so that its plan has room for them. Latency is predicted. Layers
    that would stay dense are left out. Raises as :func:`solve`.
    """
    even = replace(problem, rule="threshold", moments=None, schemes=own_schemes_of(problem.svd))
    pairs = {name: layer.rank for name, layer in predict(goal, even).plan.items() if isinstance(layer, Pair)}
    multiple = problem.rank_multiple if problem.rule == "global" and problem.latency is None else 1
    return {name: down_to_multiple(rank, multiple) for name, rank in pairs.items()}


def _why_nothing(goal: Goal, problem: Problem, selection: Selection) -> str:
    """The warning for a plan without pairs; for a threshold, with the smallest that prunes a layer."""
    least = [
        float(truncation.energy_dropped[min(facts.full_rank, (layer.dense_macs - 1) // facts.macs_per_rank)])
        for name, layer in problem.svd.layers.items()
        for scheme, truncation in selection.truncations.get(name, {}).items()
        for facts in [layer.schemes[scheme]]
    ]
    if not isinstance(goal, Energy) or problem.latency is not None or not least:
        return "nothing is pruned: every layer stays dense"
    enough = math.ceil(100 * min(least)) / 100  # rounded up to a whole percent
    why = f"if at most {goal.dropped:g} of a layer's energy is dropped, every pair costs more than its layer"
    return f"nothing is pruned: {why}; --energy {enough:g} prunes the first"

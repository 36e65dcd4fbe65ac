"""For each goal the function that solves it, and what is said of its plan whatever the goal was."""

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
from lrexport.lowrank.selection.from_plan import plan_from_choices
from lrexport.lowrank.selection.problem import Problem
from lrexport.lowrank.selection.threshold import at_threshold
from lrexport.lowrank.selection.within_budget import within
from lrexport.plan import Pair


@singledispatch
def solve(goal: object, problem: Problem) -> Selection:
    """The plan for ``goal``. Raises UsageError for a goal out of reach, and for one that needs what ``problem`` has not."""
    known = ", ".join(kind.__name__ for kind in get_args(Goal))
    raise UsageError(f"invalid goal {goal!r}: expected one of {known}", "As in lrexport.Macs(0.5).")


solve.register(Size, by_size)
solve.register(Latency, by_latency)
solve.register(AccuracyDrop, by_accuracy_drop)


@solve.register
def _macs(goal: Macs, problem: Problem) -> Selection:
    budget = goal.share * whole_cost(problem.svd, "macs")
    return within(problem.svd, problem.truncations, "macs", budget, problem.rule, problem.latency)


@solve.register
def _params(goal: Params, problem: Problem) -> Selection:
    budget = goal.share * whole_cost(problem.svd, "params")
    return within(problem.svd, problem.truncations, "params", budget, problem.rule, problem.latency)


@solve.register
def _energy(goal: Energy, problem: Problem) -> Selection:
    return at_threshold(problem.svd, problem.truncations, goal.dropped, problem.latency)


@solve.register
def _from_plan(_goal: FromPlan, problem: Problem) -> Selection:
    assert problem.choices is not None
    return plan_from_choices(problem.svd, problem.choices, problem.source, problem.moments)


def choose(goal: Goal, problem: Problem) -> Selection:
    """The plan for ``goal``, measured on the target where there is one, with a warning where nothing is pruned.

    Raises as :func:`solve`.
    """
    selection = solve(goal, problem)
    if isinstance(goal, Latency):  # measured, and warned of, already
        return selection
    if not selection.has_pairs:
        selection = replace(selection, warnings=(*selection.warnings, _why_nothing(goal, problem, selection)))
    if problem.confirm is None:
        return selection
    return replace(selection, latency=problem.confirm(selection))


def predict(goal: Goal, problem: Problem) -> Selection:
    """The plan for ``goal`` as the target's table predicts it, with nothing measured. Raises as :func:`solve`."""
    return solve(goal, replace(problem, confirm=None))


def even_ranks(goal: Goal, problem: Problem) -> dict[str, int]:
    """Of each layer what one e for all leaves within the goal by equation 4, in the scheme of its SVD form.

    A goal of latency is taken as the target's table predicts it. Layers that would stay dense are left out. Raises as
    :func:`solve`.
    """
    even = replace(problem, rule="threshold", moments=None, schemes=own_schemes_of(problem.svd))
    return {name: layer.rank for name, layer in predict(goal, even).plan.items() if isinstance(layer, Pair)}


def _why_nothing(goal: Goal, problem: Problem, selection: Selection) -> str:
    """Of a plan without a pair what it would take to have one, where that is a threshold."""
    least = [
        float(truncation.energy_dropped[min(facts.full_rank, (layer.dense_macs - 1) // facts.macs_per_rank)])
        for name, layer in problem.svd.layers.items()
        for scheme, truncation in selection.truncations.get(name, {}).items()
        for facts in [layer.schemes[scheme]]
    ]
    if not isinstance(goal, Energy) or problem.latency is not None or not least:
        return "nothing is pruned: every layer stays dense"
    enough = math.ceil(100 * min(least)) / 100  # percent, rounded to where a pair is
    why = f"with at most {goal.dropped:g} of a layer's energy dropped every pair costs more than its layer"
    return f"nothing is pruned: {why}; --energy {enough:g} prunes the first"

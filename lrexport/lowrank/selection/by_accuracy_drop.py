"""The goal AccuracyDrop: the cheapest plan that loses little of the score, by a line search that scores pruned networks."""

from __future__ import annotations

from dataclasses import replace

from lrexport.config.goals import AccuracyDrop
from lrexport.errors import UsageError
from lrexport.lowrank.factors.truncation import Selection
from lrexport.lowrank.selection.costs import plan_cost, whole_cost
from lrexport.lowrank.selection.problem import Problem
from lrexport.lowrank.selection.threshold import at_threshold, first_true
from lrexport.lowrank.selection.within_budget import smallest, within

_GRID = 64  # steps of the line search


def by_accuracy_drop(goal: AccuracyDrop, problem: Problem) -> Selection:
    """The cheapest plan that loses at most the goal's drop of the held-out score by pruning and repair, before fine-tuning.

    The line search of Yang et al. 2020, section 3.3, on a grid: over shares of the MACs by the global rule, over e by the
    threshold rule. It assumes that the score gets worse with cost. Raises UsageError without a score.
    """
    svd, truncated, heldout_score = problem.svd, problem.truncations, problem.heldout_score
    if heldout_score is None:
        raise UsageError(
            "the goal AccuracyDrop needs labelled images to score networks",
            "Give --data to lrexport compress, or choose another goal.",
        )
    dense = heldout_score(None)
    least, most = plan_cost(svd, smallest(svd, truncated, "macs").plan, "macs"), whole_cost(svd, "macs")
    last = _GRID - 1

    def plan(step: int) -> Selection:
        if problem.rule == "threshold":  # e from 1 to 1e-5 in equal ratios, then 0
            return at_threshold(svd, truncated, 10 ** (-5 * step / last) if step < last else 0.0, problem.latency)
        budget = least + (most - least) * step / last
        return within(svd, truncated, "macs", budget, latency=problem.latency, multiple=problem.rank_multiple)

    lost: dict[int, float] = {last: 0.0}

    def holds(step: int) -> bool:
        if step not in lost:
            lost[step] = problem.metric.loss(dense, heldout_score(plan(step)))
        return lost[step] <= goal.points

    return replace(plan(first_true(last, holds)), heldout_score=dense)

"""Rank selection from the network alone, for goals that need neither scores nor files."""

from __future__ import annotations

from dataclasses import replace

from lrexport.artifacts.plan_file import choices_in
from lrexport.config.goals import FromPlan, Goal, Latency
from lrexport.lowrank.factors.arguments import check_svd
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.moments import Moments, every_scheme_of
from lrexport.lowrank.factors.truncation import Selection
from lrexport.lowrank.selection.from_plan import with_choices
from lrexport.lowrank.selection.predicted_latency import NetworkLatency
from lrexport.lowrank.selection.problem import Problem, Rule
from lrexport.lowrank.selection.solve import solve


def select(
    svd: SVDNetwork,
    goal: Goal,
    *,
    rule: Rule = "global",
    moments: Moments | None = None,
    every_scheme: bool = False,
    latency: NetworkLatency | None = None,
    rank_multiple: int = 1,
) -> Selection:
    """Choose scheme and rank, or dense, for every layer by ``goal``: Macs, Params, Energy, FromPlan, or Latency.

    Layers of ``svd.network`` are changed in place: U, s, V are replaced by the exact SVD of the composed kernels, with the
    same weights. ``rule`` "global" minimises the sum over layers of (share of energy dropped)^0.75; "threshold" takes the
    smallest e of equation 4, one for all layers, that meets the budget. ``moments``, from input_moments, weight the energy
    by the data. ``every_scheme`` allows each layer any scheme. With ``latency`` ranks are on the target's grain, and the
    goal Latency is met as predicted; without, by the global rule, ranks are multiples of ``rank_multiple``, and those below
    of its half, quarter … down to 4, as runtimes that compute channels in blocks like them. Give the whole Selection to
    fold, so pairs get the factors that the plan is based on.

    Raises UsageError for an unknown rule, for an unreachable goal, with the least that can be reached, and for Size and
    AccuracyDrop; InputError for a plan that does not fit the network. Source: Yang et al. 2020, section 3.3.
    """
    check_svd(svd)
    problem = Problem(svd, rule, moments, latency=latency, rank_multiple=rank_multiple)
    if isinstance(goal, FromPlan):
        problem = with_choices(problem, choices_in(goal.plan), goal.source)
    elif every_scheme or isinstance(goal, Latency):
        problem = replace(problem, schemes=every_scheme_of(svd))
    return solve(goal, problem)

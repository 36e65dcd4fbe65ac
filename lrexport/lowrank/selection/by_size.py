"""The goal Size: the best plan whose actual ONNX file is small enough."""

from __future__ import annotations

from lrexport.config.goals import Size
from lrexport.errors import UsageError
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.truncation import Selection
from lrexport.lowrank.selection.costs import Cost, plan_cost, whole_cost
from lrexport.lowrank.selection.problem import Problem
from lrexport.lowrank.selection.within_budget import smallest, within
from lrexport.units import format_bytes

_TRIES = 5
_BYTES = 4.0  # per parameter


def by_size(goal: Size, problem: Problem) -> Selection:
    """The plan of least loss whose file has at most the goal's bytes: four for each parameter, plus an overhead.

    The overhead depends slightly on the plan, so the budget of parameters is corrected by actually writing files. Raises
    UsageError for an unreachable goal, with the least that can be reached, and if files cannot be written.
    """
    svd, truncated, written_bytes = problem.svd, problem.truncations, problem.written_bytes
    if written_bytes is None:
        raise UsageError(
            "the goal Size needs exported files, which select does not write",
            "Use lrexport.compress, or give select the goal Params, with 4 bytes for each parameter.",
        )
    cost: Cost = "params"
    best = smallest(svd, truncated, cost)
    least, most = plan_cost(svd, best.plan, cost), whole_cost(svd, cost)
    written = written_bytes(fold(svd, best))
    if written > goal.bytes:
        raise UsageError(
            f"a file of {format_bytes(goal.bytes)} is out of reach",
            f"The file of the smallest plan, rank 1 in every layer, has {written:,} bytes.",
        )
    overhead = written - _BYTES * least
    for _ in range(_TRIES):
        budget = min(float(most), max((goal.bytes - overhead) / _BYTES, least))
        selection = within(svd, truncated, cost, budget, problem.rule, problem.latency, problem.rank_multiple)
        written = written_bytes(fold(svd, selection))
        overhead = written - _BYTES * plan_cost(svd, selection.plan, cost)
        better = plan_cost(svd, selection.plan, cost) > plan_cost(svd, best.plan, cost)
        if written <= goal.bytes and better:
            best = selection
        elif written <= goal.bytes:
            break
    return best

"""The goal Latency: the best plan by the target's table of layer times, corrected by measuring networks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from lrexport.config.goals import Latency
from lrexport.errors import UsageError
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.moments import own_schemes_of
from lrexport.lowrank.factors.truncation import Selection, Truncations
from lrexport.lowrank.selection.costs import whole_cost
from lrexport.lowrank.selection.least_loss import layer_options, least_loss
from lrexport.lowrank.selection.predicted_latency import NetworkLatency
from lrexport.lowrank.selection.problem import Problem, Rule, check_rule
from lrexport.lowrank.selection.threshold import at_threshold, first_true, steps_of
from lrexport.lowrank.selection.within_budget import within
from lrexport.plan import PlannedLatency, digest
from lrexport.units import format_ms, format_percent

_TRIES = 5
_OFF = 0.1  # a prediction that is off by more has wrong layer times: those of its plan are measured again
_CLOSE = 0.03  # a network that is faster than the goal by at most this share is accepted


def by_latency(goal: Latency, problem: Problem) -> Selection:
    """The plan of least loss that meets the goal, as measured or, if nothing can be measured, as predicted.

    Predictions have errors of some percent, so the budget is corrected by measuring networks; if the first is off by more
    than a tenth, the layer times that its plan uses are measured again before the next. Of those that are fast enough
    the slowest is taken. If none is, the plans of the same share of MACs are measured too, and the fastest of all is taken,
    with a warning and marked as one that misses the goal. A corrected budget never leaves the network dense, only the goal
    itself does. Raises UsageError for an unreachable goal, and without layer times.
    """
    svd, latency, confirm = problem.svd, problem.latency, problem.confirm
    if latency is None:
        raise UsageError(
            "the goal Latency needs the times of layers on a target",
            "Use lrexport.compress, which measures them, or give them to select as latency=.",
        )
    dense_ms = latency.dense_ms
    budget_ms = goal.budget_ms(dense_ms)
    if confirm is None:
        return within_latency(svd, problem.truncations, latency, budget_ms, problem.rule)
    asked = budget_ms / dense_ms
    budget, tries = asked, list[tuple[float, Selection]]()
    while len(tries) < _TRIES:
        # A goal that is out of reach is refused; of a corrected budget, the fastest plan is still worth measuring.
        is_fastest = bool(tries) and budget * dense_ms < latency.least_ms
        if is_fastest:
            budget = latency.least_ms / dense_ms
        room = latency.least_ms if is_fastest else budget * dense_ms
        selection = within_latency(svd, problem.truncations, latency, room, problem.rule)
        if is_fastest and any(digest(selection.plan) == digest(tried.plan) for _, tried in tries):
            break
        tries.append(_measured(goal, selection, latency, confirm))
        ratio, measured = tries[-1][0], tries[-1][1].latency
        assert measured is not None
        predicted = measured.predicted_ms / measured.dense_ms
        if asked * (1 - _CLOSE) <= ratio <= asked or (not selection.has_pairs and asked >= 1):
            return tries[-1][1]
        if not selection.has_pairs:  # no pair is faster than its layer, by the table
            break
        if problem.remeasure is not None and len(tries) == 1 and abs(predicted / measured.ratio - 1) > _OFF:
            again = problem.remeasure(selection.plan)
            if again.of_plan(selection.plan) > 0:  # else the machine was too busy for any prediction
                latency, budget = again, again.of_plan(selection.plan) / dense_ms
        # At 1 nothing would be pruned, so go at most half the way there.
        budget = min(budget * asked * (1 - _CLOSE / 2) / ratio, (1 + budget) / 2)
    fitting = [each for each in tries if each[0] <= asked]
    if not fitting:
        tries += [_measured(goal, selection, latency, confirm) for selection in _by_macs(asked, problem)]
        fitting = [each for each in tries if each[0] <= asked]
    if fitting:
        return max(fitting, key=lambda each: each[0])[1]
    ratio, fastest = min(tries, key=lambda each: each[0])
    assert fastest.latency is not None
    given = format_ms(goal.milliseconds) if goal.milliseconds is not None else f"{goal.share:g}"
    note = f"no measured plan reaches the latency goal ({given}); this one takes {ratio:.3f} of the dense latency"
    missed = fastest.latency.model_copy(update={"misses_goal": True})
    return replace(fastest, latency=missed, warnings=(*fastest.warnings, note))


def _measured(
    goal: Latency, selection: Selection, latency: NetworkLatency, confirm: Callable[[Selection], PlannedLatency]
) -> tuple[float, Selection]:
    """A measured plan, and its share of the dense time: by what the goal is, of the same rounds or of the table's."""
    measured = confirm(selection)
    predicted = latency.of_plan(selection.plan) / latency.dense_ms
    measured = measured.model_copy(update={"predicted_ms": predicted * measured.dense_ms})
    ratio = measured.ratio if goal.share is not None else measured.measured_ms / latency.dense_ms
    return ratio, replace(selection, latency=measured)


def _by_macs(share: float, problem: Problem) -> list[Selection]:
    """What the goal of MACs would choose for the same share: in the schemes of the SVD form, and in all of the problem."""
    budget = share * whole_cost(problem.svd, "macs")
    chosen: dict[str, Selection] = {}
    for schemes in (own_schemes_of(problem.svd), problem.schemes):
        posed = replace(problem, schemes=schemes)
        with contextlib.suppress(UsageError):  # so few MACs are out of reach
            selection = within(posed.svd, posed.truncations, "macs", budget, posed.rule, multiple=posed.rank_multiple)
            chosen[digest(selection.plan)] = selection
    return [selection for selection in chosen.values() if selection.has_pairs]


def within_latency(
    svd: SVDNetwork, truncated: Truncations, latency: NetworkLatency, budget_ms: float, rule: Rule = "global"
) -> Selection:
    """The plan of least loss that is predicted to take at most ``budget_ms`` milliseconds on the target.

    If no pair is faster than its layer, everything stays dense, with a warning. Raises UsageError for an unreachable budget,
    with the least that can be reached.
    """
    check_rule(rule)
    options = {
        name: layer_options(truncated[name], latency.layers[name].dense_ms, latency.layers[name].gaining)
        for name in svd.layers
    }
    if all(len(choices) == 1 for choices in options.values()):
        dense = least_loss(svd, truncated, options, float("inf"))
        warning = "no pair is faster than its layer on the target: all layers stay dense"
        return replace(dense, warnings=(*dense.warnings, warning))
    if latency.least_ms > budget_ms:
        raise UsageError(
            f"a latency of {format_ms(budget_ms)} is out of reach",
            f"The fastest plan is predicted to take {format_ms(latency.least_ms)}, "
            f"{format_percent(latency.least_ms / latency.dense_ms)} of the dense network's {format_ms(latency.dense_ms)}.",
        )
    if rule == "threshold":  # time falls as e rises; at e = 1 every layer has its fastest pair, within the budget
        steps = steps_of(truncation for schemes in truncated.values() for truncation in schemes.values())

        def at(step: int) -> Selection:
            return at_threshold(svd, truncated, float(steps[step]), latency)

        return at(first_true(len(steps) - 1, lambda step: latency.of_plan(at(step).plan) <= budget_ms))
    selection = least_loss(svd, truncated, options, budget_ms - latency.other_ms)
    if selection.has_pairs:
        return selection
    met = f"the dense network takes {format_ms(latency.dense_ms)}, within the goal of {format_ms(budget_ms)}"
    met = f"nothing is pruned: {met}"
    return replace(selection, warnings=(*selection.warnings, met))

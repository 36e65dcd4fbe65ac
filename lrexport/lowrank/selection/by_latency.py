"""A goal of latency: the best plan as a target's table predicts it, corrected by networks that are measured."""

from __future__ import annotations

from dataclasses import replace

from lrexport.config.goals import Latency
from lrexport.errors import UsageError
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.truncation import Selection, Truncations
from lrexport.lowrank.selection.least_loss import layer_options, least_loss
from lrexport.lowrank.selection.predicted_latency import NetworkLatency
from lrexport.lowrank.selection.problem import Problem, Rule, check_rule
from lrexport.lowrank.selection.threshold import at_threshold, first_true, steps_of
from lrexport.units import format_ms, format_percent

_TRIES = 5
_CLOSE = 0.03  # a network this much faster than asked is left at that


def by_latency(goal: Latency, problem: Problem) -> Selection:
    """The plan of least loss that is measured to be as fast as asked, or predicted to be where nothing can be measured.

    Prediction is off by some percent, so the budget is corrected by networks that are really measured; of those that are
    fast enough the slowest is taken, where none is, the fastest, with a warning. Only what was asked leaves the network
    dense, never a budget that was corrected. Raises UsageError for a goal out of reach, and without times of the layers.
    """
    svd, latency, confirm = problem.svd, problem.latency, problem.confirm
    if latency is None:
        raise UsageError(
            "a goal of latency needs the times of layers on a target",
            "lrexport.compress measures them; select takes them as latency=.",
        )
    dense_ms = latency.dense_ms
    budget_ms = goal.budget_ms(dense_ms)
    if confirm is None:
        return within_latency(svd, problem.truncations, latency, budget_ms, problem.rule)
    asked = budget_ms / dense_ms
    budget, tries = asked, list[tuple[float, Selection]]()
    while len(tries) < _TRIES:
        try:
            selection = within_latency(svd, problem.truncations, latency, budget * dense_ms, problem.rule)
        except UsageError:
            if not tries:  # what was asked is out of reach, not a corrected budget
                raise
            break
        measured = confirm(selection)
        ratio = measured.ratio if goal.share is not None else measured.measured_ms / dense_ms
        tries.append((ratio, replace(selection, latency=measured)))
        if not selection.has_pairs or asked * (1 - _CLOSE) <= ratio <= asked:
            return tries[-1][1]
        # At 1 nothing would be pruned, which is not what was asked: half the way there at most.
        budget = min(budget * asked * (1 - _CLOSE / 2) / ratio, (1 + budget) / 2)
    fitting = [each for each in tries if each[0] <= asked]
    if fitting:
        return max(fitting, key=lambda each: each[0])[1]
    ratio, fastest = min(tries, key=lambda each: each[0])
    given = format_ms(goal.milliseconds) if goal.milliseconds is not None else f"{goal.share:g}"
    note = f"no plan was measured to be as fast as asked ({given}); this one takes {ratio:.3f} of the dense latency"
    return replace(fastest, warnings=(*fastest.warnings, note))


def within_latency(
    svd: SVDNetwork, truncated: Truncations, latency: NetworkLatency, budget_ms: float, rule: Rule = "global"
) -> Selection:
    """The plan that is predicted to take at most ``budget_ms`` milliseconds on the target.

    The dense network, with a warning, where no pair is faster than its layer. Raises UsageError with the least that can be
    reached.
    """
    check_rule(rule)
    options = {
        name: layer_options(truncated[name], latency.layers[name].dense_ms, latency.layers[name].gaining)
        for name in svd.layers
    }
    if all(len(choices) == 1 for choices in options.values()):
        dense = least_loss(svd, truncated, options, float("inf"))
        return replace(dense, warnings=(*dense.warnings, "no pair is faster than its layer on the target: all stay dense"))
    if latency.least_ms > budget_ms:
        raise UsageError(
            f"a latency of {format_ms(budget_ms)} is out of reach",
            f"The fastest plan is predicted to take {format_ms(latency.least_ms)}, "
            f"{format_percent(latency.least_ms / latency.dense_ms)} of the dense network's {format_ms(latency.dense_ms)}.",
        )
    if rule == "threshold":  # time falls as e rises, and at 1 every layer has its fastest pair: within the budget
        steps = steps_of(truncation for schemes in truncated.values() for truncation in schemes.values())

        def at(step: int) -> Selection:
            return at_threshold(svd, truncated, float(steps[step]), latency)

        return at(first_true(len(steps) - 1, lambda step: latency.of_plan(at(step).plan) <= budget_ms))
    selection = least_loss(svd, truncated, options, budget_ms - latency.other_ms)
    if selection.has_pairs:
        return selection
    asked = f"within the {format_ms(budget_ms)} asked for: nothing is pruned"
    met = f"the dense network takes {format_ms(latency.dense_ms)}, {asked}"
    return replace(selection, warnings=(*selection.warnings, met))

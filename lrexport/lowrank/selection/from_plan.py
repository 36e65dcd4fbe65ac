"""Apply the choices of a plan file to a network: check them against its layers, and compute the figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lrexport.errors import InputError
from lrexport.lowrank.eligibility.factorisable import Factorisable
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.moments import Moments, Schemes
from lrexport.lowrank.factors.truncation import Selection, truncations
from lrexport.lowrank.selection.costs import dense_layer, in_order, plan_layer
from lrexport.lowrank.selection.problem import Problem
from lrexport.plan import Choice, Pair, PairChoice, Plan
from lrexport.text import nearest
from lrexport.units import format_count


def schemes_in(svd: SVDNetwork, choices: Mapping[str, Choice], source: str = "the plan") -> Schemes:
    """The scheme that the choices give to each layer, none for dense ones. Raises InputError as :func:`check_choices`."""
    chosen = _by_layer(svd, choices, source)
    pairs = {name: chosen.get(name) for name in svd.layers}
    return {name: (pair.scheme,) if isinstance(pair, PairChoice) else () for name, pair in pairs.items()}


def with_choices(problem: Problem, choices: Mapping[str, Choice], source: str = "the plan") -> Problem:
    """The problem with the choices of a plan. Raises InputError as :func:`check_choices`."""
    return replace(problem, choices=choices, source=source, schemes=schemes_in(problem.svd, choices, source))


def plan_from_choices(
    svd: SVDNetwork, choices: Mapping[str, Choice], source: str = "the plan", moments: Moments | None = None
) -> Selection:
    """The plan with exactly these choices; other layers stay dense.

    ``moments`` weight the energy by the data. A pair that costs more than its layer is allowed, with a warning. Raises
    InputError as :func:`check_choices`.
    """
    chosen = _by_layer(svd, choices, source)
    truncated = truncations(svd, moments, schemes_in(svd, choices, source))
    plan = Plan()
    warnings = []
    for name, layer in svd.layers.items():
        choice = chosen.get(name)
        if not isinstance(choice, PairChoice):
            plan[name] = dense_layer(layer, "kept", "dense in the plan" if choice else "not in the plan")
            continue
        kept = 1 - float(truncated[name][choice.scheme].energy_dropped[choice.rank])
        plan[name] = pair = plan_layer(layer, choice.rank, kept, choice.scheme, even_if_costly=True)
        if isinstance(pair, Pair) and pair.macs >= layer.dense_macs:
            costs = f"costs {format_count(pair.macs)} MACs, the layer {format_count(layer.dense_macs)}"
            warnings.append(f"layer {name!r}: a {pair.scheme} pair of rank {pair.rank} {costs}")
    return Selection(in_order(svd, Plan({**svd.dense, **plan})), None, (*svd.notes, *warnings), truncated)


def check_choices(svd: SVDNetwork, choices: Mapping[str, Choice], source: str = "the plan") -> None:
    """Raise InputError, naming ``source`` and the layer, for a choice that is impossible in the network.

    These are an unknown layer, a layer that cannot be factorised, a scheme that the layer cannot have, and a rank above its
    full rank.
    """
    _by_layer(svd, choices, source)


def _by_layer(svd: SVDNetwork, choices: Mapping[str, Choice], source: str) -> dict[str, Choice]:
    """The choices by the first name of their layers."""
    first_names = {place: name for name, layer in svd.layers.items() for place in layer.names}
    chosen: dict[str, Choice] = {}
    for given, choice in choices.items():
        where = f"{source}: layer {given!r}"
        if given in first_names:
            name = first_names[given]
            if isinstance(choice, PairChoice):
                _check_pair(where, svd.layers[name], choice)
            if chosen.setdefault(name, choice) != choice:
                raise InputError(f"{where} shares its weight with {name!r}, which has another choice in the plan")
        elif given not in svd.dense:
            close = nearest(given, [*first_names, *svd.dense], 3)
            raise InputError(
                f"{source}: the network has no layer {given!r}", f"Close: {', '.join(close)}." if close else None
            )
        elif isinstance(choice, PairChoice):
            layer = svd.dense[given]
            hint = "Another --scheme may be cheaper." if layer.kind == "costly" else 'Write "dense", or leave it out.'
            raise InputError(f"{where} cannot be factorised: {layer.reason}", hint)
    return chosen


def _check_pair(where: str, layer: Factorisable, pair: PairChoice) -> None:
    if pair.scheme not in layer.schemes:
        known = ", ".join(f"{scheme} (full rank {facts.full_rank})" for scheme, facts in layer.schemes.items())
        kernel = "×".join(map(str, layer.shape))
        raise InputError(
            f"{where} cannot be {pair.scheme}: its weight is {kernel}",
            f"Possible schemes: {known}. Others give the same matrix, or cost more than the layer even at rank 1.",
        )
    full_rank = layer.schemes[pair.scheme].full_rank
    if pair.rank > full_rank:
        raise InputError(f"{where}: invalid rank {pair.rank}: expected at most {full_rank}, its full rank by {pair.scheme}")

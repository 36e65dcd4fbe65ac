"""The points that trials use: first spread evenly over the space, then chosen by Optuna's TPE.

TPE instead of NSGA-II: a trial takes minutes to hours, so a sweep has tens of them, and NSGA-II selects nothing before its
first generation of about fifty. With a single dimension all points are spread evenly, because the front is the dimension
itself; in a finite space no point is used twice.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler

from lrexport.sweep.space import DIGITS, Dimension, Numbers, Point, Value, points_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

_SPREAD = 10  # trials before TPE starts; Optuna's own number of random ones
_BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)  # more than the possible dimensions


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as an Optuna distribution."""
    domain = dimension.domain
    if not isinstance(domain, Numbers):
        return CategoricalDistribution(list(domain.options))
    if domain.whole:
        step = 1 if domain.log else round(domain.step or 1)
        return IntDistribution(round(domain.low), round(domain.high), log=domain.log, step=step)
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)


class Sampler(BaseSampler):
    """Draws a point from the seed, the trial's number and earlier trials, in any process alike."""

    def __init__(self, space: Sequence[Dimension], seed: int) -> None:
        self._space, self._seed = tuple(space), seed
        self._points = points_of(space)
        self._drawn: tuple[int, Point] = (-1, {})

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """One coordinate of the trial's point, which is drawn as a whole."""
        if self._drawn[0] != trial.number:
            self._drawn = (trial.number, self._draw(study, trial))
        return self._drawn[1][param_name]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Empty: points are drawn by sample_independent when the trial is claimed."""
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Nothing."""
        return {}

    def _draw(self, study: Study, trial: FrozenTrial) -> Point:
        spread = len(self._space) == 1 or trial.number < _SPREAD
        point = spread_point(self._space, trial.number, self._seed) if spread else self._by_tpe(study, trial)
        if self._points is None:
            return point
        taken = [other.params for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        free = [candidate for candidate in self._points if candidate not in taken]
        if point in free or not free:
            return point
        return random.Random(f"{self._seed} {trial.number}").choice(free)

    def _by_tpe(self, study: Study, trial: FrozenTrial) -> Point:
        tpe = TPESampler(seed=self._seed + trial.number, n_startup_trials=0, multivariate=True, constant_liar=True)
        names = {dimension.name: distribution(dimension) for dimension in self._space}
        point: dict[str, Value] = tpe.sample_relative(study, trial, names)
        for name, values in names.items():  # TPE omits dimensions without observations
            if name not in point:
                point[name] = tpe.sample_independent(study, trial, name, values)
        return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in point.items()}


def spread_point(space: Sequence[Dimension], index: int, seed: int) -> Point:
    """Point ``index`` of a sequence that covers the space evenly, however long it is (Halton 1960, shifted by ``seed``)."""
    point: Point = {}
    for dimension, base in zip(space, _BASES, strict=False):
        shift = random.Random(f"{seed} {dimension.name}").random() if len(space) > 1 else 0.5 / base
        point[dimension.name] = dimension.domain.at(math.modf(radical_inverse(index, base) + shift)[0])
    return point


def radical_inverse(index: int, base: int) -> float:
    """The digits of ``index`` in ``base``, reversed, after the point: 1, 2, 3, 4 → ½, ¼, ¾, ⅛ in base 2."""
    value, unit = 0.0, 1.0
    while index:
        unit /= base
        index, digit = divmod(index, base)
        value += digit * unit
    return value


def suggest(trial: Trial, dimension: Dimension) -> Value:
    """The trial's value of a dimension: the one it was queued with, or a new one."""
    name, domain = dimension.name, dimension.domain
    if not isinstance(domain, Numbers):
        value: Any = trial.suggest_categorical(name, list(domain.options))
    elif domain.whole:
        step = 1 if domain.log else round(domain.step or 1)
        value = trial.suggest_int(name, round(domain.low), round(domain.high), log=domain.log, step=step)
    else:
        value = trial.suggest_float(name, domain.low, domain.high, log=domain.log, step=domain.step)
    return value

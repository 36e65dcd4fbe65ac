"""The models of a check, the budgets that apply to each, and the sums of models that budgets limit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrexport.budget.limits import Budget
from lrexport.check.find_models import applies, find_models, models_of, name_of
from lrexport.errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Model:
    """A run or a file, its name in outputs and the baseline, and the budgets that apply to it alone."""

    name: str
    path: Path
    budgets: tuple[Budget, ...]


@dataclass(frozen=True)
class Sum:
    """A budget on all of ``paths`` together."""

    budget: Budget
    paths: tuple[Path, ...]

    @property
    def name(self) -> str:
        return f"sum of {self.budget.name}"


@dataclass(frozen=True)
class CheckedModels:
    """All models and sums of a check."""

    models: tuple[Model, ...]
    sums: tuple[Sum, ...]

    @property
    def budgets(self) -> list[Budget]:
        return [budget for model in self.models for budget in model.budgets] + [each.budget for each in self.sums]

    def budgets_by_path(self) -> dict[Path, list[Budget]]:
        """Every file or run to read, with all budgets that need it."""
        budgets: dict[Path, list[Budget]] = {model.path: list(model.budgets) for model in self.models if model.budgets}
        names = {os.path.abspath(path): path for path in budgets}
        for each in self.sums:
            for path in each.paths:
                budgets.setdefault(names.setdefault(os.path.abspath(path), path), []).append(each.budget)
        return budgets


def given(patterns: Sequence[str], budgets: Sequence[Budget], root: Path) -> CheckedModels:
    """The models named on the command line, relative to the current folder, with the budgets that apply to each.

    A sum with one of them as a part is over all of its parts. Raises UsageError if no budget applies to a model.
    """
    paths = {os.path.abspath(path): path for pattern in patterns for path in find_models(pattern, Path())}
    models: list[Model] = []
    sums: dict[str, Sum] = {}
    for path in paths.values():
        about = [budget for budget in budgets if applies(budget, path, root)]
        if not about:
            known = ", ".join(sorted({pattern for budget in budgets for pattern in budget.paths}))
            raise UsageError(
                f"no budget applies to {path}", f"Budgets exist for {known}; a budget without path applies to all models."
            )
        for budget in about:
            if budget.is_sum and budget.place not in sums:
                every = [each for each in paths.values() if applies(budget, each, root)]
                sums[budget.place] = Sum(budget, tuple(models_of(budget, root) if budget.paths else every))
        models.append(Model(name_of(path, root), path, tuple(budget for budget in about if not budget.is_sum)))
    return CheckedModels(tuple(model for model in models if model.budgets), tuple(sums.values()))


def budgeted(budgets: Iterable[Budget], root: Path) -> CheckedModels:
    """The models named in budgets. Raises UsageError for a budget without path."""
    by_place: dict[str, tuple[Path, list[Budget]]] = {}
    sums = []
    for budget in budgets:
        if not budget.paths:
            raise UsageError(
                f"{budget.place}: the budget {budget.name!r} has no path",
                'Add one, for example path = "run", or name the models: lrexport check RUN.',
            )
        paths = models_of(budget, root)
        if budget.is_sum:
            sums.append(Sum(budget, tuple(paths)))
            continue
        for path in paths:
            by_place.setdefault(os.path.abspath(path), (path, []))[1].append(budget)
    models = [Model(name_of(path, root), path, tuple(about)) for path, about in by_place.values()]
    return CheckedModels(tuple(models), tuple(sums))


def shapes_of(path: Path, budgets: Iterable[Budget]) -> dict[str, tuple[int, ...]]:
    """The input sizes at which a model is counted for all of its budgets. Raises UsageError if two differ."""
    shapes: dict[str, tuple[tuple[int, ...], Budget]] = {}
    for budget in budgets:
        for name, shape in budget.shapes.items():
            other, first = shapes.setdefault(name, (shape, budget))
            if other != shape:
                raise UsageError(
                    f"{budget.place}: shapes of {name!r} differ for {path}: {list(shape)} in the budget {budget.name!r}, "
                    f"{list(other)} in {first.name!r}",
                    "A model is counted at one size: use the same in both budgets, or exclude it from one.",
                )
    return {name: shape for name, (shape, _) in shapes.items()}

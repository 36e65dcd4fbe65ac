"""The check itself: which models, against which budgets and which baseline, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lrexport.artifacts.toml_files import BUDGET, LREXPORT, PYPROJECT, Settings
from lrexport.budget import baseline as baselines
from lrexport.budget.facts import Facts
from lrexport.budget.limits import Budget, read_budgets
from lrexport.budget.quantities import Subject
from lrexport.budget.report import Checked, Report
from lrexport.budget.verdicts import judge
from lrexport.checking.find import applies, find_models, is_model, name_of
from lrexport.checking.latencies import with_latencies
from lrexport.checking.look import Looked, look
from lrexport.errors import UsageError


@dataclass(frozen=True)
class Choices:
    """How to check. ``baseline`` is a baseline file or a run, ``latencies`` what ``lrexport bench --json`` wrote."""

    baseline: Path | None = None
    update_baseline: bool = False
    any_machine: bool = False
    strict: bool = False
    latencies: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Model:
    name: str
    path: Path
    budgets: tuple[Budget, ...]

    @property
    def needs_gzip(self) -> bool:
        return any(budget.needs_gzip for budget in self.budgets)


def check_settings(patterns: Sequence[str], settings: Settings, choices: Choices) -> Report:
    """Check models against the budgets of a configuration, whose folder their paths are relative to.

    Raises UsageError where that has no budget, a pattern matches nothing, a budget has nothing to check, or a baseline is
    needed and there is none; InputError for files that are not what they have to be.
    """
    budgets = read_budgets(settings)
    if not budgets:
        where = settings.path or f"{PYPROJECT} or {LREXPORT}, of which there is neither here"
        raise UsageError(f"no budget in {where}", f'Write one: [tool.lrexport.{BUDGET}], then max_bytes = "500 KB".')
    return check(patterns, budgets, _root(settings), choices)


def baseline_path(settings: Settings, choices: Choices) -> Path:
    """The file that growth is measured against, and that ``update_baseline`` writes."""
    return _baseline_path(_root(settings), choices)


def _baseline_path(root: Path, choices: Choices) -> Path:
    return choices.baseline or root / baselines.FILE


def _root(settings: Settings) -> Path:
    return settings.path.parent if settings.path else Path()


def check(patterns: Sequence[str], budgets: Sequence[Budget], root: Path, choices: Choices) -> Report:
    """Check the models that ``patterns`` name, or else those that the budgets do. Raises as :func:`check_settings`."""
    models = _given(patterns, budgets, root) if patterns else _budgeted(budgets, root)
    before = _baseline(models, root, choices)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each thread waits for a process of its own
        looks = list(pool.map(lambda model: _look(model, root, choices), models))
    if choices.update_baseline:
        # Against what it is about to become nothing has grown; limits of other kinds still hold.
        before |= {model.name: looked[0].facts for model, looked in zip(models, looks, strict=True)}
        baselines.write_baseline(_baseline_path(root, choices), before)
    checked = [_judge(model, looked, before, choices) for model, looked in zip(models, looks, strict=True)]
    return Report(tuple(checked))


def _given(patterns: Sequence[str], budgets: Sequence[Budget], root: Path) -> list[_Model]:
    """The models of the command line, relative to the current folder, each with the budgets that are about it."""
    paths = {os.path.abspath(path): path for pattern in patterns for path in find_models(pattern, Path())}
    models = []
    for path in paths.values():
        own = tuple(budget for budget in budgets if applies(budget, path, root))
        if not own:
            known = ", ".join(sorted({pattern for budget in budgets for pattern in budget.paths}))
            raise UsageError(f"no budget is about {path}", f"There are budgets for {known}; one without path is for all.")
        models.append(_Model(name_of(path, root), path, own))
    return models


def _budgeted(budgets: Sequence[Budget], root: Path) -> list[_Model]:
    """The models that the budgets name, each with its budgets."""
    found: dict[str, tuple[Path, list[Budget]]] = {}
    for budget in budgets:
        if not budget.paths:
            raise UsageError(
                f"{budget.place}: the budget {budget.name!r} names no model",
                'Give it one, as in path = "run", or name the models: lrexport check RUN.',
            )
        for pattern in budget.paths:
            try:
                paths = find_models(pattern, root)
            except UsageError as error:
                raise UsageError(f"{budget.place}: the budget {budget.name!r}: {error.message}", error.hint) from error
            for path in paths:
                own = found.setdefault(os.path.abspath(path), (path, []))[1]
                own += [budget] if budget not in own else []
    return [_Model(name_of(path, root), path, tuple(own)) for path, own in found.values()]


def _baseline(models: Sequence[_Model], root: Path, choices: Choices) -> dict[str, Facts]:
    """Figures of the baseline by model; empty where none is needed."""
    path = _baseline_path(root, choices)
    if is_model(path):
        if choices.update_baseline:
            raise UsageError(f"{path} is no file that --update-baseline writes", "Give another, or no --baseline.")
        if len(models) > 1:
            raise UsageError(f"{path} is the baseline of one model, and these are {len(models)}", "Give a baseline file.")
        return {model.name: look(path, model.needs_gzip).facts for model in models}
    if path.is_file():
        return baselines.read_baseline(path)
    if choices.update_baseline:
        return {}
    needing = next((budget for model in models for budget in model.budgets if budget.needs_baseline), None)
    if needing is None and choices.baseline is None:
        return {}
    what = f"the budget {needing.name!r} limits growth: " if needing else ""
    hint = "--update-baseline writes it from the models as they are; --baseline takes another file, or a run."
    raise UsageError(f"{what}there is no baseline {path}", hint)


def _look(model: _Model, root: Path, choices: Choices) -> list[Looked]:
    """What is known of a model for each of its budgets, which may name different dense networks."""
    looks: dict[str | None, Looked] = {}
    for budget in model.budgets:
        if budget.dense not in looks:
            dense = find_models(budget.dense, root)[0] if budget.dense else None
            looks[budget.dense] = with_latencies(look(model.path, model.needs_gzip, dense), choices.latencies)
    return [looks[budget.dense] for budget in model.budgets]


def _judge(model: _Model, looks: Sequence[Looked], before: dict[str, Facts], choices: Choices) -> Checked:
    verdicts = []
    for budget, looked in zip(model.budgets, looks, strict=True):
        subject = Subject(looked.facts, looked.dense, before.get(model.name), choices.any_machine)
        verdicts += judge(budget, subject, choices.strict)
    return Checked(model.name, looks[0].facts, tuple(verdicts))

"""The check itself: models against budgets and a baseline, with a report of the verdicts.

A file that cannot be read is named in the report; other models are still judged and all outputs written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lrexport.artifacts.children import threads_with_children
from lrexport.artifacts.toml_files import BUDGET, LREXPORT, PYPROJECT, Settings
from lrexport.budget import baseline as baselines
from lrexport.budget.check_report import Checked, Report
from lrexport.budget.facts import Facts, Unreadable
from lrexport.budget.limits import Budget, read_budgets
from lrexport.budget.quantities import Comparison
from lrexport.budget.verdicts import Status, judge, unjudged
from lrexport.check.checked_models import CheckedModels, Model, Sum, budgeted, given, shapes_of
from lrexport.check.find_models import find_models, is_model, name_of
from lrexport.check.gather_facts import Gathered, How, gather_facts
from lrexport.check.sums import added
from lrexport.errors import InputError, UsageError

if TYPE_CHECKING:
    from lrexport.check.bench_files import Bench

Baseline = dict[str, Facts | Unreadable]
# A model's facts, or why it could not be read.
Outcome = Gathered | InputError | UsageError


@dataclass(frozen=True)
class CheckOptions:
    """How to check. ``baseline`` is a baseline file or a run, ``latencies`` are outputs of ``lrexport bench --json``."""

    baseline: Path | None = None
    update_baseline: bool = False
    any_machine: bool = False
    strict: bool = False
    latencies: tuple[Path, ...] = ()


def check_settings(patterns: Sequence[str], settings: Settings, choices: CheckOptions) -> Report:
    """Check models against the budgets of a configuration; its paths are relative to its folder.

    Raises UsageError if it has no budget, a pattern matches nothing, a budget has nothing to check, or a required baseline
    is missing; InputError for invalid measurements.
    """
    budgets = read_budgets(settings)
    if not budgets:
        where = settings.path or f"{PYPROJECT} or {LREXPORT}: neither exists here"
        raise UsageError(f"no budget in {where}", f'Add one: [tool.lrexport.{BUDGET}], then max_bytes = "500 KB".')
    return check(patterns, budgets, _root(settings), choices)


def baseline_path(settings: Settings, choices: CheckOptions) -> Path:
    """The baseline file, which ``update_baseline`` writes."""
    return _baseline_path(_root(settings), choices)


def _baseline_path(root: Path, choices: CheckOptions) -> Path:
    return choices.baseline or root / baselines.FILE


def _root(settings: Settings) -> Path:
    return settings.path.parent if settings.path else Path()


def check(patterns: Sequence[str], budgets: Sequence[Budget], root: Path, choices: CheckOptions) -> Report:
    """Check the models named by ``patterns``, or else by the budgets. Raises as :func:`check_settings`."""
    subjects = given(patterns, budgets, root) if patterns else budgeted(budgets, root)
    looks = _Gathering(subjects, root, _benches(choices.latencies))
    before, damage = _baseline(subjects, root, choices)
    looks.run()
    if choices.update_baseline:
        # A new baseline has no growth against itself; other limits still apply.
        before |= looks.facts()
        baselines.write_baseline(_baseline_path(root, choices), before)
    checked = [_judge_model(model, looks, before, choices) for model in subjects.models]
    checked += [_judge_sum(each, looks, before, choices) for each in subjects.sums]
    return Report((*checked, *damage))


class _Gathering:
    """Reads each file once for every dense network that its budgets name, in parallel."""

    def __init__(self, subjects: CheckedModels, root: Path, measured: Sequence[Bench]) -> None:
        """Raises UsageError if budgets contradict one another or name a dense network that does not exist."""
        self._subjects, self._measured = subjects, measured
        self._root = root
        self._how: dict[Path, How] = {}
        self._dense: dict[tuple[Path, str | None], Path | None] = {}
        self._outcomes: dict[tuple[Path, str | None], Outcome] = {}
        self._totals: dict[str, Facts | InputError | UsageError] = {}
        for path, budgets in subjects.budgets_by_path().items():
            self._how[path] = How(any(budget.needs_gzip for budget in budgets), shapes_of(path, budgets))
            for budget in budgets:
                self._dense[path, budget.dense] = find_models(budget.dense, root)[0] if budget.dense else None

    def run(self) -> None:
        with threads_with_children(os.cpu_count()) as pool:  # each thread waits for a child process
            self._outcomes = dict(zip(self._dense, pool.map(self._look, self._dense), strict=True))

    def _look(self, key: tuple[Path, str | None]) -> Outcome:
        path, how = key[0], self._how[key[0]]
        try:
            looked = gather_facts(path, how, self._dense[key])
            if not self._measured:
                return looked
            from lrexport.check.bench_files import with_latencies

            return with_latencies(looked, self._measured, how.shapes)
        except (InputError, UsageError) as error:
            return error
        except OSError as error:
            return InputError(f"cannot read {error.filename or path}: {error.strerror}")

    def of(self, path: Path, budget: Budget) -> Outcome:
        """A model's facts, with the dense network of one of its budgets."""
        return self._outcomes[path, budget.dense]

    def total(self, each: Sum) -> Facts | InputError | UsageError:
        """The facts about a sum, or why one of its parts could not be read."""
        if each.name not in self._totals:  # once: it may compress all files
            self._totals[each.name] = self._added(each)
        return self._totals[each.name]

    def _added(self, each: Sum) -> Facts | InputError | UsageError:
        parts: dict[str, Gathered] = {}
        for path in each.paths:
            outcome = self.of(path, each.budget)
            if not isinstance(outcome, Gathered):
                return outcome
            parts[name_of(path, self._root)] = outcome
        return added(parts, each.budget.needs_gzip)

    def facts(self) -> dict[str, Facts]:
        """Facts by name of every model and sum that could be read."""
        models = {model.name: self.of(model.path, model.budgets[0]) for model in self._subjects.models}
        gathered = {name: outcome.facts for name, outcome in models.items() if isinstance(outcome, Gathered)}
        totals = {each.name: self.total(each) for each in self._subjects.sums}
        return gathered | {name: total for name, total in totals.items() if isinstance(total, Facts)}


def _benches(paths: Sequence[Path]) -> list[Bench]:
    """Outputs of ``lrexport bench``. Their reader is imported only if there are any, for a fast start."""
    if not paths:
        return []
    from lrexport.check.bench_files import read_benches

    return [bench for path in paths for bench in read_benches(path)]


def _baseline(subjects: CheckedModels, root: Path, choices: CheckOptions) -> tuple[Baseline, list[Checked]]:
    """The baseline's figures by model, if a budget needs them; and an entry for the baseline itself if it is damaged."""
    path, models = _baseline_path(root, choices), subjects.models
    if is_model(path):
        if choices.update_baseline:
            raise UsageError(
                f"--update-baseline cannot write {path}, which is a model", "Give another file, or omit --baseline."
            )
        if len(models) + len(subjects.sums) > 1:
            number = len(models) + len(subjects.sums)
            raise UsageError(f"{path} is a baseline for one model, but {number} are checked", "Give a baseline file.")
        return {model.name: _look_at_baseline(path, model) for model in models}, []
    if path.is_file():
        try:
            return baselines.read_baseline(path), []
        except InputError as error:
            if choices.update_baseline:
                raise
            why = _why(error)
            names = [*(model.name for model in models), *(each.name for each in subjects.sums)]
            verdicts = unjudged(subjects.budgets[0], "bad input", why)
            return dict.fromkeys(names, Unreadable(why)), [Checked(name_of(path, root), Facts(), tuple(verdicts))]
    if choices.update_baseline:
        return {}, []
    needing = next((budget for budget in subjects.budgets if budget.needs_baseline), None)
    if needing is None and choices.baseline is None:
        return {}, []
    what = f"the budget {needing.name!r} limits growth: " if needing else ""
    hint = "Write it from the current models with --update-baseline, or give another file or a run with --baseline."
    raise UsageError(f"{what}the baseline {path} does not exist", hint)


def _look_at_baseline(path: Path, model: Model) -> Facts | Unreadable:
    how = How(any(budget.needs_gzip for budget in model.budgets), shapes_of(path, model.budgets))
    try:
        return gather_facts(path, how).facts
    except InputError as error:
        return Unreadable(_why(error))


def _why(error: InputError | UsageError) -> str:
    return f"{error.message}. {error.hint}" if error.hint else error.message


def _judge_model(
    model: Model, looks: _Gathering, before: Mapping[str, Facts | Unreadable], choices: CheckOptions
) -> Checked:
    verdicts, facts, notes = [], None, tuple[str, ...]()
    for budget in model.budgets:
        outcome = looks.of(model.path, budget)
        if isinstance(outcome, Gathered):
            facts, notes = facts or outcome.facts, outcome.notes
            baseline = before.get(model.name)
            subject = Comparison(outcome.facts, outcome.dense, baseline, choices.any_machine, outcome.gaps)
            verdicts += judge(budget, subject, choices.strict)
        else:
            verdicts += unjudged(budget, _status(outcome), _why(outcome))
    return Checked(model.name, facts or Facts(), tuple(verdicts), notes)


def _judge_sum(each: Sum, looks: _Gathering, before: Mapping[str, Facts | Unreadable], choices: CheckOptions) -> Checked:
    total = looks.total(each)
    if isinstance(total, Facts):
        verdicts = judge(each.budget, Comparison(total, baseline=before.get(each.name)), choices.strict)
        return Checked(each.name, total, tuple(verdicts))
    return Checked(each.name, Facts(), tuple(unjudged(each.budget, _status(total), _why(total))))


def _status(error: InputError | UsageError) -> Status:
    return "bad input" if isinstance(error, InputError) else "not measured"

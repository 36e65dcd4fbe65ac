"""All verdicts of one check, and the exit code that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lrexport.budget.facts import Facts
from lrexport.budget.verdicts import Status, Verdict
from lrexport.text import number_of

# The worst first: outputs that are cut to a size keep what matters.
ORDER: tuple[Status, ...] = ("bad input", "failed", "not measured", "inconclusive", "warning", "passed")

_COUNTED: dict[Status, str] = {"bad input": "unreadable", "warning": "only warned"}


@dataclass(frozen=True)
class Checked:
    """A model, its figures, and a verdict for every limit of every budget that applies to it.

    ``notes`` tell readers of the figures what to know about the file.
    """

    model: str
    facts: Facts
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The result of ``lrexport check``."""

    models: tuple[Checked, ...]

    @property
    def counts(self) -> dict[Status, int]:
        statuses = [verdict.status for _, verdict in self.rows()]
        return {status: statuses.count(status) for status in ORDER}

    @property
    def exit_code(self) -> int:
        """3 if a file could not be read, else 1 if a limit failed, else 2 if one was not measured, else 0."""
        counts = self.counts
        if counts["bad input"]:
            return 3
        if counts["failed"]:
            return 1
        return 2 if counts["not measured"] else 0

    @property
    def notes(self) -> list[str]:
        """Notes about files, each with the file's name."""
        return [f"{checked.model}: {note}" for checked in self.models for note in checked.notes]

    @property
    def damage(self) -> list[str]:
        """Why files could not be read, each once."""
        return list(dict.fromkeys(verdict.note for _, verdict in self.rows() if verdict.status == "bad input"))

    def rows(self) -> Iterator[tuple[Checked, Verdict]]:
        """Verdicts with their models, the worst first."""
        pairs = [(checked, verdict) for checked in self.models for verdict in checked.verdicts]
        yield from sorted(pairs, key=lambda pair: ORDER.index(pair[1].status))

    def summary(self) -> str:
        """``"2 of 9 limits failed, 1 inconclusive"``."""
        counts = self.counts
        total = sum(counts.values())
        if counts["passed"] == total:
            return f"all {total} limits met" if total > 1 else "the limit is met"
        worst, *others = (status for status in ORDER if counts[status] and status != "passed")
        first = f"{counts[worst]} of {number_of(total, 'limit')} {_COUNTED.get(worst, worst)}"
        return ", ".join([first, *(f"{counts[status]} {_COUNTED.get(status, status)}" for status in others)])

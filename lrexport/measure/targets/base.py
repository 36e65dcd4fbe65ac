"""What every target does: run one measuring job of the runner and yield its answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lrexport.errors import DeviceError

RUNNER = Path(__file__).parents[1] / "runner.py"


@dataclass(frozen=True)
class Job:
    """Groups of files that are measured together, {name: path} each, and how.

    ``rounds`` samples of at least ``sample_ms`` each; with ``group_seconds`` as many rounds as fit in that time, at least
    ``least_rounds``. ``cold`` also loads each file in a process of its own, ``profile`` tells time by operator.
    """

    groups: Sequence[dict[str, Path]]
    rounds: int = 50
    threads: int = 1
    batch: int = 1
    seed: int = 0
    sample_ms: float = 0.3
    warmup_runs: int = 10
    group_seconds: float | None = None
    least_rounds: int = 7
    cold: bool = False
    profile: bool = False

    def paths(self) -> list[Path]:
        """Every file once, in order; its place in this list is the number by which a target may name it."""
        return list(dict.fromkeys(path for group in self.groups for path in group.values()))

    def to_json(self, names: dict[Path, str]) -> dict[str, Any]:
        """What runner.py reads, with the files under the names that the target gave them."""
        options = {name: value for name, value in vars(self).items() if name != "groups"}
        groups = [[{"name": name, "file": names[path]} for name, path in group.items()] for group in self.groups]
        return {**options, "groups": groups}


class Target(Protocol):
    """A place that runs jobs. ``name`` is how records and tables call it."""

    @property
    def name(self) -> str: ...

    def run(self, job: Job) -> Iterator[dict[str, Any]]:
        """The runner's answers, one by one as they come. Raises DeviceError where the target or the runtime fails."""
        ...

    def environment(self) -> dict[str, Any]:
        """The machine: processor, instruction sets, cores, system, runtime."""
        ...


def answers(lines: Iterable[str], target: str, last_words: Callable[[], str]) -> Iterator[dict[str, Any]]:
    """The runner's answers up to the last. Raises DeviceError for an error among them, or where they end too early."""
    finished = False
    for line in lines:
        answer = json.loads(line)
        if "error" in answer:
            raise DeviceError(f"{target} could not measure: {answer['error']}")
        finished = "done" in answer
        yield answer
    if not finished:
        raise DeviceError(f"{target} stopped in the middle of a measurement: {last_words() or 'without a word'}")

"""Scores of networks as run.json has them: top-1 and top-5 of classification, or the metrics of another task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from lrexport.config.task_names import CLASSIFICATION
from lrexport.metric import TOP1, TOP5, Metric
from lrexport.stored import Stored


class _Scored(Stored):
    """What all scores have; the first metric of a task decides."""

    @property
    def metrics_of(self) -> tuple[tuple[Metric, float], ...]:
        """Each metric with its value."""
        raise NotImplementedError

    @property
    def metric(self) -> Metric:
        """The metric that decides."""
        return self.metrics_of[0][0]

    @property
    def primary(self) -> float:
        """The value that decides."""
        return self.metrics_of[0][1]

    def value_of(self, metric: Metric) -> float | None:
        """The value of a metric; None if this score does not have it."""
        return next((value for each, value in self.metrics_of if each == metric), None)


class Accuracy(_Scored):
    """The score of classification: shares in [0, 1] over ``n`` images of ``split``."""

    top1: float
    top5: float
    n: int
    split: str

    @property
    def task(self) -> str:
        """Name of the task."""
        return CLASSIFICATION

    @property
    def metrics_of(self) -> tuple[tuple[Metric, float], ...]:
        return (TOP1, self.top1), (TOP5, self.top5)


class TaskScore(_Scored):
    """The score of another ``task`` over ``n`` samples of ``split``: ``metrics`` by name, the first decides.

    ``units`` has those that have one, ``smaller_is_better`` the metrics of that direction.
    """

    task: str
    metrics: dict[str, float] = Field(min_length=1)
    n: int
    split: str
    units: dict[str, str] = Field(default={})
    smaller_is_better: tuple[str, ...] = ()

    @property
    def metrics_of(self) -> tuple[tuple[Metric, float], ...]:
        return tuple(
            (Metric(name, self.units.get(name, ""), name not in self.smaller_is_better), value)
            for name, value in self.metrics.items()
        )


Score = Accuracy | TaskScore


def make_score(task: str, metrics: Sequence[Metric], values: Mapping[str, float], n: int, split: str) -> Score:
    """The score of a task from the value of each of its metrics."""
    if task == CLASSIFICATION:
        return Accuracy(top1=values[TOP1.name], top5=values[TOP5.name], n=n, split=split)
    return TaskScore(
        task=task,
        metrics={metric.name: values[metric.name] for metric in metrics},
        n=n,
        split=split,
        units={metric.name: metric.unit for metric in metrics if metric.unit},
        smaller_is_better=tuple(metric.name for metric in metrics if not metric.higher_is_better),
    )

"""The request of a sweep: a compression with varied options, and the cost to trade against accuracy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lrexport.artifacts.run_files import DENSE, SVD
from lrexport.config.comparison import decisive, settled, used_up_to
from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.goals import Goal, goal_of, values_of
from lrexport.errors import UsageError
from lrexport.runs.record import Record, load_record
from lrexport.runs.sweep_record import Objective
from lrexport.sweep.space import GOALS, Dimension, Point, parse_space, size_of
from lrexport.text import option_name

DEFAULT_SPACE = "macs=0.2..0.8"
_TRAIN = {field.name for field in fields(TrainConfig)}


@dataclass(frozen=True)
class SweepRequest:
    """A sweep. ``train`` and ``others``, more fields of CompressConfig, apply to every trial unless ``space`` varies them.

    ``goal`` is None if it is varied. ``trials`` is the number over all processes; ``source`` is the run that all trials
    continue from, if MODEL is a run.
    """

    train: TrainConfig
    goal: Goal | None
    others: Mapping[str, Any]
    space: tuple[Dimension, ...]
    objective: Objective
    trials: int
    source: Path | None = None

    @property
    def trial_count(self) -> int:
        """Number of trials, at most the number of points in the space."""
        count = size_of(self.space)
        return self.trials if count is None else min(self.trials, count)

    def config(self, point: Point) -> CompressConfig:
        """The compression at a point of the space."""
        goal = {name: value for name, value in point.items() if name in GOALS}
        train = {name: value for name, value in point.items() if name in _TRAIN}
        others = {name: value for name, value in point.items() if name not in goal and name not in train}
        chosen = goal_of(goal) if goal else self.goal
        assert chosen is not None
        config = replace(self.train, **train)  # type: ignore[arg-type]
        return CompressConfig(train=config, goal=chosen, **{**self.others, **others})

    def made_with(self) -> dict[str, Any]:
        """Everything that must be the same when a sweep is resumed, for JSON."""
        train = decisive(self.train.to_record())
        given = values_of(self.goal) if self.goal else {}
        made = {**train, **self.others, "objective": self.objective, "space": sorted(map(str, self.space))}
        made |= {"goal": given} | self._fingerprint()
        value: dict[str, Any] = json.loads(json.dumps(made))
        return value

    def dense_digest(self) -> str:
        """Name of the dense training shared by all trials."""
        names = used_up_to("dense")
        return self._digest({name: value for name, value in self.train.to_record().items() if name in names})

    def svd_digest(self, config: TrainConfig) -> str:
        """Name of the SVD training shared by all trials with these options."""
        return self._digest(config.to_record())

    def _digest(self, choices: dict[str, Any]) -> str:
        compared = decisive(choices) | self._fingerprint()
        return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:8]

    def _fingerprint(self) -> dict[str, str]:
        """Digests of the initial weights that come from files."""
        if self.source is not None:
            return {"start_sha256": start_of(load_record(self.source))[1]}
        return self.train.digests()


def start_of(record: Record) -> tuple[str, str]:
    """The file of the run that trials continue from, and its sha256."""
    name = SVD if SVD in record.files else DENSE
    return name, record.files[name].sha256


def make_request(
    train: TrainConfig,
    goal: Goal | None,
    others: Mapping[str, Any],
    vary: tuple[str, ...],
    objective: Objective,
    trials: int,
    source: Path | None = None,
) -> SweepRequest:
    """A consistent request. Raises UsageError if it is contradictory, lacks data, or varies an option fixed by the run.

    Without a goal, the share of the MACs is varied.
    """
    space = parse_space(vary)
    varied = next((dimension.name for dimension in space if dimension.name in GOALS), None)
    if varied is not None and goal is not None:
        raise UsageError(f"--vary {option_name(varied)} and a goal are mutually exclusive", "Omit one of the two.")
    if varied is None and goal is None:
        space = (*parse_space([DEFAULT_SPACE]), *space)
    record = load_record(source) if source is not None else None
    if record is not None:
        behind = settled(svd_trained=SVD in record.files)
        for dimension in space:
            if dimension.name in behind:
                flag = option_name(dimension.name)
                raise UsageError(
                    f"--vary {flag}: {source} has already finished that stage", "Sweep the model itself to vary it."
                )
    if train.data is None and (record is None or record.data is None):
        hint = "Give the images: trials are ranked by accuracy on held-out training images."
        raise UsageError("lrexport sweep requires --data", hint)
    if train.devices * train.nodes > 1:
        hint = "Start the same command once for each device, with CUDA_VISIBLE_DEVICES=0, 1 and so on: they share the work."
        raise UsageError("lrexport sweep trains each trial on one device", hint)
    names = [dimension.name for dimension in space]
    trained_here = source is None and (train.svd_epochs or "svd_epochs" in names)
    if trained_here and train.sparsity_strength == "auto" and "sparsity_strength" not in names:
        hint = "Give --sparsity-strength X, or vary it."
        raise UsageError("--sparsity-strength auto adapts λ_s to one budget, but trials share SVD training", hint)
    if trained_here and train.sparsity == "path":
        hint = "Give --sparsity hoyer, l1 or none."
        raise UsageError("--sparsity path goes towards one budget, but trials share SVD training", hint)
    chosen = dict(others)
    if objective == "latency":
        chosen["target"] = chosen.get("target") or "local"  # for ranks on its grain, and to measure every trial
    return SweepRequest(train, goal, chosen, space, objective, trials, source)

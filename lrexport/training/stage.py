"""The settings of a stage of training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lrexport.training.optimizers import Optimizer
from lrexport.training.schedules import Schedule, learning_rate


@dataclass(frozen=True)
class Stage:
    """The settings of one stage. ``weight_decay`` acts on ordinary weights, never on U, s, V.

    A step has ``batch_size`` images, of all processes together, in ``accumulate`` portions. ``milestones`` are shares of
    the stage. ``checkpoint_minutes`` is the longest time between two checkpoints; there is also one after every epoch.
    """

    name: str
    epochs: int
    lr: float
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    scale_gradients: bool = True
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = ()
    warmup_epochs: float = 0.0
    distill: float = 0.0
    temperature: float = 4.0
    keep_best: bool = True
    seed: int = 0
    accumulate: int = 1
    compile: bool = False
    checkpoint_minutes: float = math.inf

    def rate(self, progress: float) -> float:
        """The learning rate at ``progress`` in [0, 1] of the stage."""
        warmup = self.warmup_epochs / self.epochs
        return learning_rate(self.lr, self.schedule, progress, warmup, self.milestones)

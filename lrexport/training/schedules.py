"""Learning rates: linear warm-up, then cosine or steps; functions of the progress, so no state has to be saved."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "step"]


def learning_rate(
    base: float,
    schedule: Schedule,
    progress: float,
    warmup: float = 0.0,
    milestones: tuple[float, ...] = (),
) -> float:
    """The rate at ``progress`` in [0, 1] of a stage. In the first share ``warmup`` it rises linearly to ``base``.

    With "step" it is divided by ten at each of ``milestones``, shares of the stage; TrainConfig has their default.
    """
    if progress < warmup:
        return base * max(progress / warmup, 0.01)
    if schedule == "step":
        return float(base * 0.1 ** sum(progress >= milestone for milestone in milestones))
    done = (progress - warmup) / max(1 - warmup, 1e-12)
    return base * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

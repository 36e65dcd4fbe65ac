"""Statistics of repeated measurements: percentiles and interleaved ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Percentiles, in the samples' unit; ``iqr`` is p75 − p25."""

    p25: float
    p50: float
    p75: float
    p90: float
    p99: float

    @property
    def iqr(self) -> float:
        return self.p75 - self.p25


def spread(samples: Sequence[float]) -> Spread:
    """Percentiles by linear interpolation (numpy's default)."""
    return Spread(*(float(value) for value in np.percentile(samples, (25, 50, 75, 90, 99))))

"""Times of layers and their pairs on a target, in milliseconds, and the latency that they predict for a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lrexport.plan import Pair, Plan, Scheme


@dataclass(frozen=True)
class LayerLatency:
    """The time of one layer's calls together: dense, and as pairs, by scheme and measured rank."""

    dense_ms: float
    pairs: Mapping[Scheme, Mapping[int, float]]

    @cached_property
    def gaining(self) -> dict[Scheme, dict[int, float]]:
        """The pairs that are faster than the layer and than all pairs of the same scheme with higher rank, by rising rank.

        These ranks are the target's grain: other ranks can be rounded up to one of them without more time.
        """
        gaining: dict[Scheme, dict[int, float]] = {}
        for scheme, times in self.pairs.items():
            least, kept = self.dense_ms, {}
            for rank in sorted(times, reverse=True):
                if times[rank] < least:
                    least = kept[rank] = times[rank]
            if kept:
                gaining[scheme] = dict(reversed(kept.items()))
        return gaining

    def scaled(self, factor: float) -> LayerLatency:
        """All times multiplied by ``factor``."""
        pairs = {scheme: {rank: factor * ms for rank, ms in times.items()} for scheme, times in self.pairs.items()}
        return LayerLatency(factor * self.dense_ms, pairs)

    def round_up(self, scheme: Scheme, rank: int) -> int | None:
        """The fastest rank of at least ``rank``; None if no such pair is faster than the layer."""
        return next((higher for higher in self.gaining.get(scheme, {}) if higher >= rank), None)


@dataclass(frozen=True)
class NetworkLatency:
    """The measured time of the dense network on a target, and the times of its layers."""

    dense_ms: float
    layers: Mapping[str, LayerLatency]

    @property
    def other_ms(self) -> float:
        """The time of the dense network outside of these layers, which is the same for all plans."""
        return self.dense_ms - sum(layer.dense_ms for layer in self.layers.values())

    @property
    def least_ms(self) -> float:
        """The predicted time of the fastest plan."""
        layers = self.layers.values()
        every = ([layer.dense_ms, *(ms for ranks in layer.gaining.values() for ms in ranks.values())] for layer in layers)
        return self.other_ms + sum(map(min, every))

    def of_plan(self, plan: Plan) -> float:
        """The predicted time of the folded network."""
        return self.other_ms + sum(self._of_layer(layer, plan.get(name)) for name, layer in self.layers.items())

    def _of_layer(self, layer: LayerLatency, planned: object) -> float:
        """The time of a planned layer: interpolated linearly between measured ranks, proportional outside of them."""
        if not isinstance(planned, Pair):
            return layer.dense_ms
        times = layer.pairs.get(planned.scheme, {})
        if not times:
            return layer.dense_ms
        rank = planned.rank
        if rank in times:
            return times[rank]
        below, above = (max((r for r in times if r < rank), default=None), min((r for r in times if r > rank), default=None))
        if below is None or above is None:
            nearest = below or above or rank
            return times[nearest] * rank / nearest
        return times[below] + (times[above] - times[below]) * (rank - below) / (above - below)

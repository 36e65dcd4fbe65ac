"""What layers and their pairs take on a target, in milliseconds, and what a plan takes by that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lrexport.plan import Pair, Plan, Scheme


@dataclass(frozen=True)
class LayerLatency:
    """One layer, all its calls together: as it is, and as the pair of each scheme at the ranks that were measured."""

    dense_ms: float
    pairs: Mapping[Scheme, Mapping[int, float]]

    @cached_property
    def gaining(self) -> dict[Scheme, dict[int, float]]:
        """The pairs that are faster than the layer and than every pair of the scheme with a higher rank, by rising rank.

        These ranks are the target's grain: any other is rounded up to one of them, at no cost in time.
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
        """The same on a machine that takes ``factor`` times as long."""
        pairs = {scheme: {rank: factor * ms for rank, ms in times.items()} for scheme, times in self.pairs.items()}
        return LayerLatency(factor * self.dense_ms, pairs)

    def round_up(self, scheme: Scheme, rank: int) -> int | None:
        """The rank of at least ``rank`` that takes least time; None where no such pair is faster than the layer."""
        return next((higher for higher in self.gaining.get(scheme, {}) if higher >= rank), None)


@dataclass(frozen=True)
class NetworkLatency:
    """A network on a target: the dense one as a whole, as measured, and its layers."""

    dense_ms: float
    layers: Mapping[str, LayerLatency]

    @property
    def other_ms(self) -> float:
        """What the dense network takes beside these layers: one constant for all plans."""
        return self.dense_ms - sum(layer.dense_ms for layer in self.layers.values())

    @property
    def least_ms(self) -> float:
        """The fastest plan."""
        layers = self.layers.values()
        every = ([layer.dense_ms, *(ms for ranks in layer.gaining.values() for ms in ranks.values())] for layer in layers)
        return self.other_ms + sum(map(min, every))

    def of_plan(self, plan: Plan) -> float:
        """What the folded network is predicted to take."""
        return self.other_ms + sum(self._of_layer(layer, plan.get(name)) for name, layer in self.layers.items())

    def _of_layer(self, layer: LayerLatency, planned: object) -> float:
        """Between measured ranks by linear interpolation, past them in proportion."""
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

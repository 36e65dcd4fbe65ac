"""Falling ranks: SVD training ends within the budget because ranks are reduced on the way.

At the start of an epoch the least important singular values are removed, while the learning rate is still high enough for
training to recover. Composing kernels and the regularisers get cheaper as ranks fall.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lrexport.config.goals import Goal, Latency, Macs, Params
from lrexport.events import OnEvent, RanksCut
from lrexport.lowrank.factors.svd_form import cut
from lrexport.lowrank.selection.costs import plan_macs
from lrexport.plan import Pair
from lrexport.training.engine import failing_together
from lrexport.workflow.pruning import Pruning

FALL = 0.6  # share of SVD training's epochs in which ranks fall; the rest recover from the last cut


@dataclass(frozen=True)
class FallingRanks:
    """Cuts the layers of ``pruning.svd`` at the start of each of the first ``epochs``, the last time to the goal.

    The reduction, dense ÷ budget, rises in equal steps. The first of several processes chooses for all.
    """

    pruning: Pruning
    epochs: int
    fabric: Any
    on_event: OnEvent

    def __call__(self, epoch: int) -> bool:
        """Cut for ``epoch``, from 0. True: U, s, V of every layer were replaced by the exact SVD, even if not cut."""
        if epoch >= self.epochs:
            return False
        factors: dict[str, Any] = {}
        with failing_together(self.fabric):
            if self.fabric.is_global_zero:
                config = replace(self.pruning.config, goal=self._goal(epoch))
                selection = replace(self.pruning, config=config).predict()
                for name, planned in selection.plan.items():
                    if isinstance(planned, Pair) and planned.scheme == self.pruning.svd.layers[name].scheme:
                        left, right = selection.truncations[name][planned.scheme].factors(planned.rank)
                        factors[name] = left.cpu(), right.cpu()
                dense_macs = self.pruning.svd.dense_macs
                share = plan_macs(self.pruning.svd, selection.plan) / dense_macs if dense_macs else 1.0
                self.on_event(RanksCut(epoch + 1, len(factors), share))
        if self.fabric.world_size > 1:
            factors = self.fabric.broadcast(factors, src=0)
        for name, (left, right) in factors.items():
            layer = self.pruning.svd.network.get_submodule(name)
            cut(layer, left, right)
        self.pruning.svd.network.to(self.fabric.device)
        return True

    def _goal(self, epoch: int) -> Goal:
        """The epoch's budget, never below the goal's."""
        goal, speed = self.pruning.config.goal, self.pruning.speed
        if isinstance(goal, Macs | Params):
            return type(goal)(self._share(goal.share, epoch))
        assert isinstance(goal, Latency)
        assert speed is not None
        return Latency(self._share(goal.budget_ms(speed.latency.dense_ms) / speed.latency.dense_ms, epoch))

    def _share(self, final: float, epoch: int) -> float:
        return 1 / (1 + (1 / min(final, 1.0) - 1) * (epoch + 1) / self.epochs)

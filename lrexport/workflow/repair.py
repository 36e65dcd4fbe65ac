"""Repair of a folded network without labels: refit pairs, correct biases, re-estimate BatchNorm statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lrexport.data.unlabelled import Unlabelled
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.truncation import Selection
from lrexport.lowrank.repair.reconstruct import reconstruct
from lrexport.metric import TOP1, Metric, heldout_key
from lrexport.tasks.scoring import NotANumber
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.batchnorm import reestimate_batchnorm
from lrexport.torch_tools.tracing import largest_output

BATCH = 125  # images at a time if only sums are needed
_BATCHNORM_BATCH = 250
_MOST_VALUES = 1 << 26  # elements of a layer's outputs for all images of a reconstruction, 256 MB


@dataclass(frozen=True)
class Repair:
    """Repairs networks folded from ``svd`` with ``images``.

    ``reconstruct`` refits pairs and biases to the dense layers' outputs on ``calibration_images``; without it only biases
    are corrected. ``batchnorm_images`` are for BatchNorm statistics. A repair with 0 images is skipped.
    """

    svd: SVDNetwork
    images: Unlabelled
    reconstruct: bool = True
    calibration_images: int = 512
    batchnorm_images: int = 1000

    def apply(
        self,
        network: nn.Module,
        selection: Selection,
        score: Callable[[nn.Module], float],
        metric: Metric = TOP1,
        likeness: Callable[[nn.Module], float] | None = None,
    ) -> dict[str, float]:
        """Repair ``network``, folded by ``selection``, in place; returns its score as folded and after each repair.

        The keys are those of :class:`lrexport.events.PlanChosen`.

        A repair that makes the ``score`` worse, such as top-1, is undone: it can harm a network that lost little. Of equal
        scores, usual with few samples, ``likeness`` to the dense network decides, if given; higher is better.
        """
        as_folded = heldout_key(metric)
        scores = {as_folded: score(network)}
        kept_likeness: float | None = None  # of the network before the repair, if it was needed
        for name, repair in self._repairs().items():
            before = copy.deepcopy(network.state_dict())
            best = metric.best(scores.values())
            if not repair(network, selection):
                continue
            try:
                scores[f"{as_folded}_after_{name}"] = after = score(network)
            except NotANumber:
                after = metric.worst
            falls, now = metric.is_better(best, after), None
            if likeness and after == best:
                if kept_likeness is None:
                    kept_likeness = _with_weights(likeness, network, before)
                now = likeness(network)
                falls = kept_likeness > now
            if falls:
                network.load_state_dict(before)
            else:
                kept_likeness = now
        return scores

    def _repairs(self) -> dict[str, Callable[[nn.Module, Selection], bool]]:
        """Repairs by name, in order; each returns whether there were images for it."""
        if not self.reconstruct and not self.batchnorm_images:
            return {}
        first = "reconstruction" if self.reconstruct else "bias_correction"
        return {first: self._reconstruct, "batchnorm": self._reestimate_batchnorm}

    def _reconstruct(self, network: nn.Module, selection: Selection) -> bool:
        """Refit pairs and biases, or only correct biases and BatchNorm statistics."""
        count = min(len(self.images), self.calibration_images)
        if count < 2:  # BatchNorm after global pooling has no variance over one image
            return False
        most = max(2, _MOST_VALUES // largest_output(self.svd.network, self.svd.signature))
        whole = Batch.cat(list(self.images.draw(min(count, most)).batches(BATCH)))
        reconstruct(network, self.svd, selection, whole, self.reconstruct)
        return True

    def _reestimate_batchnorm(self, network: nn.Module, _selection: Selection) -> bool:
        images = self.images.draw(self.batchnorm_images)
        return len(images) > 1 and reestimate_batchnorm(network, images.batches(_BATCHNORM_BATCH))


def _with_weights(likeness: Callable[[nn.Module], float], network: nn.Module, weights: dict[str, Any]) -> float:
    """The likeness of ``network`` with other weights; it keeps its own."""
    own = copy.deepcopy(network.state_dict())
    network.load_state_dict(weights)
    measured = likeness(network)
    network.load_state_dict(own)
    return measured

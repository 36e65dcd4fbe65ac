"""Repair of a folded network: pairs refitted, biases corrected, BatchNorm's statistics re-estimated. No labels are used."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lrexport.data.unlabelled import Unlabelled
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.truncation import Selection
from lrexport.lowrank.repair.reconstruct import reconstruct
from lrexport.tasks.classification import NotANumber
from lrexport.torch_tools.batchnorm import reestimate_batchnorm
from lrexport.torch_tools.tracing import largest_output

BATCH = 125  # images at a time where only sums are wanted
AS_FOLDED = "heldout_top1"  # how events call the score of a network that is not repaired yet
_BATCHNORM_BATCH = 250
_MOST_VALUES = 1 << 26  # of one layer's outputs for all images of a reconstruction, 256 MB


@dataclass(frozen=True)
class Repair:
    """How networks that are folded from ``svd`` are repaired with ``images`` of ``input_shape``.

    ``reconstruct`` refits pairs and biases to the dense layers' outputs on ``calibration_images``, without it biases alone
    are corrected; ``batchnorm_images`` give BatchNorm its statistics. With 0 images a repair is left out.
    """

    svd: SVDNetwork
    input_shape: tuple[int, ...]
    images: Unlabelled
    reconstruct: bool = True
    calibration_images: int = 512
    batchnorm_images: int = 1000

    def apply(self, network: nn.Module, selection: Selection, score: Callable[[nn.Module], float]) -> dict[str, float]:
        """Repair ``network``, folded by ``selection``, in place; returns its score as folded and after each repair.

        A repair after which the ``score``, say top-1, is lower is taken back: a network that lost little is better left
        alone.
        """
        scores = {AS_FOLDED: score(network)}
        for name, repair in self._repairs().items():
            before = copy.deepcopy(network.state_dict())
            best = max(scores.values())
            if not repair(network, selection):
                continue
            try:
                scores[f"{AS_FOLDED}_after_{name}"] = after = score(network)
            except NotANumber:
                after = -math.inf
            if after < best:
                network.load_state_dict(before)
        return scores

    def _repairs(self) -> dict[str, Callable[[nn.Module, Selection], bool]]:
        """By name, in their order; each says whether there were images to do it with."""
        if not self.reconstruct and not self.batchnorm_images:
            return {}
        first = "reconstruction" if self.reconstruct else "bias_correction"
        return {first: self._reconstruct, "batchnorm": self._reestimate_batchnorm}

    def _reconstruct(self, network: nn.Module, selection: Selection) -> bool:
        """Refit pairs and biases, or biases and BatchNorm's statistics alone."""
        count = min(len(self.images), self.calibration_images)
        if count < 2:  # BatchNorm behind a global pooling has no variance over one image
            return False
        most = max(2, _MOST_VALUES // largest_output(self.svd.network, self.input_shape))
        whole = torch.cat(list(self.images.draw(min(count, most)).batches(BATCH)))
        reconstruct(network, self.svd, selection, whole, self.reconstruct)
        return True

    def _reestimate_batchnorm(self, network: nn.Module, _selection: Selection) -> bool:
        images = self.images.draw(self.batchnorm_images)
        return len(images) > 1 and reestimate_batchnorm(network, images.batches(_BATCHNORM_BATCH))

"""How closely the networks of plans follow the dense network, on inputs without labels: for the choice between plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from lrexport.data.unlabelled import Unlabelled
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.truncation import Selection
from lrexport.training.engine import to_fast_layout
from lrexport.workflow.likeness import DenseOutputs
from lrexport.workflow.repair import Repair

# Of a detector 8 inputs gave effects so rough that the plan's error was a third larger than by 28.
_MOST_INPUTS, _LEAST_INPUTS = 128, 24


@dataclass(frozen=True)
class PlanOutputs:
    """Outputs for ``inputs``, of networks that are repaired as ``repair`` says, with fewer inputs than in the end.

    It takes about as long as that repair.
    """

    inputs: Unlabelled
    repair: Repair

    @cached_property
    def _few(self) -> DenseOutputs:
        """So many that all layers one by one take about as long as a repair."""
        each = 2 * self.repair.calibration_images // max(1, len(self.repair.svd.layers))
        return DenseOutputs(self.repair.svd, self.inputs, max(_LEAST_INPUTS, min(_MOST_INPUTS, each)))

    @cached_property
    def _many(self) -> DenseOutputs:
        return DenseOutputs(self.repair.svd, self.inputs, _MOST_INPUTS)

    def error_of(self, network: nn.Module) -> float | None:
        """As :meth:`DenseOutputs.error_of`, for a few of the inputs."""
        return self._few.error_of(network)

    def error_after_repair(self, selection: Selection) -> float | None:
        """The error of the folded and repaired network; None if its outputs cannot be compared."""
        svd, repair = self.repair.svd, self.repair
        few = replace(
            repair,
            calibration_images=min(_MOST_INPUTS, repair.calibration_images),
            batchnorm_images=min(_MOST_INPUTS, repair.batchnorm_images),
        )
        network = to_fast_layout(fold(svd, selection), svd.signature)
        few.apply(network, selection, self._many.likeness_of)
        return self._many.error_of(network)

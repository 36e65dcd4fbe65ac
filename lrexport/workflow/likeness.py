"""How much the outputs of a folded network differ from those before pruning, on inputs without labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lrexport.data.unlabelled import Unlabelled
from lrexport.errors import InputError
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.repair.observed import decisive, outputs_of
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import flat_tensors
from lrexport.torch_tools.tracing import run_once
from lrexport.workflow.repair import BATCH

_MOST_VALUES = 1 << 26  # of outputs that are kept for comparison, 256 MB
_OWN = ("",)


class DenseOutputs:
    """The outputs of the network before pruning for at most ``most`` inputs, as many as memory allows.

    Where their number depends on values, as that of a detector's boxes, those of the modules before that are compared.
    """

    def __init__(self, svd: SVDNetwork, images: Unlabelled, most: int) -> None:
        values = sum(tensor.numel() for tensor in _floats(run_once(svd.network, svd.signature)))
        self.images = images.draw(min(most, max(2, _MOST_VALUES // max(1, values))))
        self._dense = svd.network
        self._names: tuple[str, ...] = _OWN
        self.outputs = list(self._outputs(svd.network))
        if _have_one_form(self.outputs, self.images):
            self._variance = _variance(self.outputs)
        else:
            self._look_before_values_decide(svd.network)

    def likeness_of(self, network: nn.Module) -> float:
        """The negative of :meth:`error_of`; the worst where that is unknown or not finite."""
        error = self.error_of(network)
        return -error if error is not None and math.isfinite(error) else -math.inf

    def error_of(self, network: nn.Module) -> float | None:
        """Σ squared errors of ``network``'s outputs, relative to Σ squared deviations from their mean over the inputs.

        None if no module has outputs that can be compared.
        """
        outputs = list(self._outputs(network))
        if not self._are_like(outputs):
            self._look_before_values_decide(network)
            outputs = list(self._outputs(network))
        if not self._names or not self._are_like(outputs):
            return None
        error = 0.0
        for mine, dense in zip(outputs, self.outputs, strict=True):
            error += sum(float((one - other).double().square().sum()) for one, other in zip(mine, dense, strict=True))
        return error / max(self._variance, torch.finfo(torch.float32).tiny)

    def _are_like(self, outputs: Sequence[Sequence[Tensor]]) -> bool:
        """Whether a network's outputs have the shapes of the dense network's."""
        return all(
            [each.shape for each in mine] == [each.shape for each in dense]
            for mine, dense in zip(outputs, self.outputs, strict=True)
        )

    def _look_before_values_decide(self, network: nn.Module) -> None:
        """Compare the modules whose outputs have one shape for all inputs, or nothing if there are none."""
        few = next(iter(self.images.draw(3).batches(3))).filled(3)
        try:
            self._names = decisive((self._dense, network), few)
        except InputError:
            self._names = ()
        else:
            values = sum(tensor.numel() for tensor in self._output(self._dense, few)) // len(few)
            self.images = self.images.draw(max(2, _MOST_VALUES // max(1, values)))
        self.outputs = list(self._outputs(self._dense))
        self._variance = _variance(self.outputs)

    def _outputs(self, network: nn.Module) -> Iterator[list[Tensor]]:
        """What is compared, for each batch."""
        return (self._output(network, batch) for batch in self.images.batches(BATCH))

    @torch.no_grad()
    def _output(self, network: nn.Module, batch: Batch) -> list[Tensor]:
        with eval_mode(network):
            return _floats(outputs_of(network, self._names, batch)) if self._names else []


def _floats(output: object) -> list[Tensor]:
    """The tensors of a network's output that are compared."""
    return [tensor for tensor in flat_tensors(output) if tensor.is_floating_point()]


def _variance(outputs: Sequence[Sequence[Tensor]]) -> float:
    """Σ squared deviations of the values of all batches from their mean over the inputs."""
    each = (torch.cat(parts).double() for parts in zip(*outputs, strict=True))
    return sum(float((output - output.mean(0)).square().sum()) for output in each)


def _have_one_form(outputs: Sequence[Sequence[Tensor]], images: Unlabelled) -> bool:
    """Whether the outputs of all batches have as many tensors, with rows (B, …) of the same shape for each input."""
    if any(not tensor.ndim for of_batch in outputs for tensor in of_batch):
        return False
    forms = {
        tuple((tensor.shape[0] / len(batch), *tensor.shape[1:]) for tensor in of_batch)
        for of_batch, batch in zip(outputs, images.batches(BATCH), strict=True)
    }
    return len(forms) == 1

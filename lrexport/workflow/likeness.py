"""How much the outputs of a folded network differ from those before pruning, on inputs without labels."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lrexport.data.unlabelled import Unlabelled
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.torch_tools.memory_layout import run
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import flat_tensors
from lrexport.torch_tools.tracing import run_once
from lrexport.workflow.repair import BATCH

_MOST_VALUES = 1 << 26  # of outputs that are kept for comparison, 256 MB


class DenseOutputs:
    """The outputs of the network before pruning for at most ``most`` inputs, as many as memory allows."""

    def __init__(self, svd: SVDNetwork, images: Unlabelled, most: int) -> None:
        values = sum(tensor.numel() for tensor in _floats(run_once(svd.network, svd.signature)))
        self.images = images.draw(min(most, max(2, _MOST_VALUES // max(1, values))))
        self.outputs = list(_outputs(svd.network, self.images))
        each = [torch.cat(parts).double() for parts in zip(*self.outputs, strict=True)]
        self.variance = sum(float((output - output.mean(0)).square().sum()) for output in each)

    def likeness_of(self, network: nn.Module) -> float:
        """The negative of :meth:`error_of`; the worst where that is not finite."""
        error = self.error_of(network)
        return -error if math.isfinite(error) else -math.inf

    def error_of(self, network: nn.Module) -> float:
        """Σ squared errors of ``network``'s outputs, relative to Σ squared deviations from their mean over the inputs."""
        error = 0.0
        for mine, dense in zip(_outputs(network, self.images), self.outputs, strict=True):
            error += sum(float((one - other).double().square().sum()) for one, other in zip(mine, dense, strict=True))
        return error / max(self.variance, torch.finfo(torch.float32).tiny)


def _floats(output: object) -> list[Tensor]:
    """The tensors of a network's output that are compared."""
    return [tensor for tensor in flat_tensors(output) if tensor.is_floating_point()]


@torch.no_grad()
def _outputs(network: nn.Module, images: Unlabelled) -> Iterator[list[Tensor]]:
    """The network's output for each batch."""
    with eval_mode(network):
        for batch in images.batches(BATCH):
            yield _floats(run(network, batch))

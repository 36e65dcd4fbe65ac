"""What tests of exports share."""

from __future__ import annotations

import onnx
import torch
from torch import nn

from lrexport.formats.torch_graph import to_onnx
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.outputs import flat_tensors


@torch.no_grad()
def exported(network: nn.Module, input_shape: tuple[int, ...]) -> onnx.ModelProto:
    """What torch's exporter itself makes of a network for one input, with nothing verified."""
    images = torch.zeros(1, *input_shape)
    count = len(list(flat_tensors(network(images))))
    return to_onnx(network, Batch.of(images), [f"output_{number}" for number in range(count)], 18)

"""What tests of exports share."""

from __future__ import annotations

import onnx
import torch
from torch import nn

from lrexport.torch_tools.quiet import quiet


def exported(network: nn.Module, input_shape: tuple[int, ...]) -> onnx.ModelProto:
    """What torch's exporter itself makes of a network for one input, with nothing verified."""
    with quiet():
        program = torch.onnx.export(
            network, (torch.zeros(1, *input_shape),), dynamo=True, external_data=False, opset_version=18, verbose=False
        )
    assert program is not None
    return program.model_proto

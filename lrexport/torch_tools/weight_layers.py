"""The classes of layers that multiply by one weight."""

from __future__ import annotations

from torch import nn

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*PLAIN, *TRANSPOSED, nn.Linear)

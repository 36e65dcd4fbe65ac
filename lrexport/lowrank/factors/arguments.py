"""Arguments of the Python API that are not what they have to be, said in the family's errors."""

from __future__ import annotations

from torch import Tensor, nn

from lrexport.errors import UsageError
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.torch_tools.tracing import run_once


def check_svd(svd: object) -> None:
    """Raise UsageError for anything but a network in SVD form."""
    if not isinstance(svd, SVDNetwork):
        raise UsageError(
            f"invalid network in SVD form: expected what lrexport.decompose returns, not a {type(svd).__name__}",
            "Call svd = lrexport.decompose(network, input_shape) first.",
        )


def check_images(network: nn.Module, images: object) -> None:
    """Raise UsageError for anything but a tensor (N, …), InputError where the network does not take the first of it."""
    if not isinstance(images, Tensor) or images.ndim < 2 or not len(images):
        what = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"of type {type(images).__name__}"
        raise UsageError(f"invalid images {what}: expected a tensor (N, …)", "Give one batch, torch.stack(images) say.")
    run_once(network, tuple(images.shape[1:]), images[:1].clone())

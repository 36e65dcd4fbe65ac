"""Arguments of the Python API that are not what they have to be, said in the family's errors."""

from __future__ import annotations

from collections.abc import Mapping

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


def check_plan(plan: object) -> None:
    """Raise UsageError for anything but a plan."""
    if not isinstance(plan, Mapping):
        raise UsageError(
            f"invalid plan: expected layers by name, not a {type(plan).__name__}", "lrexport.select returns it: .plan."
        )


def check_images(network: nn.Module, images: object) -> None:
    """Raise UsageError for anything but a tensor (N, …), InputError where the network does not take the first of it."""
    if not isinstance(images, Tensor) or images.ndim < 2 or not len(images):
        what = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"of type {type(images).__name__}"
        raise UsageError(f"invalid images {what}: expected a tensor (N, …)", "Give one batch, torch.stack(images) say.")
    run_once(network, tuple(images.shape[1:]), images[:1].clone())


def check_share(name: str, value: object) -> None:
    """Raise UsageError for a goal that is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"invalid {name} {value!r}: expected a number", f"As in select(svd, {name}=0.5).")

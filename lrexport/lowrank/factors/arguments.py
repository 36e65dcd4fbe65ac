"""Check arguments of the Python API."""

from __future__ import annotations

from torch import Tensor

from lrexport.errors import UsageError
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.torch_tools.batch import Batch, signature_of
from lrexport.torch_tools.tracing import run_once


def check_svd(svd: object) -> None:
    """Raise UsageError for anything but a network in SVD form."""
    if not isinstance(svd, SVDNetwork):
        raise UsageError(
            f"invalid network in SVD form: expected the result of lrexport.decompose, not a {type(svd).__name__}",
            "Call svd = lrexport.decompose(network, input_shape) first.",
        )


def checked_images(svd: SVDNetwork, images: object) -> Batch:
    """Inputs (N, …) of the network. Raises UsageError for anything else, InputError if the network does not accept them."""
    if isinstance(images, Tensor) and images.ndim < 2 and len(svd.signature) == 1:
        what = f"of shape {tuple(images.shape)}"
        raise UsageError(f"invalid images {what}: expected a tensor (N, …)", "Give one batch, torch.stack(images) say.")
    batch = Batch.of(images)  # type: ignore[arg-type]
    if not len(batch):
        hint = "Give one batch, for example torch.stack(images)."
        raise UsageError("invalid images: expected at least one", hint)
    given = batch[:1].clone()
    run_once(svd.network, signature_of(given), given)
    return batch

"""Check arguments of the Python API."""

from __future__ import annotations

from torch import Tensor, nn

from lrexport.errors import UsageError
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.torch_tools.tracing import run_once


def check_svd(svd: object) -> None:
    """Raise UsageError for anything but a network in SVD form."""
    if not isinstance(svd, SVDNetwork):
        raise UsageError(
            f"invalid network in SVD form: expected the result of lrexport.decompose, not a {type(svd).__name__}",
            "Call svd = lrexport.decompose(network, input_shape) first.",
        )


def input_shape_of(example_inputs: object) -> tuple[int, ...]:
    """The shape of one input, from a batch (B, …) or from the shape itself. Raises UsageError for anything else."""
    if isinstance(example_inputs, list | tuple) and len(example_inputs) == 1 and isinstance(example_inputs[0], Tensor):
        example_inputs = example_inputs[0]  # the form that torch.export accepts
    if isinstance(example_inputs, Tensor) and example_inputs.ndim > 1:
        return tuple(example_inputs.shape[1:])
    if isinstance(example_inputs, list | tuple) and example_inputs:
        sizes = [size for size in example_inputs if isinstance(size, int) and not isinstance(size, bool) and size > 0]
        if len(sizes) == len(example_inputs):
            return tuple(sizes)
    what = f"of shape {tuple(example_inputs.shape)}" if isinstance(example_inputs, Tensor) else repr(example_inputs)[:60]
    raise UsageError(
        f"invalid example_inputs {what}: expected a batch (B, …) as one tensor, or the shape of one input",
        "For example compress(model, torch.randn(1, 3, 224, 224), …) or compress(model, (3, 224, 224), …).",
    )


def check_images(network: nn.Module, images: object) -> None:
    """Raise UsageError for anything but a tensor (N, …), InputError if the network does not accept the first image."""
    if not isinstance(images, Tensor) or images.ndim < 2 or not len(images):
        what = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"of type {type(images).__name__}"
        hint = "Give one batch, for example torch.stack(images)."
        raise UsageError(f"invalid images {what}: expected a tensor (N, …)", hint)
    run_once(network, tuple(images.shape[1:]), images[:1].clone())

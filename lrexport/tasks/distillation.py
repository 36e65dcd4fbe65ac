"""Losses that need no labels, only the outputs of another network, over outputs of any tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.errors import InputError
from lrexport.torch_tools.outputs import named_tensors

_LEAST_SHARE = 1e-6  # of an output's mean square: the least variance, for outputs that hardly vary


def is_class_scores(output: Tensor) -> bool:
    """Whether an output is taken for scores of classes: (B, K) with several classes."""
    return output.ndim == 2 and output.shape[1] > 1 and output.is_floating_point()


def followed(outputs: Any, dense: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """The floating-point outputs of two networks by name, each with the dense network's.

    A network may return more in training mode: a tuple whose first item is the only output of eval mode, or further named
    ones. Raises InputError if an output of the dense network is missing or has another shape.
    """
    if isinstance(dense, Tensor) and isinstance(outputs, tuple | list) and outputs:
        outputs = outputs[0]
    mine = named_tensors(outputs)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, truth in named_tensors(dense).items():
        if not truth.is_floating_point():
            continue
        if name not in mine or mine[name].shape != truth.shape:
            what = f"shape {tuple(mine[name].shape)}" if name in mine else "nothing"
            raise InputError(
                f"the network returns {what} for {name!r}; expected shape {tuple(truth.shape)}, as the dense network",
                "Outputs that are to follow the dense network's must have the same names and shapes.",
            )
        pairs[name] = mine[name], truth
    if not pairs:
        raise InputError(
            "the dense network returns no floating-point tensor, so there is nothing to follow",
            "Its forward must return tensors: alone, or in tuples, lists, dicts or dataclasses.",
        )
    return pairs


def following(outputs: Any, dense_outputs: Any, temperature: float = 4.0) -> Tensor:
    """The loss without labels: the mean over all floating-point outputs of their scaled error.

    For class scores it is their scaled error plus the divergence. The divergence alone is the same for scores shifted by any
    number, so without labels outputs could drift away. Raises InputError if the outputs do not have the names and shapes of
    the dense network's.
    """

    def loss(mine: Tensor, dense: Tensor) -> Tensor:
        error = scaled_error(mine, dense)
        return error + softened_divergence(mine, dense, temperature) if is_class_scores(dense) else error

    return _mean(loss, outputs, dense_outputs)


def scaled_errors(outputs: Any, dense_outputs: Any) -> Tensor:
    """The mean of the scaled errors of all floating-point outputs, for parts of networks. Raises as :func:`following`."""
    return _mean(scaled_error, outputs, dense_outputs)


def _mean(loss: Callable[[Tensor, Tensor], Tensor], outputs: Any, dense_outputs: Any) -> Tensor:
    losses = [loss(mine, dense) for mine, dense in followed(outputs, dense_outputs).values()]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def softened_divergence(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL divergence of softened outputs, times T² to keep the gradient's size (Hinton et al. 2015, arXiv 1503.02531)."""
    soft, target = (F.log_softmax(z / temperature, dim=1) for z in (logits, teacher_logits.float()))
    return F.kl_div(soft, target, reduction="batchmean", log_target=True) * temperature**2


def scaled_error(output: Tensor, dense: Tensor) -> Tensor:
    """Mean squared error relative to the variance of ``dense``, so that outputs of any unit weigh the same."""
    wide = dense.float()
    variance = wide.var(correction=0)
    least = _LEAST_SHARE * wide.square().mean() + torch.finfo(torch.float32).tiny
    return (output.float() - wide).square().mean() / torch.maximum(variance, least)

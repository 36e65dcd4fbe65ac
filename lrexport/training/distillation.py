"""The distance of a network's outputs to a teacher's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.torch_tools.outputs import named_tensors
from lrexport.training.stage import Stage


def distillation(outputs: Any, teachers: Any, stage: Stage) -> Tensor | None:
    """The distance of outputs to a teacher's: for logits by :func:`_softened`, else squared, in the unit of their variance.

    Outputs that only one of the two has, such as auxiliary ones, are left out; None if no others are left.
    """
    mine, theirs = named_tensors(outputs), named_tensors(teachers)
    both = [name for name in mine if name in theirs and mine[name].shape == theirs[name].shape]
    both = [name for name in both if mine[name].is_floating_point()]
    terms = []
    for name in both:
        teacher = theirs[name].float()
        if teacher.ndim == 2 and teacher.shape[1] > 1:
            terms.append(_softened(mine[name], teacher, stage))
        else:
            scale = teacher.var(correction=0).clamp_min(torch.finfo(torch.float32).tiny)
            terms.append(F.mse_loss(mine[name], teacher) / scale)
    if not terms:
        return None
    return torch.stack(terms).mean() if len(terms) > 1 else terms[0]


def _softened(logits: Tensor, teacher_logits: Tensor, stage: Stage) -> Tensor:
    """KL divergence of softened outputs, times T² to keep the gradient's size (Hinton et al. 2015, arXiv 1503.02531)."""
    soft, target = (F.log_softmax(z / stage.temperature, dim=1) for z in (logits, teacher_logits))
    return F.kl_div(soft, target, reduction="batchmean", log_target=True) * stage.temperature**2

"""The distance of a network's outputs to a teacher's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrexport.tasks.distillation import is_class_scores, scaled_error, softened_divergence
from lrexport.torch_tools.outputs import named_tensors
from lrexport.training.stage import Stage


def distillation(outputs: Any, teachers: Any, stage: Stage) -> Tensor | None:
    """The distance of outputs to a teacher's: for class scores the divergence, else squared, in the unit of its variance.

    Outputs that only one of the two has, such as auxiliary ones, are left out; None if no others are left.
    """
    mine, theirs = named_tensors(outputs), named_tensors(teachers)
    both = [name for name in mine if name in theirs and mine[name].shape == theirs[name].shape]
    both = [name for name in both if mine[name].is_floating_point()]
    terms = []
    for name in both:
        teacher = theirs[name].float()
        if is_class_scores(teacher):
            terms.append(softened_divergence(mine[name], teacher, stage.temperature))
        else:
            terms.append(scaled_error(mine[name], teacher))
    if not terms:
        return None
    return torch.stack(terms).mean() if len(terms) > 1 else terms[0]

"""The loss of distillation over outputs of any tree."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrexport.tasks.distillation import following, scaled_error, scaled_errors, softened_divergence

Heads = namedtuple("Heads", ["boxes", "masks"])


def test_for_class_scores_the_divergence_is_hinton_s_loss_bit_by_bit() -> None:
    logits, teacher = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5)
    soft, target = F.log_softmax(logits / 4, dim=1), F.log_softmax(teacher / 4, dim=1)
    expected = F.kl_div(soft, target, reduction="batchmean", log_target=True) * 16
    assert torch.equal(softened_divergence(logits, teacher, 4.0), expected)


@given(st.floats(1e-4, 1e4), st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_the_scaled_error_is_the_same_in_any_unit(scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    dense, mine = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    expected = float((mine - dense).square().mean() / dense.var(correction=0))
    error = float(scaled_error(scale * (mine + shift), scale * (dense + shift)))
    assert error == pytest.approx(expected, rel=1e-2)


def test_each_output_weighs_the_same_whatever_its_unit() -> None:
    boxes, masks = 1000 * torch.randn(4, 6, 4), 0.001 * torch.randn(4, 2, 5, 5)
    dense = Heads(boxes, masks)
    assert float(following(Heads(2 * boxes, masks), dense)) == pytest.approx(
        float(following(Heads(boxes, 2 * masks), dense)), rel=0.2
    )
    assert float(following(dense, dense)) == 0


@pytest.mark.parametrize("dense", [torch.zeros(2, 3), torch.full((2, 3), 7.0)], ids=["zero", "constant"])
def test_outputs_that_do_not_vary_have_a_finite_loss_and_gradient(dense: Tensor) -> None:
    mine = (dense + 0.5).requires_grad_()
    for loss in (scaled_error(mine, dense), following(mine, dense)):
        assert loss.isfinite()
    (gradient,) = torch.autograd.grad(scaled_error(mine, dense), mine)
    assert gradient.isfinite().all()


def test_without_labels_scores_may_not_drift_by_a_constant() -> None:
    dense = torch.randn(6, 4)
    assert float(softened_divergence(dense + 9, dense, 4.0)) == pytest.approx(0, abs=1e-4)
    assert float(following(dense + 9, dense)) > 1
    assert float(following(dense, dense)) == pytest.approx(0, abs=1e-6)


def test_hidden_outputs_are_no_class_scores() -> None:
    hidden, dense = torch.randn(6, 4), torch.randn(6, 4)
    assert torch.equal(scaled_errors(hidden, dense), scaled_error(hidden, dense))

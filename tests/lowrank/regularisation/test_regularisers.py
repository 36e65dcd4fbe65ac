"""Equations 1 to 3 against their closed forms."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import nn

from lrexport.errors import UsageError
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.svd_form import factors
from lrexport.lowrank.regularisation.regularisers import Regularisers, hoyer, l1, losses, orthogonality
from tests.conftest import SmallNet


class GroupedNet(nn.Sequential):
    """Two layers alike, one with groups, which have an axis more, and one of another shape; in no order of shapes."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=2, padding=2)
        )


def test_orthogonal_factors_cost_nothing() -> None:
    left, _ = torch.linalg.qr(torch.randn(12, 5, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(9, 5, dtype=torch.float64))
    assert orthogonality(left, right).item() == pytest.approx(0, abs=1e-28)


def test_scaled_orthogonal_factors_cost_what_equation_1_says() -> None:
    left, _ = torch.linalg.qr(torch.randn(12, 5, dtype=torch.float64))
    # UᵀU = a² I and VᵀV = b² I: (r (a² − 1)² + r (b² − 1)²) / r²
    found = orthogonality(2 * left, 3 * left)
    assert found.item() == pytest.approx((5 * 3**2 + 5 * 8**2) / 25)


def test_the_gradient_of_orthogonality_is_the_one_of_the_plain_formula() -> None:
    left = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    right = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(orthogonality, (left, right))
    found = torch.autograd.grad(orthogonality(left, right), (left, right))
    eye = torch.eye(4, dtype=torch.float64)
    plain = ((left.T @ left - eye).norm() ** 2 + (right.T @ right - eye).norm() ** 2) / 16
    for mine, theirs in zip(found, torch.autograd.grad(plain, (left, right)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_orthogonality_is_in_full_precision_under_autocast() -> None:
    left = torch.linalg.qr(torch.randn(64, 16))[0].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = orthogonality(left, left)
    found.backward()
    assert found.item() < 1e-10
    assert left.grad is not None


def test_hoyer_is_the_root_of_the_count_for_equal_values_and_one_for_a_single_value() -> None:
    assert hoyer(torch.full((16,), -0.3)).item() == pytest.approx(4)
    assert hoyer(torch.tensor([0.0, 0.0, -7.0])).item() == pytest.approx(1)
    assert hoyer(torch.tensor([3.0, 4.0])).item() == pytest.approx(7 / 5)


def test_hoyer_does_not_depend_on_scale_but_l1_does() -> None:
    singular = torch.rand(8)
    assert hoyer(5 * singular).item() == pytest.approx(hoyer(singular).item())
    assert l1(5 * singular).item() == pytest.approx(5 * l1(singular).item())


def test_hoyer_of_a_layer_that_died_is_finite() -> None:
    singular = torch.zeros(4, requires_grad=True)
    value = hoyer(singular)
    value.backward()
    assert math.isfinite(value.item())


def test_the_losses_sum_both_terms_over_all_layers_with_their_strengths() -> None:
    svd = decompose(SmallNet(), (3, 12, 12))
    for name in svd.layers:  # away from the orthogonal start
        for parameter in factors(svd.network.get_submodule(name)):
            parameter.data += 0.1
    triples = [factors(svd.network.get_submodule(name)) for name in svd.layers]
    wanted = sum(2.0 * orthogonality(u, v) + 0.5 * s.abs().sum() / s.norm() for u, s, v in triples)
    torch.testing.assert_close(losses(svd, 2.0, 0.5, "hoyer"), wanted)
    torch.testing.assert_close(losses(svd, 0.0, 0.5, "l1"), sum(0.5 * s.abs().sum() for _, s, _ in triples))
    assert losses(svd, 0.0, 0.5, "none").item() == 0


@pytest.mark.parametrize("kind", ["hoyer", "l1"])
def test_each_layer_has_a_strength_of_its_own(kind: Literal["hoyer", "l1"]) -> None:
    svd = decompose(GroupedNet(), (4, 8, 8))
    strengths = torch.arange(1.0, 1 + len(svd.layers))
    of_one = {"hoyer": hoyer, "l1": l1}[kind]
    spectra = [factors(svd.network.get_submodule(name))[1] for name in svd.layers]
    wanted = sum(strength * of_one(singular) for strength, singular in zip(strengths, spectra, strict=True))
    torch.testing.assert_close(losses(svd, 0.0, strengths, kind), wanted)
    regularisers = Regularisers(svd, 0.0, 0.3, kind)
    torch.testing.assert_close(regularisers(), losses(svd, 0.0, 0.3, kind))
    regularisers.strengths.copy_(strengths)
    torch.testing.assert_close(regularisers(), wanted)


def test_every_group_counts_like_a_layer_of_its_own() -> None:
    left, right, singular = torch.randn(3, 7, 4), torch.randn(3, 6, 4), torch.randn(3, 4)
    apart = [orthogonality(u, v) for u, v in zip(left, right, strict=True)]
    torch.testing.assert_close(orthogonality(left, right), torch.stack(apart).sum())
    torch.testing.assert_close(hoyer(singular), torch.stack([hoyer(s) for s in singular]).sum())
    torch.testing.assert_close(l1(singular), torch.stack([l1(s) for s in singular]).sum())


def test_the_gradient_of_orthogonality_is_right_with_groups() -> None:
    left = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    right = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(orthogonality, (left, right))


def test_an_unknown_kind_of_sparsity_is_refused() -> None:
    with pytest.raises(UsageError, match="hoyr"):
        losses(decompose(SmallNet(), (3, 12, 12)), 1.0, 1.0, "hoyr")  # type: ignore[arg-type]

"""The SVD behind the form: batches, precisions, and a decomposition that does not converge at first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrexport.lowrank.decompose import decompose
from lrexport.lowrank.svd_form import attach, compose, exact_svd, factors, form_of, redecompose
from tests.conftest import SmallNet, relative_error


@pytest.fixture
def fail_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[torch.dtype]]:
    """Makes the next SVD fail to converge; returns the precisions of the ones that are done from then on."""
    svd = torch.linalg.svd

    def arm() -> list[torch.dtype]:
        done: list[torch.dtype] = []

        def failing(matrix: Tensor, **options: Any) -> Any:
            done.append(matrix.dtype)
            if len(done) == 1:
                raise torch.linalg.LinAlgError("the algorithm failed to converge")
            return svd(matrix, **options)

        monkeypatch.setattr(torch.linalg, "svd", failing)
        return done

    return arm


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (3, 5, 9)])
def test_the_factors_are_orthogonal_sorted_and_compose_the_matrix(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape)
    left, singular, right, retried = exact_svd(matrix)
    assert not retried
    assert (left.shape[-2:], singular.shape[-1:], right.shape[-2:]) == ((shape[-2], 5), (5,), (shape[-1], 5))
    assert (singular.diff(dim=-1) <= 0).all()
    eye = torch.eye(5).expand(*shape[:-2], 5, 5)
    for side in (left, right):
        torch.testing.assert_close(side.mT @ side, eye)
        assert side.is_contiguous() or side.mT.is_contiguous()
    torch.testing.assert_close(compose(left, singular, right), matrix)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_factors_have_the_precision_of_the_matrix(dtype: torch.dtype) -> None:
    matrix = torch.randn(6, 4).to(dtype)
    left, singular, right, _ = exact_svd(matrix)
    assert {left.dtype, singular.dtype, right.dtype} == {dtype}
    assert relative_error(compose(left, singular, right).float(), matrix.float()) < 0.05


def test_an_svd_that_does_not_converge_is_done_again_in_float64_without_noise(fail_once: Any) -> None:
    matrix = torch.randn(2, 7, 5)
    wanted = exact_svd(matrix)
    precisions = fail_once()
    found = exact_svd(matrix)
    assert precisions == [torch.float32, torch.float64]
    assert found.retried
    assert found.left.dtype == torch.float32
    torch.testing.assert_close(found.singular, wanted.singular)
    torch.testing.assert_close(compose(*found[:3]), matrix)


def test_a_retry_is_noted_with_the_layer(fail_once: Any) -> None:
    network, images = SmallNet().eval(), torch.randn(2, 3, 12, 12)
    wanted = network(images)
    fail_once()
    svd = decompose(network, (3, 12, 12))
    assert svd.notes == ("the SVD of layer 'stem' did not converge and was done again in float64 on the CPU",)
    assert relative_error(network(images), wanted) <= 1e-5
    assert decompose(SmallNet(), (3, 12, 12)).notes == ()


def test_a_retry_after_training_is_noted_too(fail_once: Any) -> None:
    svd = decompose(SmallNet(), (3, 12, 12))
    layer: Any = svd.network.get_submodule("body")
    with torch.no_grad():
        factors(layer)[1].neg_().mul_(torch.rand(48))
    weight = layer.weight.detach().clone()
    fail_once()
    redecompose(layer)
    assert svd.notes == ("the SVD of layer 'body' did not converge and was done again in float64 on the CPU",)
    assert relative_error(layer.weight, weight) <= 1e-5


def test_grouped_factors_that_drifted_are_decomposed_again_in_every_group() -> None:
    layer = nn.Conv2d(8, 12, 3, groups=2)
    attach(layer, "spatial")
    with torch.no_grad():
        factors(layer)[1][1].copy_(torch.randn(12))
    weight = layer.weight.detach().clone()
    redecompose(layer)
    singular = factors(layer)[1]
    assert (singular >= 0).all()
    assert (singular.diff(dim=-1) <= 0).all()
    assert relative_error(layer.weight, weight) <= 1e-5
    before = [factor.clone() for factor in factors(layer)]
    redecompose(layer)  # already exact: left as it is
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(before, factors(layer), strict=True))
    assert form_of(layer).scheme == "spatial"

"""The SVD behind the form: batches, precisions, and a decomposition that does not converge at first."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.exact_svd import exact_svd, singular_values_of, smaller_basis
from lrexport.lowrank.factors.svd_form import attach, compose, detach, factors, form_of, is_attached, redecompose
from tests.conftest import SmallNet, relative_error


@pytest.fixture
def fail_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Makes the next decomposition fail to converge; returns the names of those that are done from then on."""

    def arm() -> list[str]:
        done: list[str] = []

        def watch(name: str) -> None:
            original = getattr(torch.linalg, name)

            def failing(matrix: Tensor, **options: Any) -> Any:
                done.append(f"{name} {matrix.dtype}".replace("torch.", ""))
                if len(done) == 1:
                    raise torch.linalg.LinAlgError("the algorithm failed to converge")
                return original(matrix, **options)

            monkeypatch.setattr(torch.linalg, name, failing)

        watch("svd")
        watch("eigh")
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


LOW = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "matrix",
    [
        pytest.param(torch.randn(300, 12, generator=LOW) @ torch.randn(12, 200, generator=LOW), id="of low rank"),
        pytest.param(torch.randn(40, 40, generator=LOW) * 10.0 ** -torch.arange(40.0), id="of singular values to 1e-40"),
        pytest.param(torch.stack([torch.zeros(6, 8), torch.randn(6, 8, generator=LOW)]), id="with a group of zeros"),
        pytest.param(torch.zeros(9, 4), id="of zeros"),
        pytest.param(torch.cat([torch.eye(8), torch.zeros(8, 8)]), id="of equal singular values"),
        pytest.param(1e-30 * torch.randn(20, 30, generator=LOW), id="of tiny values"),
        pytest.param(1e30 * torch.randn(30, 20, generator=LOW), id="of huge values"),
    ],
)
def test_factors_of_any_matrix_are_orthogonal_and_right_to_the_last_bits_of_float32(matrix: Tensor) -> None:
    left, singular, right, retried = exact_svd(matrix)
    assert not retried
    assert (singular.diff(dim=-1) <= 0).all()
    eye = torch.eye(singular.shape[-1]).expand(*matrix.shape[:-2], -1, -1)
    for side in (left, right):
        torch.testing.assert_close(side.mT @ side, eye, rtol=0, atol=2e-6)
    error = compose(left.double(), singular.double(), right.double()) - matrix.double()
    assert error.norm() <= 2e-7 * matrix.double().norm()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (3, 5, 9), (3, 9, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_shorter_side_alone_is_that_of_the_whole_svd_to_the_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape).to(dtype)
    whole, alone = exact_svd(matrix), smaller_basis(matrix)
    assert alone.is_right is (shape[-2] > shape[-1])
    assert not alone.retried
    assert torch.equal(alone.singular, whole.singular)
    assert torch.equal(alone.basis, whole.right if alone.is_right else whole.left)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (3, 5, 9), (3, 9, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_singular_values_alone_are_those_of_the_whole_svd(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape).to(dtype)
    matrix[..., -1] = matrix[..., 0]  # the last of them may be 0
    torch.testing.assert_close(singular_values_of(matrix), exact_svd(matrix).singular, rtol=1e-6, atol=1e-6)


def test_singular_values_alone_survive_eigenvalues_that_do_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_matrix: torch.Tensor) -> torch.Tensor:
        raise torch.linalg.LinAlgError

    matrix = torch.randn(7, 5)
    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    torch.testing.assert_close(singular_values_of(matrix), exact_svd(matrix).singular)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_factors_have_the_precision_of_the_matrix(dtype: torch.dtype) -> None:
    matrix = torch.randn(6, 4).to(dtype)
    left, singular, right, _ = exact_svd(matrix)
    assert {left.dtype, singular.dtype, right.dtype} == {dtype}
    assert relative_error(compose(left, singular, right).float(), matrix.float()) < 0.05


def test_an_svd_that_does_not_converge_is_done_again_in_float64_without_noise(fail_once: Any) -> None:
    matrix = torch.randn(2, 7, 5)
    wanted = exact_svd(matrix)
    done = fail_once()
    found = exact_svd(matrix)
    assert done == ["eigh float64", "svd float64"]
    assert found.retried
    assert found.left.dtype == torch.float32
    torch.testing.assert_close(found.singular, wanted.singular)
    torch.testing.assert_close(compose(*found[:3]), matrix)


def test_the_shorter_side_alone_survives_an_svd_that_does_not_converge(fail_once: Any) -> None:
    matrix = torch.randn(2, 7, 5)
    wanted = smaller_basis(matrix)
    fail_once()
    found = smaller_basis(matrix)
    torch.testing.assert_close(found.singular, wanted.singular)
    torch.testing.assert_close((found.basis.mT @ wanted.basis).abs(), torch.eye(5).expand(2, 5, 5))


def test_a_retry_is_noted_with_the_layer(fail_once: Any) -> None:
    network, images = SmallNet().eval(), torch.randn(2, 3, 12, 12)
    wanted = network(images)
    fail_once()
    svd = decompose(network, (3, 12, 12))
    assert svd.notes == ("the SVD of layer 'stem' did not converge and was repeated in float64 on the CPU",)
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
    assert svd.notes == ("the SVD of layer 'body' did not converge and was repeated in float64 on the CPU",)
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


def test_a_layer_is_taken_out_of_svd_form_without_its_copy() -> None:
    """Copies share the class that torch made; its own remove_parametrizations breaks the weights of all."""
    layer = nn.Conv2d(3, 4, 3)
    attach(layer, "spatial")
    other = copy.deepcopy(layer)
    detach(layer)
    assert type(layer) is nn.Conv2d
    assert is_attached(other)
    torch.testing.assert_close(other.weight, layer.weight)
    assert other.weight.requires_grad
    detach(other)
    assert type(other) is nn.Conv2d

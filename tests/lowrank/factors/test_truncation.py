"""Truncation weighted with the data: patches, moments, and the least output error at a rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lrexport.config.goals import Macs
from lrexport.errors import InputError
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import build_pair, fold
from lrexport.lowrank.factors.moments import input_moments
from lrexport.lowrank.factors.truncation import Selection, balanced, truncations, weighted_basis
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.patches import draw, outputs_at, patches_at, positions, sizes_of
from lrexport.lowrank.selection.select import select
from lrexport.plan import Pair
from tests.conftest import relative_error
from tests.lowrank.factors.test_fold import full_rank_plan


@st.composite
def layers_and_inputs(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A layer of any kind, with every setting, and an input for it."""
    axes = draw(st.integers(0, 3))
    torch.manual_seed(draw(st.integers(0, 99)))
    if axes == 0:
        return nn.Linear(5, 4, bias=draw(st.booleans())), torch.randn(*draw(st.sampled_from([(6,), (2, 3), (2, 1, 2)])), 5)
    groups, transposed = draw(st.sampled_from([1, 1, 2])), draw(st.booleans())

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes)))

    kernel, stride, dilation, padding = each(1, 3), each(1, 2), each(1, 2), each(0, 1)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups, "bias": draw(st.booleans())}
    if transposed:
        kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        options["output_padding"] = tuple(min(1, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    else:
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        if draw(st.booleans()):
            options |= {"padding": "same", "stride": 1}
    layer = kinds[axes - 1](2 * groups, 3 * groups, kernel, **options)
    return layer, torch.randn(2, 2 * groups, *each(5, 7)[:axes])


@settings(max_examples=120, deadline=None)
@given(layers_and_inputs(), st.integers(1, 40))
def test_an_output_is_the_kernel_times_its_patch_for_every_kind_of_layer(
    made: tuple[nn.Module, torch.Tensor], most: int
) -> None:
    layer, given_input = made
    with torch.no_grad():
        output = layer(given_input)
        numbers = draw(positions(output, layer), most, torch.Generator().manual_seed(0))
        spec = spec_of(layer)
        patches = patches_at(layer, given_input, sizes_of(output, layer), numbers).reshape(len(numbers), spec.groups, -1)
        kernel = layer.weight
        if spec.transposed:
            kernel = kernel.unflatten(0, (spec.groups, -1)).transpose(1, 2)
        kernel = kernel.reshape(spec.groups, spec.out_channels // spec.groups, -1)
        found = torch.einsum("gok,ngk->ngo", kernel, patches).flatten(1)
        found = found + (layer.bias if layer.bias is not None else 0)
    torch.testing.assert_close(found, outputs_at(layer, output, numbers), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (3, 6, 10), (3, 10, 6)], ids=str)
def test_the_weighted_basis_loses_least_on_inputs_with_that_moment(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    inputs = torch.randn(*shape[:-2], 400, shape[-1], dtype=torch.float64) @ torch.randn(shape[-1], shape[-1]).double()
    moment = inputs.mT @ inputs / 400
    basis, energy, _ = weighted_basis(matrix, moment)
    assert bool((energy.diff(dim=-1) <= 0).all())
    for rank in (1, 3, 5):
        kept = basis[..., :rank]
        error = (inputs @ (matrix - kept @ (kept.mT @ matrix)).mT).square().sum((-2, -1)) / 400
        # Eckart–Young: no other matrix of that rank loses less than the singular values left out.
        wanted = torch.linalg.svdvals(matrix @ torch.linalg.cholesky(moment)).square()[..., rank:].sum(-1)
        torch.testing.assert_close(error, wanted, rtol=1e-3, atol=1e-5 * float(energy.max()))


def test_inputs_that_never_vary_do_no_harm() -> None:
    matrix, moment = torch.randn(6, 9), torch.zeros(9, 9)
    moment[:2, :2] = torch.eye(2)
    basis, *_ = weighted_basis(matrix, moment)
    torch.testing.assert_close(basis @ (basis.mT @ matrix), matrix)  # exact at full rank all the same
    assert torch.isfinite(weighted_basis(matrix, torch.zeros(9, 9))[0]).all()


@pytest.mark.parametrize("shape", [(12, 8), (3, 12, 8)], ids=str)
def test_a_moment_that_rounding_left_with_negative_eigenvalues_does_no_harm(shape: tuple[int, ...]) -> None:
    """Inputs that are all alike: what float32 rounds off the one large eigenvalue is more than the floor of the others."""
    matrix, alike = torch.randn(shape, dtype=torch.float64), torch.randn(*shape[:-2], 8, 1, dtype=torch.float64)
    moment = alike @ alike.mT
    rounded = moment - 1e-4 * moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(8)
    basis, energy, _ = weighted_basis(matrix, rounded)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(8, dtype=torch.float64).expand(*shape[:-2], 8, 8))
    first = basis[..., :1]
    torch.testing.assert_close(first @ first.mT @ matrix @ alike, matrix @ alike, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(energy[..., 0], (matrix @ alike).square().sum((-2, -1)), rtol=1e-3, atol=0)
    assert bool((energy[..., 1:] < 1e-3 * energy[..., :1]).all())


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (3, 10, 6)], ids=str)
def test_a_basis_that_does_not_converge_is_found_by_an_svd(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, inputs = torch.randn(shape, dtype=torch.float64), torch.randn(*shape[:-2], 400, shape[-1], dtype=torch.float64)
    for moment in (
        inputs.mT @ inputs / 400,
        -1e-3 * torch.eye(shape[-1]).double() + inputs[..., :1, :].mT @ inputs[..., :1, :],
    ):
        wanted = weighted_basis(matrix, moment)

        def failing(_matrix: torch.Tensor) -> Any:
            raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

        with monkeypatch.context() as patch:
            patch.setattr(torch.linalg, "eigh", failing)
            found = weighted_basis(matrix, moment)
        assert (found.retried, wanted.retried) == (True, False)
        torch.testing.assert_close(found.energy, wanted.energy, rtol=1e-9, atol=1e-9 * float(wanted.energy.max()))
        for rank in (1, shape[-2] if shape[-2] < shape[-1] else shape[-1]):
            kept, same = found.basis[..., :rank], wanted.basis[..., :rank]
            torch.testing.assert_close(kept @ (kept.mT @ matrix), same @ (same.mT @ matrix), rtol=1e-5, atol=1e-5)


def test_a_retry_is_noted_with_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    svd = decompose(network, (3, 9, 9))
    moments = input_moments(svd, [(torch.randn(4, 3, 9, 9), torch.zeros(4))])
    eigh, calls = torch.linalg.eigh, []

    def failing_once(matrix: torch.Tensor) -> Any:
        calls.append(matrix)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", failing_once)
    note = "the SVD of layer '0' did not converge and was repeated in float64 on the CPU"
    assert note in select(svd, Macs(0.6), moments=moments).warnings


@pytest.mark.slow
@pytest.mark.parametrize("sized", [True, False])
def test_of_very_many_batches_the_first_are_looked_at(sized: bool) -> None:
    svd = decompose(nn.Sequential(nn.Linear(4, 4)), (4,))
    images, labels, read = torch.randn(10_002, 1, 4), torch.zeros(1), []

    class Batches:
        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for image in images:
                read.append(image)
                yield image, labels

    class Counted(Batches):
        def __len__(self) -> int:
            return len(images)

    (moment,) = input_moments(svd, Counted() if sized else Batches())["0"].values()
    assert len(read) == 10_000
    torch.testing.assert_close(moment, images[:10_000, 0].mT @ images[:10_000, 0] / 10_000, rtol=1e-4, atol=1e-5)


def test_what_is_looked_at_does_not_depend_on_whether_batches_are_counted() -> None:
    svd = decompose(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 99, 99))
    batches = [(torch.randn(2, 3, 99, 99), torch.zeros(2)) for _ in range(3)]
    (listed,) = input_moments(svd, batches)["0"].values()
    (yielded,) = input_moments(svd, (batch for batch in batches))["0"].values()
    assert torch.equal(listed, yielded)


def test_inputs_that_overflow_are_said_with_the_layer() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    with torch.no_grad():
        network[0].weight.mul_(1e25)
    svd = decompose(network, (3, 9, 9))
    moments = input_moments(svd, [(torch.randn(4, 3, 9, 9), torch.zeros(4))])
    with pytest.raises(InputError, match="the input of layer '2' is not finite, or too large"):
        select(svd, Macs(0.6), moments=moments)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scheme", ["channel", "input-channel", "spatial"])
def test_weighting_with_the_data_lowers_the_error_of_the_layer_s_output(scheme: str, groups: int) -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)
    network = nn.Sequential(layer).eval()
    # Smooth inputs of unlike strength: most directions of the kernel hardly matter.
    images = torch.nn.functional.avg_pool2d(torch.randn(16, 8, 14, 14), 3, 1) * torch.logspace(0, -2, 8).view(1, 8, 1, 1)
    wanted = network(images)
    svd = decompose(network, (8, 12, 12), scheme)  # type: ignore[arg-type]
    moments = input_moments(svd, [(images, torch.zeros(16))], {"0": [scheme]})  # type: ignore[dict-item]
    errors = []
    for found in (truncations(svd, moments), truncations(svd)):
        pair = build_pair(network[0], scheme, *found["0"][scheme].factors(3))  # type: ignore[arg-type,index]
        errors.append(float((pair(images) - wanted).detach().square().mean() / wanted.detach().square().mean()))
    assert errors[0] < 0.7 * errors[1]
    if scheme == "channel":  # there the energy dropped is the error itself
        assert errors[0] == pytest.approx(float(truncations(svd, moments)["0"]["channel"].energy_dropped[3]), rel=0.02)


def test_at_full_rank_weighted_factors_leave_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, 2), nn.Flatten(), nn.Linear(726, 7))
    images = torch.randn(4, 3, 7, 7)
    wanted = network.eval()(images)
    svd = decompose(network, (3, 7, 7))
    every = {name: tuple(layer.schemes) for name, layer in svd.layers.items()}
    found = truncations(svd, input_moments(svd, [(images, torch.zeros(4))], every), every)
    folded = fold(svd, Selection(full_rank_plan(svd), truncations=found))
    assert relative_error(folded(images), wanted) <= 1e-5


def test_without_data_the_factors_are_the_singular_vectors() -> None:
    svd = decompose(nn.Sequential(nn.Conv2d(6, 7, 3)), (6, 9, 9))
    plan = select(svd, Macs(0.6)).plan
    assert isinstance(plan["0"], Pair)
    with_truncations, plain = fold(svd, Selection(plan, truncations=truncations(svd))), fold(svd, plan)
    images = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(with_truncations(images), plain(images), atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(with_truncations.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.norm(), theirs.norm())


def test_balancing_keeps_the_product_and_gives_both_sides_the_same_scale() -> None:
    left, right = torch.randn(3, 7, 4) * 100, torch.randn(3, 4, 9)
    right[0, 0] = 0
    balanced_left, balanced_right = balanced(left, right)
    torch.testing.assert_close(balanced_left @ balanced_right, left @ right)
    before, after = balanced_left.norm(dim=-2), balanced_right.norm(dim=-1)
    torch.testing.assert_close(before[1:], after[1:])


def test_moments_are_averages_over_all_batches_and_all_places_of_a_shared_layer() -> None:
    shared = nn.Linear(6, 6)
    network = nn.Sequential(shared, nn.ReLU(), shared)
    svd = decompose(network, (6,))
    batches = [(torch.randn(5, 6), torch.zeros(5)) for _ in range(3)]
    given = torch.cat([images for images, _ in batches])
    seen = torch.cat([given, torch.relu(shared(given)).detach()])
    found = input_moments(svd, batches, {"0": ["linear"]})["0"]["linear"]
    torch.testing.assert_close(found, seen.mT @ seen / len(seen))


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_a_rank_that_saves_nothing_has_the_best_factors_too(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    svd = decompose(nn.Sequential(nn.Linear(*shape), nn.Linear(shape[1], 12)), (shape[0],))
    truncation = truncations(svd)["0"]["linear"]
    assert truncation.basis.shape[-1] < 4
    matrix = truncation.matrix.detach()
    for rank in range(1, 5):
        left, right = truncation.factors(rank)
        lost = (matrix - left @ right).square().sum() / matrix.square().sum()
        torch.testing.assert_close(lost.double(), truncation.energy_dropped[rank], atol=1e-6, rtol=1e-4)

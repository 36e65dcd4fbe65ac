"""What the functions of the Python API say of arguments that they cannot use: always an error of the family."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

import lrexport
from lrexport import InputError, UsageError
from lrexport.lowrank.factors.decompose import SVDNetwork

SHAPE = (3, 8, 8)


def _network() -> nn.Module:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), *head)


@pytest.fixture(scope="module")
def svd() -> SVDNetwork:
    return lrexport.decompose(_network(), SHAPE)


MISTAKES: dict[str, tuple[Callable[[Any], object], type[Exception], str]] = {
    "no network": (lambda _: lrexport.decompose(None, SHAPE), UsageError, "invalid network of type NoneType"),
    "nothing to make plain": (lambda _: lrexport.make_plain(3, SHAPE), UsageError, "invalid network of type int"),
    "nothing to load into": (lambda _: lrexport.load_weights(3, "w.pt"), UsageError, "invalid network of type int"),
    "a shape that is a number": (lambda _: lrexport.decompose(_network(), 8), UsageError, "invalid example_inputs 8"),
    "a network that is not decomposed": (
        lambda _: lrexport.select(_network(), lrexport.Macs(0.5)),
        UsageError,
        "not a Sequential",
    ),
    "a goal in words": (lambda _: lrexport.Macs("half"), UsageError, "invalid macs 'half': expected a number"),
    "a goal without its unit": (lambda svd: lrexport.select(svd, 0.5), UsageError, "invalid goal 0.5: expected one of Macs"),
    "losses of a plain network": (
        lambda _: lrexport.losses(_network()),
        UsageError,
        "expected the result of lrexport.decompose",
    ),
    "folding a plain network": (
        lambda _: lrexport.fold(_network(), {}),
        UsageError,
        "expected the result of lrexport.decompose",
    ),
    "no plan": (lambda svd: lrexport.fold(svd, None), UsageError, "invalid plan: expected layers by name, not a NoneType"),
    "batches that are a number": (lambda svd: lrexport.input_moments(svd, 3), UsageError, "invalid batch of type int"),
    "batches of text": (lambda svd: lrexport.input_moments(svd, ["a"]), UsageError, "invalid batch of type str"),
    "batches of dictionaries": (
        lambda svd: lrexport.input_moments(svd, [{"image": torch.ones(1, *SHAPE), "label": torch.ones(1)}]),
        UsageError,
        "expected a tensor",
    ),
    "images of another shape": (lambda svd: lrexport.input_moments(svd, [torch.ones(2, 4, 8, 8)]), InputError, "(4, 8, 8)"),
    "images for reconstruction in a list": (
        lambda svd: lrexport.reconstruct(svd.network, svd, {}, ["one.png", "two.png"]),
        UsageError,
        "invalid inputs of type list: expected a tensor (N, …)",
    ),
    "images for reconstruction of another shape": (
        lambda svd: lrexport.reconstruct(svd.network, svd, {}, torch.ones(2, 4, 8, 8)),
        InputError,
        "(4, 8, 8)",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_an_argument_is_an_error_of_the_family(what: str, svd: SVDNetwork) -> None:
    call, kind, message = MISTAKES[what]
    with pytest.raises(kind) as caught:
        call(svd)
    assert message in str(caught.value)


def test_inputs_are_taken_with_labels_without_and_as_one_batch(svd: SVDNetwork) -> None:
    images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    forms: list[Iterable[Any]] = [[(images, torch.zeros(4))], [[images, None]], [images], images, iter([(images,)])]
    wanted = lrexport.input_moments(svd, forms[0])
    for form in forms[1:]:
        moments = lrexport.input_moments(svd, form)
        assert all(torch.equal(value, wanted[name][scheme]) for name, of in moments.items() for scheme, value in of.items())


def test_one_pattern_may_be_a_text() -> None:
    assert "0" in lrexport.decompose(_network(), SHAPE, keep="0").dense

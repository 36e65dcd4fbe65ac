"""SQNR and agreement against the dense network's outputs, by their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lrexport.errors import InputError
from lrexport.tasks.distillation import followed
from lrexport.tasks.fidelity import AGREEMENT, MOST_DB, SQNR, FidelityMeter, decibels


def measured(*batches: tuple[object, object]) -> dict[str, float]:
    meter = FidelityMeter()
    for outputs, dense in batches:
        meter.update(outputs, dense)
    return meter.compute()


def test_sqnr_is_the_power_of_the_dense_output_over_that_of_the_error_in_decibels() -> None:
    dense = torch.tensor([[3.0], [4.0]])  # Σ y² = 25
    assert measured((dense + 0.5, dense))[SQNR] == pytest.approx(10 * math.log10(25 / 0.5))


def test_sums_are_over_all_samples_whatever_the_batches() -> None:
    dense, mine = torch.randn(10, 3, 4, 4), torch.randn(10, 3, 4, 4)
    whole = measured((mine, dense))
    assert measured((mine[:7], dense[:7]), (mine[7:], dense[7:])) == pytest.approx(whole)
    assert whole[SQNR] != pytest.approx((measured((mine[:7], dense[:7]))[SQNR] + measured((mine[7:], dense[7:]))[SQNR]) / 2)


def test_of_several_outputs_each_has_its_own_and_the_mean_is_in_decibels() -> None:
    mask, depth = torch.randn(4, 2, 5, 5), 1000 * torch.randn(4, 1, 5, 5)
    values = measured(({"mask": 1.1 * mask, "depth": 1.01 * depth}, {"mask": mask, "depth": depth}))
    assert values == pytest.approx({SQNR: 30, f"{SQNR} mask": 20, f"{SQNR} depth": 40}, abs=1e-3)


def test_agreement_is_the_share_of_samples_with_the_same_highest_score() -> None:
    dense = torch.eye(4)
    mine = dense[[0, 1, 2, 2]]
    assert measured((mine, dense))[AGREEMENT] == 0.75
    assert AGREEMENT not in measured((torch.randn(4, 1), torch.randn(4, 1)))  # one number is no score of classes
    assert AGREEMENT not in measured((torch.randn(4, 3, 2), torch.randn(4, 3, 2)))


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (1.0, 0.0, MOST_DB),
        (1.0, math.nan, -MOST_DB),
        (math.inf, math.inf, -MOST_DB),
        (0.0, 0.0, MOST_DB),
        (0.0, 1.0, -MOST_DB),
        (1e-300, 1e300, -MOST_DB),
        (1e300, 1e-300, MOST_DB),
    ],
)
def test_decibels_stay_finite_for_equal_and_for_silent_outputs(signal: float, noise: float, expected: float) -> None:
    assert decibels(signal, noise) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_output_that_is_no_number_has_the_least_sqnr(bad: float) -> None:
    assert measured((torch.full((2, 3), bad), torch.ones(2, 3)))[SQNR] == -MOST_DB


def test_integers_are_not_compared_and_further_outputs_of_training_mode_are_left_out() -> None:
    dense = {"logits": torch.ones(2, 3), "classes": torch.tensor([1, 2])}
    outputs = {"logits": torch.ones(2, 3), "classes": torch.tensor([0, 0]), "aux": torch.ones(2, 3)}
    assert list(followed(outputs, dense)) == ["logits"]
    logits = torch.ones(2, 3)
    ((mine, _),) = followed((logits, torch.zeros(2, 3)), torch.ones(2, 3)).values()
    assert mine is logits


@pytest.mark.parametrize(
    ("outputs", "dense", "message"),
    [
        (torch.ones(2, 4), torch.ones(2, 3), "the network returns shape (2, 4) for 'output'; expected shape (2, 3)"),
        ({"out": torch.ones(2)}, {"mask": torch.ones(2)}, "the network returns nothing for 'mask'; expected shape (2,)"),
        (torch.tensor([1]), torch.tensor([1]), "the dense network returns no floating-point tensor"),
    ],
    ids=["shape", "name", "integers"],
)
def test_outputs_that_cannot_follow_are_refused(outputs: object, dense: Tensor, message: str) -> None:
    with pytest.raises(InputError) as refused:
        followed(outputs, dense)
    assert refused.value.message.startswith(message)
    assert refused.value.hint

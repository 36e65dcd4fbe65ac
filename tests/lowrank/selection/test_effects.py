"""Layers that matter more to the outputs keep more of their energy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lrexport.config.goals import Macs
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.truncation import Selection
from lrexport.lowrank.selection.effects import with_effects
from lrexport.lowrank.selection.problem import Problem
from lrexport.lowrank.selection.solve import choose
from lrexport.plan import Pair, Plan

SHAPE = (8, 10, 10)


class Scaled(nn.Module):
    """Two layers with the same kernel; the output of the first counts ten times as much."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loud = nn.Conv2d(8, 8, 3, padding=1)
        self.quiet = copy.deepcopy(self.loud)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([10 * self.loud(x), self.quiet(x)], 1)


def relative_error(dense: nn.Module, images: Tensor, network: nn.Module) -> float:
    with torch.no_grad():
        wanted, outputs = dense(images), network(images)
    return float((outputs - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


class Known:
    """Outputs whose errors a function gives: of a network, and of a selection."""

    def __init__(
        self, error: Callable[[nn.Module], float | None], repaired: Callable[[Selection], float | None] | None = None
    ):
        self.error_of = error
        self.error_after_repair = repaired or (lambda _selection: 0.0)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_the_effect_of_a_layer_is_its_error_in_the_output_for_the_energy_it_drops(images: Tensor) -> None:
    dense = Scaled()
    svd = decompose(copy.deepcopy(dense), SHAPE)
    problem = Problem(svd)
    found = with_effects(svd, problem.truncations, Known(lambda network: relative_error(dense, images, network)))
    loud, quiet = (found[name]["spatial"].effect for name in ("loud", "quiet"))
    assert loud is not None
    assert quiet is not None
    assert loud == pytest.approx(100 * quiet, rel=1e-3)  # ten times the error, squared
    # White noise weights all directions alike: the share of energy dropped is the share of the output's variance.
    assert loud + quiet == pytest.approx(1, rel=0.2)


def kept(plan: Plan) -> list[float]:
    return [each.energy_kept if isinstance(each, Pair) else 1.0 for each in plan.values()]


def test_the_layer_that_counts_more_keeps_more_of_its_energy(images: Tensor) -> None:
    dense = Scaled()
    svd = decompose(copy.deepcopy(dense), SHAPE)
    loud, quiet = kept(choose(Macs(0.5), Problem(svd)).plan)
    assert loud == pytest.approx(quiet, abs=0.1)

    def after_repair(selection: Selection) -> float:
        return relative_error(dense, images, fold(svd, selection))

    outputs = Known(lambda network: relative_error(dense, images, network), after_repair)
    louder, quieter = kept(choose(Macs(0.5), Problem(svd, outputs=outputs)).plan)
    assert louder > loud
    assert louder > quieter


def test_a_plan_by_effects_that_is_no_closer_after_repair_is_not_taken(images: Tensor) -> None:
    dense = Scaled()
    svd = decompose(copy.deepcopy(dense), SHAPE)
    alone = choose(Macs(0.5), Problem(svd)).plan
    for repaired in (0.1, None, math.nan):
        errors = iter([0.1, repaired])
        outputs = Known(
            lambda network: relative_error(dense, images, network), lambda _selection, errors=errors: next(errors)
        )
        assert choose(Macs(0.5), Problem(svd, outputs=outputs)).plan == alone
        assert next(errors, "both were compared") == "both were compared"


def test_the_rule_of_the_paper_looks_at_energies_alone() -> None:
    svd = decompose(Scaled(), SHAPE)

    def never(_anything: object) -> float:
        raise AssertionError("outputs were looked at")

    assert choose(Macs(0.5), Problem(svd, rule="threshold", outputs=Known(never, never))).has_pairs


def test_measuring_changes_neither_the_network_nor_what_is_known(images: Tensor) -> None:
    dense = Scaled()
    svd = decompose(copy.deepcopy(dense), SHAPE)
    truncated = Problem(svd).truncations
    before = {name: tensor.clone() for name, tensor in svd.network.state_dict().items()}
    seen: list[dict[str, Tensor]] = []

    def error_of(network: nn.Module) -> float:
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return 0.1

    with_effects(svd, truncated, Known(error_of))
    assert all(torch.equal(tensor, before[name]) for name, tensor in svd.network.state_dict().items())
    first, second = seen  # one layer at a time
    assert not torch.equal(first["loud.weight"], second["loud.weight"])
    torch.testing.assert_close(first["quiet.weight"], dense.quiet.weight.detach())
    torch.testing.assert_close(second["loud.weight"], dense.loud.weight.detach())


@pytest.mark.parametrize("error", [None, math.nan, math.inf])
def test_an_error_that_is_unknown_weights_nothing(error: float | None) -> None:
    svd = decompose(Scaled(), SHAPE)
    truncated = Problem(svd).truncations
    assert with_effects(svd, truncated, Known(lambda _network: error)) is truncated


def test_a_layer_whose_error_is_unknown_counts_as_much_as_the_others() -> None:
    svd = decompose(Scaled(), SHAPE)
    truncated, errors = Problem(svd).truncations, iter([0.2, None])
    found = with_effects(svd, truncated, Known(lambda _network: next(errors)))
    assert found["quiet"]["spatial"].effect == pytest.approx(found["loud"]["spatial"].effect)

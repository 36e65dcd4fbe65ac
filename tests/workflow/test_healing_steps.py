"""Steps of healing on a clock that only losses move."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from lrexport.workflow.healing_steps import Inputs, Run, Taken, take_steps


class Clock:
    """A second for every 100 inputs of a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def train(self, run: Run, goes_on: bool = True) -> tuple[Taken, list[Tensor]]:
        """What was taken, and the numbers of the inputs of each step."""
        network, seen = nn.Linear(3, 1), list[Tensor]()

        def loss_of(index: Tensor) -> Tensor:
            seen.append(index)
            self.now += len(index) / 100
            return network(torch.ones(len(index), 3)).square().mean()  # type: ignore[no-any-return]

        inputs = Inputs(500, torch.Generator().manual_seed(0))
        return take_steps(network, list(network.parameters()), loss_of, inputs, run, lambda: goes_on), seen


@pytest.mark.parametrize(("seconds", "size"), [(40, 32), (25, 32), (20, 32), (15, 16), (8, 8), (1.5, 8)])
def test_steps_get_smaller_where_there_is_no_time_for_enough_of_them(
    seconds: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, seen = Clock(monkeypatch).train(Run(0.01, 100, 60, seconds))  # 32 s of steps, 19.2 s of enough
    sizes = [len(index) for index in seen]
    assert sizes == [32] * 3 + [size] * (len(sizes) - 3)
    assert taken.steps == len(sizes)
    assert taken.late == (seconds < 32)
    assert sum(sizes) / 100 == pytest.approx(min(seconds, 32), abs=0.33)


def test_every_input_comes_once_before_any_comes_again_whatever_the_steps_sizes() -> None:
    inputs = Inputs(100, torch.Generator().manual_seed(0))
    first = torch.cat([inputs.take(size) for size in (32, 8, 8, 16, 32)])
    assert len(set(first.tolist())) == 96
    assert len(inputs.take(32)) == 32


def test_a_few_inputs_are_all_taken_in_each_step() -> None:
    inputs = Inputs(5, torch.Generator().manual_seed(0))
    assert all(sorted(inputs.take(32).tolist()) == list(range(5)) for _ in range(3))


def test_a_run_that_is_given_up_says_what_is_left_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, seen = Clock(monkeypatch).train(Run(0.01, 100, 100, 40, (0.25,)), goes_on=False)
    assert taken == Taken(25, left=75, given_up=True)
    assert len(seen) == 25

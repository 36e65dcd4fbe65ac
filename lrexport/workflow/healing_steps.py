"""Steps of healing: Adam with a learning rate relative to each weight, which falls to zero over the steps or the time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrexport.torch_tools.modes import eval_mode

BATCH = 32  # inputs of a step
# Without time for enough steps, smaller ones: 800 steps of 8 inputs took a detector as far in 127 s as 490 of 32 in 218 s.
# But with several threads small networks take half as long for 8 inputs as for 32.
_LEAST_BATCH = 8
_TIMED = 3  # steps before this is decided by the fastest: the first one prepares memory and kernels
_LEAST_RMS = 1e-3  # for biases that are 0


@dataclass(frozen=True)
class Run:
    """At most ``steps`` steps until ``deadline``, of time.monotonic(), from a ``rate`` relative to the RMS of each weight.

    Where the time is too short for ``enough`` of them, steps have fewer inputs. ``looks`` are shares of the run, ascending,
    after which is asked whether it goes on.
    """

    rate: float
    steps: int
    enough: int
    deadline: float
    looks: Sequence[float] = ()


@dataclass(frozen=True)
class Taken:
    """How many steps were taken, and how many are ``left``; whether the run was given up, by answer or for a loss that is
    not finite; ``late``: steps were left out, or had fewer inputs, for lack of time.
    """

    steps: int
    left: int = 0
    given_up: bool = False
    late: bool = False


class Inputs:
    """Numbers of ``count`` inputs in random order, all of them before any comes again."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count, self._generator = count, generator
        self._order = torch.empty(0, dtype=torch.int64)

    def take(self, most: int) -> Tensor:
        """The next ones, as many as asked for or all there are."""
        if len(self._order) < min(most, self._count):
            self._order = torch.randperm(self._count, generator=self._generator)
        taken, self._order = self._order[:most], self._order[most:]
        return taken


def take_steps(
    network: nn.Module,
    parameters: list[nn.Parameter],
    loss_of: Callable[[Tensor], Tensor],
    inputs: Inputs,
    run: Run,
    goes_on: Callable[[], bool],
) -> Taken:
    """Train ``parameters`` of a network in eval mode on the loss of inputs, by number."""
    groups = [{"params": [each], "rate": run.rate * max(_LEAST_RMS, _rms(each))} for each in parameters]
    optimizer = torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99))
    started, looks = time.monotonic(), list(run.looks)
    step, seen, total, batch, fastest = 0, 0, run.steps * BATCH, BATCH, math.inf

    def taken(given_up: bool = False, late: bool = False) -> Taken:
        return Taken(step, math.ceil((total - seen) / BATCH), given_up, late or batch < BATCH)

    with torch.enable_grad(), eval_mode(network), _only(network, parameters):
        while seen < total:
            now = time.monotonic()
            if now >= run.deadline:
                return taken(late=True)
            if step == _TIMED:
                batch = _affordable(run.deadline - now, (run.enough - step) * fastest)
            progress = max(seen / total, (now - started) / (run.deadline - started))
            if step and looks and progress >= looks[0]:
                looks = [each for each in looks if each > progress]
                if not goes_on():
                    return taken(given_up=True)
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * 0.5 * (1 + math.cos(math.pi * progress))
            began = time.monotonic()
            loss = loss_of(inputs.take(batch))
            if not loss.requires_grad or not bool(loss.isfinite()):
                return taken(given_up=True)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step, seen, fastest = step + 1, seen + batch, min(fastest, time.monotonic() - began)
    return taken()


def _affordable(left: float, needed: float) -> int:
    """Inputs of a step if ``left`` seconds are there, and enough steps of BATCH inputs would need ``needed``."""
    batch = BATCH
    while batch > _LEAST_BATCH and needed > left:
        batch, needed = batch // 2, needed / 2
    return batch


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().float().square().mean().sqrt())


@contextmanager
def _only(network: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside the block, gradients are computed for these parameters and no others, whether they are frozen or not."""
    trained = set(parameters)
    before = {each: each.requires_grad for each in network.parameters()}
    for each in before:
        each.requires_grad_(each in trained)
    try:
        yield
    finally:
        for each, asked in before.items():
            each.requires_grad_(asked)
        for each in parameters:
            each.grad = None

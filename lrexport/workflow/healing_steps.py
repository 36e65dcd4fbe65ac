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
_LEAST_RMS = 1e-3  # for biases that are 0


@dataclass(frozen=True)
class Run:
    """At most ``steps`` steps until ``deadline``, of time.monotonic(), from a ``rate`` relative to the RMS of each weight.

    ``looks`` are shares of the run, ascending, after which is asked whether it goes on.
    """

    rate: float
    steps: int
    deadline: float
    looks: Sequence[float] = ()


@dataclass(frozen=True)
class Taken:
    """How many steps were taken; whether the run was given up, by answer or for a loss that is not finite; the time over."""

    steps: int
    given_up: bool = False
    late: bool = False


def take_steps(
    network: nn.Module,
    parameters: list[nn.Parameter],
    loss_of: Callable[[Tensor], Tensor],
    indices: Iterator[Tensor],
    run: Run,
    goes_on: Callable[[], bool],
) -> Taken:
    """Train ``parameters`` of a network in eval mode on the loss of each of the ``indices``."""
    groups = [{"params": [each], "rate": run.rate * max(_LEAST_RMS, _rms(each))} for each in parameters]
    optimizer = torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99))
    started, looks = time.monotonic(), list(run.looks)
    with torch.enable_grad(), eval_mode(network), _only(network, parameters):
        for step in range(run.steps):
            now = time.monotonic()
            if now >= run.deadline:
                return Taken(step, late=True)
            progress = max(step / run.steps, (now - started) / (run.deadline - started))
            if step and looks and progress >= looks[0]:
                looks = [each for each in looks if each > progress]
                if not goes_on():
                    return Taken(step, given_up=True)
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * 0.5 * (1 + math.cos(math.pi * progress))
            loss = loss_of(next(indices))
            if not loss.requires_grad or not bool(loss.isfinite()):
                return Taken(step, given_up=True)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return Taken(run.steps)


def drawn(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random inputs for each step, all of them before any comes again."""
    order = torch.empty(0, dtype=torch.int64)
    while True:
        if len(order) < min(BATCH, count):
            order = torch.randperm(count, generator=generator)
        yield order[:BATCH]
        order = order[BATCH:]


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

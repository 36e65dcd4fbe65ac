"""The choice of ranks within a budget: lrexport's own solver against HiGHS (scipy.optimize.milp), optimum and CPU time.

python benchmarks/knapsack.py

Problems are those that ``select`` makes of whole networks with random weights, at two shares of their MACs, and random
ones of up to 200 layers. Times are user CPU times of this process (resource.getrusage), the least of several calls: they
hardly depend on what else the machine does. HiGHS is asked twice: for the optimum itself (a relative gap of 0), which it
may look for during 15 seconds, and as it comes, for at most 0.01 % more than the optimum.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy
import torch
from common import machine, write_markdown

from lrexport.config.goals import Macs
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.selection import knapsack
from lrexport.lowrank.selection import select as selection
from lrexport.networks.cifar_resnet import CifarResNet
from lrexport.torch_tools.import_torchvision import torchvision

SHARES = (0.5, 0.3)
# Of layers and most ranks.
RANDOM = ((10, 50), (50, 200), (100, 200), (200, 200))
TIME_LIMIT = 15  # seconds by the clock
DEFAULT_GAP = 1e-4  # of HiGHS
SAME = 1e-9  # of losses, relative: both add up the same numbers, in another order


@dataclass(frozen=True)
class Problem:
    """One option for each layer, at the least total loss, within ``budget``."""

    name: str
    layers: list[knapsack.Options]
    budget: float

    @property
    def options(self) -> int:
        return sum(len(layer.costs) for layer in self.layers)


def of_network(
    name: str, network: torch.nn.Module, input_shape: tuple[int, ...], shares: tuple[float, ...]
) -> Iterator[Problem]:
    """The problems that ``select(svd, Macs(share), every_scheme=True)`` hands to the solver."""
    svd = decompose(network, input_shape, "auto")
    solve, handed = knapsack.minimise, list[tuple[Any, float]]()

    def note(layers: Any, budget: float) -> knapsack.Solution:
        handed.append((layers, budget))
        return solve(layers, budget)

    knapsack.minimise = note  # type: ignore[assignment]
    try:
        for share in shares:
            selection.select(svd, Macs(share), every_scheme=True)
    finally:
        knapsack.minimise = solve  # type: ignore[assignment]
    for share, (layers, budget) in zip(shares, handed, strict=True):
        yield Problem(f"{name}, {share:.0%} of the MACs", layers, budget)


def random_problem(layers: int, ranks: int, share: float) -> Problem:
    """Losses that fall with rank, as singular values give them, at MACs per rank of many sizes."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(layers):
        count = int(generator.integers(ranks // 4, ranks))
        energy = np.sort(generator.exponential(size=count) ** 3)[::-1]
        dropped = np.append(energy[::-1].cumsum()[::-1], 0.0) / energy.sum()
        per_rank = int(generator.integers(1_000, 40_000))
        made.append(knapsack.Options(dropped[1:] ** 0.75, per_rank * np.arange(1, count + 1, dtype=float)))
    budget = share * sum(float(layer.costs.max()) for layer in made)
    return Problem(f"random, {layers} layers, {share:.0%} of the cost", made, budget)


def by_highs(layers: list[knapsack.Options], budget: float, gap: float) -> Any:
    """One binary variable for each option, each layer's add up to 1; costs in units of the budget."""
    counts = [len(layer.costs) for layer in layers]
    losses, costs = (np.concatenate([getattr(layer, part) for layer in layers]) for part in ("losses", "costs"))
    owner = np.repeat(np.arange(len(layers)), counts)
    one_each = scipy.sparse.csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    constraints = [
        scipy.optimize.LinearConstraint(one_each, 1, 1),
        scipy.optimize.LinearConstraint(costs[None] / budget, -np.inf, 1),
    ]
    return scipy.optimize.milp(
        losses,
        integrality=np.ones(len(losses)),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=constraints,
        options={"time_limit": TIME_LIMIT, "mip_rel_gap": gap},
    )


def loss_and_cost(problem: Problem, answer: Any) -> tuple[float, float]:
    """Of the options whose variables are 1, added up from the problem's own numbers; no loss without an answer."""
    if answer.x is None:
        return float("inf"), 0.0
    ends = np.cumsum([len(layer.costs) for layer in problem.layers])[:-1]
    picks = [int(part.argmax()) for part in np.split(answer.x, ends)]
    pairs = list(zip(problem.layers, picks, strict=True))
    return float(sum(layer.losses[i] for layer, i in pairs)), float(sum(layer.costs[i] for layer, i in pairs))


def user_seconds(call: Callable[[], Any], most: int = 3) -> tuple[float, Any]:
    """The least user CPU time of up to ``most`` calls, fewer where they take over a second, and the last result."""
    times: list[float] = []
    while len(times) < most and sum(times) < 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        result = call()
        times.append(resource.getrusage(resource.RUSAGE_SELF).ru_utime - before)
    return min(times), result


def against(problem: Problem, own: knapsack.Solution, answer: Any) -> str:
    """What HiGHS found, in words."""
    loss, cost = loss_and_cost(problem, answer)
    difference = (loss - own.loss) / own.loss
    said = "the same" if abs(difference) <= SAME else f"{difference:+.1e}"
    if cost > problem.budget:
        said += f", {cost / problem.budget - 1:.0e} over the budget"
    return said if answer.status == 0 else f"{said}, not proven at the time limit"


def row(problem: Problem) -> str:
    own_seconds, own = user_seconds(lambda: knapsack.minimise(problem.layers, problem.budget))
    cells = [problem.name, str(len(problem.layers)), f"{problem.options:,}", f"{own.loss:.6f}"]
    cells += ["yes" if own.optimal else "no", f"{own_seconds * 1000:.0f}"]
    for gap in (0, DEFAULT_GAP):
        seconds, answer = user_seconds(partial(by_highs, problem.layers, problem.budget, gap))
        cells += [against(problem, own, answer), f"{seconds * 1000:.0f}"]
    return f"| {' | '.join(cells)} |"


def problems() -> Iterator[Problem]:
    torch.manual_seed(0)
    zoo = torchvision("models")
    for depth in (20, 56):
        yield from of_network(f"ResNet-{depth}", CifarResNet(depth), (3, 32, 32), SHARES)
    yield from of_network("ResNet-18", zoo.resnet18(), (3, 224, 224), SHARES)
    # Depthwise layers stay dense: less than half of its MACs cannot be reached.
    yield from of_network("MobileNetV3 large", zoo.mobilenet_v3_large(), (3, 224, 224), (0.8, 0.6))
    for layers, ranks in RANDOM:
        yield random_problem(layers, ranks, 0.4)


def main() -> None:
    lines = [
        "| problem | layers | options | least loss | proven | lrexport, ms | HiGHS, gap 0 | ms | HiGHS, gap 1e-4 | ms |",
        "|---|--:|--:|--:|---|--:|---|--:|---|--:|",
    ]
    for problem in problems():
        lines.append(row(problem))
        print(lines[-1], flush=True)
    lines += [
        "",
        "HiGHS's losses are relative to lrexport's, both added up from the problem's own numbers; within 1e-9 they are the",
        "same. Times are user CPU times, the least of up to three calls.",
        f"HiGHS stops after {TIME_LIMIT} s by the clock, on a busy machine with less CPU time: its columns show how much.",
    ]
    where = f"{machine()}, scipy {scipy.__version__}"
    write_markdown("knapsack.md", "The choice of ranks: lrexport's solver and HiGHS", lines, where)


if __name__ == "__main__":
    main()

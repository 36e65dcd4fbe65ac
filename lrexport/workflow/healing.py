"""Healing without labels: short training of a folded network's parts, one after the other, against the dense network.

Each pair, then each block, then the whole network learns to return what the same part of the dense network returns. The
inputs of a part are those it gets in the folded network, its targets the outputs in the dense network: so each part also
makes up for the errors of those before it (as in Li et al. 2021, "BRECQ", arXiv 2102.05426, for rounding). BatchNorm keeps
its statistics and dropout is off. What does not bring the network's outputs closer on held-out inputs is undone.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.data.unlabelled import Unlabelled
from lrexport.lowrank.repair.observed import called_until, decisive, outputs_of
from lrexport.lowrank.repair.parts import Kind, Part, called_once, own_parameters, parts_of
from lrexport.lowrank.repair.recorded_calls import Recorded, UnslicableError, record_inputs, record_outputs
from lrexport.runs.figures import Fidelity
from lrexport.tasks.distillation import following, scaled_errors
from lrexport.tasks.fidelity import SQNR, FidelityMeter
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import flat_tensors
from lrexport.workflow.healing_steps import BATCH, Inputs, Run, take_steps

_READ = 125  # inputs at a time if nothing is trained
_MOST_VALUES = 1 << 26  # of a part's recorded inputs and outputs, 256 MB
_PASSES, _LEAST_INPUTS = 4, 256  # recording takes time: a part has as many inputs as it sees this many times
_RECORDING = 0.3  # the most of a part's time that recording its inputs and outputs takes
_MOST_HELDOUT = 256  # inputs on which each change is judged
# Learning rates relative to the root mean square of a weight: the first of each kind of part, and the least. A run that did
# not help lowers that of the next one, one that helped raises it again. What parts gain at rates below their least is less
# than the whole network gains in the same time.
_RATE = 0.01
_LEAST_RATES: dict[Kind, float] = {"pair": 1e-3, "block": 1e-3, "network": 1e-4}
_LOWERED, _RAISED = 3.0, 1.5
# Shares of a run of the whole network after which it is judged, and the fall in dB with which it is given up. At rates that
# are too high it falls by 3 to 4 dB before the first look, at others by 0.2 dB at most.
_LOOKS, _FALL = (0.125, 0.25, 0.5), 1.0
# Share of the time of all pairs, all blocks and the whole network; steps relative to those of a block.
_TIME: dict[Kind, float] = {"pair": 0.15, "block": 0.35, "network": 0.5}
_STEPS: dict[Kind, float] = {"pair": 0.5, "block": 1.0, "network": 4.0}
_INPUTS = 320  # the whole network has a block's steps for each 320 inputs if these are more: 200 of 32 see them 20 times
# A part with less time than this many judgements takes would hardly be trained between recording and judgement.
_LEAST_JUDGEMENTS = 5.0


@dataclass(frozen=True)
class Effort:
    """The most that healing may take: ``minutes``, and ``steps`` a block; a pair has half, the network four times as many.

    With more than 1280 inputs the network has more: as many times those of a block as there are 320 inputs. If the time is
    enough for all steps, the same seed gives the same network.
    """

    minutes: float = math.inf
    steps: int = 200
    seed: int = 0


OnPart = Callable[[int, int, Part], None]


def heal(
    network: nn.Module,
    dense: nn.Module,
    inputs: Unlabelled,
    heldout: Unlabelled,
    effort: Effort | None = None,
    on_part: OnPart = lambda _done, _of, _part: None,
) -> Fidelity:
    """Train ``network``, folded from ``dense``, in place, on ``inputs`` without labels.

    The networks are on the device of the inputs; ``dense`` consists of plain layers. ``on_part`` gets the number of parts
    that are done and their total, before each part. Raises InputError if the networks' outputs cannot be compared.
    """
    with torch.inference_mode(False):
        return _Healing(network, dense, inputs, heldout, effort or Effort(), on_part).run()


def measured_fidelity(network: nn.Module, dense: nn.Module, inputs: Unlabelled) -> dict[str, float]:
    """How closely a network follows ``dense``: see FidelityMeter. Raises InputError if their outputs cannot be compared."""
    return _Truth(dense, network, inputs).fidelity(network)


class _Truth:
    """The dense network's outputs for held-out inputs."""

    def __init__(self, dense: nn.Module, network: nn.Module, inputs: Unlabelled) -> None:
        (few,) = inputs.draw(3).batches(3)
        self.names = decisive((dense, network), few.filled(3))
        values = sum(each.numel() for each in flat_tensors(_output(dense, self.names, few))) // len(few)
        self.inputs = inputs.draw(max(2, min(_MOST_HELDOUT, _MOST_VALUES // max(1, values))))
        self.outputs = [_output(dense, self.names, batch) for batch in self.inputs.batches(_READ)]

    def fidelity(self, network: nn.Module) -> dict[str, float]:
        meter = FidelityMeter()
        for batch, truth in zip(self.inputs.batches(_READ), self.outputs, strict=True):
            meter.update(_output(network, self.names, batch), truth)
        return meter.compute()


class _Best:
    """The state of a network that follows the dense one most closely of those seen."""

    def __init__(self, network: nn.Module, truth: _Truth) -> None:
        self._network, self._truth = network, truth
        self.fidelity = truth.fidelity(network)
        self._weights = copy.deepcopy(network.state_dict())

    @property
    def decibels(self) -> float:
        return self.fidelity[SQNR]

    def look(self) -> float:
        """The SQNR of the network as it is now, which is kept if it is better."""
        now = self._truth.fidelity(self._network)
        if now[SQNR] > self.decibels:
            self.fidelity, self._weights = now, copy.deepcopy(self._network.state_dict())
        return now[SQNR]

    def restore(self) -> None:
        self._network.load_state_dict(self._weights)


def _holds(best: _Best, decibels: float) -> bool:
    """Whether the network is hardly worse than at ``decibels``."""
    return best.look() > decibels - _FALL


@torch.no_grad()
def _output(network: nn.Module, names: tuple[str, ...], batch: Batch) -> Any:
    with eval_mode(network):
        return outputs_of(network, names, batch)


@dataclass
class _Healing:
    network: nn.Module
    dense: nn.Module
    inputs: Unlabelled
    heldout: Unlabelled
    effort: Effort
    on_part: OnPart
    steps: int = 0
    in_time: bool = True
    names: tuple[str, ...] = ("",)  # the modules whose outputs are those of the network
    began: float = field(default_factory=time.monotonic)
    shares: dict[Kind, float] = field(default_factory=lambda: dict(_TIME))
    rates: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(_TIME, _RATE))  # of the next run
    used: dict[str, float] = field(default_factory=dict)  # in the last run

    def run(self) -> Fidelity:
        truth = _Truth(self.dense, self.network, self.heldout)
        self.names = truth.names
        asked = time.monotonic()
        best = _Best(self.network, truth)
        first = best.fidelity
        judgement = time.monotonic() - asked
        networks = (self.dense, self.network)
        parts = called_once(parts_of(self.network), networks, next(iter(self.inputs.draw(2).batches(2))))
        self._leave_out(parts, judgement)
        kept = 0
        for number, part in enumerate(parts):
            self.on_part(number, len(parts), part)
            before = best.fidelity
            self._train(part, self._deadline(parts, number), best)
            kept += best.fidelity is not before
        seconds = time.monotonic() - self.began
        return Fidelity(
            repaired=first,
            healed=best.fidelity,
            parts=len(parts),
            kept=kept,
            steps=self.steps,
            seconds=round(seconds, 3),
            complete=self.in_time,
            rates=dict(self.used),
        )

    def _leave_out(self, parts: list[Part], judgement: float) -> None:
        """Give pairs, or pairs and blocks, no time if each of them would have hardly any.

        The later ones get it: in the last all weights of the network learn together.
        """
        kinds: list[Kind] = ["pair", "block"]
        for kind in kinds:
            first = next((number for number, part in enumerate(parts) if part.kind == kind), None)
            if first is not None and self._deadline(parts, first) - time.monotonic() < _LEAST_JUDGEMENTS * judgement:
                self.shares[kind] = 0.0

    def _deadline(self, parts: list[Part], number: int) -> float:
        """The time at which part ``number`` must end: its share of the time that is left to it and the later ones."""
        counts = {kind: sum(part.kind == kind for part in parts) for kind in _TIME}
        shares = [self.shares[part.kind] / counts[part.kind] for part in parts[number:]]
        now = time.monotonic()
        left = max(0.0, self.began + 60 * self.effort.minutes - now)
        return now + left * shares[0] / sum(shares)

    def _train(self, part: Part, deadline: float, best: _Best) -> None:
        """Train one part, and leave the best state seen.

        A run whose outputs get clearly worse on held-out inputs is given up: the next starts from the best state at a lower
        rate, for the steps and the time that are left.
        """
        parameters = own_parameters(self.network, part)
        if not parameters or self._hopeless(part.kind):
            return
        recorded = self._record(part, deadline)
        if recorded is None:
            return
        numbers = Inputs(len(recorded[1]), torch.Generator().manual_seed(self.effort.seed))
        loss_of = partial(self._loss, part, *recorded)
        looks, left = _LOOKS if part.kind == "network" else (), self._steps(part)
        while left and not self._hopeless(part.kind):
            start = best.decibels
            run = Run(self.rates[part.kind], left, min(left, self._enough(part)), deadline, looks)
            goes_on = partial(_holds, best, start)
            taken = take_steps(self.network, parameters, loss_of, numbers, run, goes_on)
            self.steps += taken.steps
            self.in_time &= not taken.late
            if not taken.steps:
                break
            self.used[part.kind] = run.rate
            left = taken.left if taken.given_up else 0
            self._follow(part.kind, not taken.given_up and best.look() > start)
            best.restore()

    def _loss(self, part: Part, given: Recorded, targets: Recorded, index: Tensor) -> Tensor:
        module = self.network.get_submodule(part.name)
        if part.kind == "network":
            return following(called_until(module, self.names, given.of(index)), targets.of(index))
        outputs = {part.name: called_until(module, ("",), given.of(index))}  # as recorded
        return scaled_errors(outputs, targets.of(index))

    def _follow(self, kind: Kind, helped: bool) -> None:
        """The rate of the next run of this kind, after one that helped or not."""
        self.rates[kind] = min(_RATE, self.rates[kind] * _RAISED) if helped else self.rates[kind] / _LOWERED

    def _hopeless(self, kind: Kind) -> bool:
        return self.rates[kind] < _LEAST_RATES[kind]

    def _enough(self, part: Part) -> int:
        return max(1, round(self.effort.steps * _STEPS[part.kind]))

    def _steps(self, part: Part) -> int:
        more = len(self.inputs) / _INPUTS if part.kind == "network" else 0.0
        return max(self._enough(part), round(self.effort.steps * more))

    def _record(self, part: Part, deadline: float) -> tuple[Recorded, Recorded] | None:
        """The part's inputs in the network and its targets in the dense one, as many as there is time for.

        None if it cannot be trained alone, or without time.
        """
        if time.monotonic() >= deadline:
            self.in_time = False
            return None
        try:
            few = self._record_some(part, self.inputs.draw(2))
            values = sum(tensor[0].numel() for recorded in few for tensor in recorded.tensors)
            most = min(_MOST_VALUES // max(1, values), max(_LEAST_INPUTS, self._steps(part) * BATCH // _PASSES))
            most = max(2, min(most, len(self.inputs)))
            began, count = time.monotonic(), min(BATCH, most)
            few = self._record_some(part, self.inputs.draw(count))
            now = time.monotonic()
            in_time = count * _RECORDING * (deadline - now) / max(now - began, 1e-9)
            if in_time < most:
                self.in_time = False
                most = int(in_time)
            return self._record_some(part, self.inputs.draw(most)) if most > count else few
        except UnslicableError:
            return None

    def _record_some(self, part: Part, inputs: Unlabelled) -> tuple[Recorded, Recorded]:
        given = record_inputs(self.network, part.name, inputs.batches(_READ))
        names = self.names if part.kind == "network" else (part.name,)
        return given, record_outputs(self.dense, names, inputs.batches(_READ))

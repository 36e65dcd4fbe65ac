"""A stage that was stopped goes on as if it never had been; what is never the best; memory that runs out."""

from __future__ import annotations

import itertools
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lrexport.data.images import ArraySet, ImageData, Splits, hold_out
from lrexport.errors import DeviceError, InputError, Stopped
from lrexport.events import EpochDone, Event, OnEvent, StepDone, ignore_events
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.regularisation.regularisers import ExtraLoss, Regularisers
from lrexport.training.checkpoints import Checkpoints, optimizer_state, restore_optimizer
from lrexport.training.engine import make_fabric
from lrexport.training.loops import Stage, train_stage
from lrexport.training.stopping import stopping_with_hint
from tests.conftest import heed_ctrl_c

STAGE = Stage("svd", epochs=3, lr=0.01, batch_size=32, keep_best=False)


def splits() -> Splits:
    labels = torch.arange(200) % 2
    noise = torch.randint(0, 120, (200, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    part = ArraySet((noise + 100 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)
    return hold_out(ImageData("bright", ["dark", "bright"], part, part), 0.2)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(12, 12, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(48, 2))


def train(stage: Stage, on_event: OnEvent, folder: Path | None = None, strength: float = 0.1) -> nn.Module:
    """SVD training with the regularisers of equation 3, as ``compress`` does it."""
    svd = decompose(network(), (3, 6, 6))
    extra = Regularisers(svd, 1.0, strength, "hoyer")
    kept = Checkpoints(folder, stage.name) if folder is not None else None
    train_stage(svd.network, splits(), stage, make_fabric("cpu", "float32"), on_event, extra, checkpoints=kept)
    return svd.network


def test_a_fixed_strength_that_was_changed_on_the_way_is_the_new_one(tmp_path: Path) -> None:
    stage = Stage("svd", 2, 0.05, batch_size=32, keep_best=False)

    def stop_after_one(event: Event) -> None:
        if isinstance(event, EpochDone):
            os.kill(os.getpid(), signal.SIGTERM)

    ends = []
    for number, strength in enumerate((0.1, 3.0)):
        with pytest.raises(Stopped):
            train(stage, stop_after_one, tmp_path / str(number))
        ends.append(train(stage, ignore_events, tmp_path / str(number), strength).state_dict())
    first, second = (torch.cat([value for name, value in end.items() if name.endswith("original1")]) for end in ends)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("schedule", ["cosine", "step"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_epochs_a_checkpoint_and_one_more_are_three_to_the_bit(optimizer: Any, schedule: Any, tmp_path: Path) -> None:
    stage = Stage("svd", 3, 0.01, batch_size=32, keep_best=False, optimizer=optimizer, schedule=schedule)
    whole = train(stage, ignore_events)

    def stop_after_two(event: Event) -> None:
        if isinstance(event, EpochDone) and event.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="after step 0 of epoch 3"):
        train(stage, stop_after_two, tmp_path)
    later: list[Event] = []
    again = train(stage, later.append, tmp_path)
    assert [event.epoch for event in later if isinstance(event, EpochDone)] == [3]
    for (name, mine), theirs in zip(again.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_an_epoch_that_began_again_with_larger_batches_is_taken_up_where_it_was_stopped_next(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    def life(batch: int, most: int) -> None:
        steps.clear()

        def stop(event: Event) -> None:
            if isinstance(event, StepDone):
                steps.append((event.epoch, event.step))
                if len(steps) == most:
                    os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Stopped):
            train(replace(STAGE, batch_size=batch), stop, tmp_path)

    life(10, most=12)  # of 16 steps
    life(40, most=1)  # of 4, from the first; the step after the signal is finished
    assert steps == [(0, 0), (0, 1)]
    life(40, most=1)
    assert steps == [(0, 2), (0, 3)]


@pytest.mark.parametrize("keep_best", [True, False])
def test_a_stage_that_diverged_goes_on_to_the_bit_from_the_last_checkpoint_that_sound_losses_followed(
    keep_best: bool, tmp_path: Path
) -> None:
    """Weights blow up in the second epoch; the loss is no number only in the fourth, two checkpoints later."""
    fabric, stage = make_fabric("cpu", "float32"), replace(STAGE, epochs=5, keep_best=keep_best)

    def life(net: nn.Module, after: Callable[[int, nn.Module], None] | None = None, folder: Path = tmp_path) -> list[int]:
        later: list[Event] = []
        kept = Checkpoints(folder, stage.name)
        train_stage(net, splits(), stage, fabric, later.append, after_epoch=after, checkpoints=kept)
        return [event.epoch for event in later if isinstance(event, EpochDone)]

    @torch.no_grad()
    def blow_up(epoch: int, net: nn.Module) -> None:
        if epoch > 1:
            net[-1].weight.mul_(-1e3 if epoch == 2 else math.inf)

    with pytest.raises(InputError, match="the loss is nan at step 4 of epoch 4"):
        life(network(), blow_up)
    whole, again = network(), network()
    assert life(whole, folder=tmp_path / "whole") == [1, 2, 3, 4, 5]
    assert life(again) == [2, 3, 4, 5]
    for (name, mine), theirs in zip(again.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_weights_that_are_no_numbers_end_a_stage_even_where_its_last_loss_was_one() -> None:
    net = network()

    class RootOfNothing(ExtraLoss):
        def forward(self) -> torch.Tensor:
            return (net[-1].bias * 0).sum().sqrt()

    stage = Stage("dense", 1, 0.01, batch_size=160)
    with pytest.raises(InputError, match="the weights are no longer finite at step 1 of epoch 1"):
        train_stage(net, splits(), stage, make_fabric("cpu", "float32"), ignore_events, RootOfNothing())


def test_a_parameter_without_axes_gets_back_what_the_optimiser_knew_of_it() -> None:
    net = nn.Module()
    net.temperature = nn.Parameter(torch.tensor(2.0))
    for kind in (torch.optim.SGD, torch.optim.Adam):
        first = kind(net.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
        net.temperature.square().backward()
        first.step()
        again = kind(net.parameters(), lr=0.1)
        restore_optimizer(again, net, optimizer_state(first, net))
        assert dict(again.state[net.temperature]) == dict(first.state[net.temperature])


@pytest.mark.parametrize(("number", "interrupt"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_after_the_last_look_at_it_is_not_lost_and_the_stage_goes_on_to_the_bit(
    number: int, interrupt: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the best epoch's weights are put back, with nothing of the stage left to do."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    heed_ctrl_c()
    fabric, stage = make_fabric("cpu", "float32"), replace(STAGE, keep_best=True)
    whole, net = network(), network()
    train_stage(whole, splits(), stage, fabric, ignore_events)
    load = net.load_state_dict

    def load_and_interrupt(state: dict[str, torch.Tensor]) -> None:
        load(state)
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(net, "load_state_dict", load_and_interrupt)
        with pytest.raises(interrupt):
            train_stage(net, splits(), stage, fabric, ignore_events, checkpoints=Checkpoints(tmp_path, stage.name))
    signal.signal(signal.SIGTERM, before)
    again = network()
    train_stage(again, splits(), stage, fabric, ignore_events, checkpoints=Checkpoints(tmp_path, stage.name))
    for (name, mine), theirs in zip(again.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_an_interrupt_says_how_to_go_on_only_where_there_is_something_to_go_on_with() -> None:
    for can_go_on in (True, False):
        with pytest.raises(Stopped) as said, stopping_with_hint(lambda held=can_go_on: held):
            raise KeyboardInterrupt
        assert (said.value.exit_code, said.value.message) == (130, "stopped")
        assert ("--resume" in str(said.value.hint)) == can_go_on
    with pytest.raises(SystemExit) as other, stopping_with_hint(lambda: True):
        sys.exit(1)  # the reader of what is printed went away
    assert other.value.code == 1


def test_a_metric_that_is_not_a_number_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = itertools.chain([0.1, math.nan, 0.6, math.nan])
    monkeypatch.setattr("lrexport.training.stage_run.score", lambda *_, **__: SimpleNamespace(primary=next(scores)))
    states: list[dict[str, torch.Tensor]] = []
    net = network()

    def remember(epoch: int, trained: nn.Module) -> None:
        states.append({name: value.clone() for name, value in trained.state_dict().items()})

    train_stage(
        net, splits(), Stage("dense", 3, 0.01, 32), make_fabric("cpu", "float32"), ignore_events, after_epoch=remember
    )
    for name, value in net.state_dict().items():
        assert torch.equal(value, states[1][name])


class Raising(ExtraLoss):
    """A term whose computation raises ``error``."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        MemoryError(),
    ],
    ids=["CUDA", "CPU", "Apple", "Python"],
)
def test_memory_that_runs_out_is_said_with_the_batch_and_what_to_try(error: Exception) -> None:
    stage = Stage("dense", 1, 0.01, batch_size=32, accumulate=2)
    with pytest.raises(DeviceError) as said:
        train_stage(network(), splits(), stage, make_fabric("cpu", "float32"), ignore_events, Raising(error))
    assert said.value.message == "out of memory on cpu in dense training, with --batch-size 32 in 2 portions"
    assert "--accumulate 4" in str(said.value.hint)
    assert "smaller --batch-size" in str(said.value.hint)


def test_any_other_error_of_a_step_is_left_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        train_stage(
            network(),
            splits(),
            STAGE,
            make_fabric("cpu", "float32"),
            ignore_events,
            Raising(RuntimeError("a mistake of ours")),
        )

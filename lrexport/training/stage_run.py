"""A running stage of training: its steps, its state, and when it stops."""

from __future__ import annotations

import copy
import gc
import math
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from lrexport.data.images import Splits
from lrexport.data.order import Order, Purpose, seed_of
from lrexport.errors import InputError, Stopped
from lrexport.events import EpochDone, OnEvent, StepDone, Warned
from lrexport.lowrank.regularisation.regularisers import ExtraLoss
from lrexport.tasks.classification import CLASSIFICATION
from lrexport.tasks.scoring import NotANumber, measuring, score
from lrexport.tasks.task import Task
from lrexport.torch_tools.batch import Batch, call
from lrexport.torch_tools.copying import copy_network
from lrexport.torch_tools.memory_layout import fast_layout, run
from lrexport.torch_tools.seeds import seed_torch
from lrexport.torch_tools.targets import split_targets
from lrexport.training.checkpoints import Checkpoints, StageState, optimizer_state, restore_optimizer
from lrexport.training.distillation import distillation
from lrexport.training.engine import freeze_unused, to_fast_layout
from lrexport.training.optimizers import make_optimizer
from lrexport.training.stage import Stage
from lrexport.training.stopping import StopRequest

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_MOST_BAD_STEPS = 3  # consecutive steps without a finite loss before a stage gives up
_MOST_SOUND = 10.0  # times the loss of guessing, above which weights are exploding
_SAVE = 0.5  # a request for a checkpoint; larger requests are signal numbers


@dataclass
class StageRun:
    """One stage; :func:`lrexport.training.loops.train_stage` describes the fields."""

    network: nn.Module
    splits: Splits
    stage: Stage
    fabric: Fabric
    on_event: OnEvent
    extra_loss: ExtraLoss | None
    teacher: nn.Module | None
    checkpoints: Checkpoints | None = None
    task: Task = CLASSIFICATION
    state: StageState = field(default_factory=StageState)
    has_teacher: bool = False  # whether the teacher is ready
    seconds: list[float] = field(default_factory=list)  # times of this epoch's steps
    sound: bool = True  # whether all losses since the last checkpoint were sound

    def median_ms(self) -> float:
        """The median step time since the last call, in milliseconds."""
        taken, self.seconds = self.seconds, []
        return 1e3 * statistics.median(taken) if taken else 0.0

    def run(
        self,
        state: StageState | None,
        stop: StopRequest,
        before_epoch: Callable[[int], bool] | None,
        after_epoch: Callable[[int, nn.Module], None] | None,
    ) -> None:
        """Train all remaining epochs."""
        stage, network, fabric, checkpoints = self.stage, self.network, self.fabric, self.checkpoints
        self.set_up(state)
        if state is None and stage.keep_best:  # training must not end worse than it started
            self.state.best_score = self._score()
            self.state.best = copy.deepcopy(network.state_dict())
        saved = time.monotonic()

        def save() -> None:
            nonlocal saved
            if checkpoints is not None:
                fabric.barrier()  # other processes may still be loading an old checkpoint
                self.state.network, self.state.optimizer = network.state_dict(), optimizer_state(self.optimizer, network)
                self.state.extra = self.extra_loss.state_dict() if self.extra_loss is not None else {}
                checkpoints.save(self.state, self.sound)
                fabric.barrier()
            saved, self.sound = time.monotonic(), True

        if state is None:
            save()
        for epoch in range(self.state.epoch, stage.epochs):
            if before_epoch is not None and self.state.step == 0:
                self._change(partial(before_epoch, epoch))
            started, before = time.perf_counter(), self.state.images
            self.wrapped.train()
            for step, inputs, targets in self.batches(epoch):
                due = checkpoints is not None and time.monotonic() - saved > 60 * stage.checkpoint_minutes
                asked = self.step(step, inputs, targets, stop.number or due * _SAVE)
                if asked:
                    save()
                if asked > _SAVE:
                    raise _stopped(int(asked), stage, self.state, checkpoints is not None)
            trained = time.perf_counter() - started
            if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
                self._give_up("the weights are no longer finite", self.steps - 1)  # although the loss was finite
            heldout = self._score()
            self._report(heldout, trained, time.perf_counter() - started, self.state.images - before)
            if after_epoch is not None:
                after_epoch(epoch + 1, network)
            if stage.keep_best and self.task.metric.is_better(heldout, self.state.best_score):  # NaN never is
                self.state.best_score, self.state.best = heldout, copy.deepcopy(network.state_dict())
            self.state.epoch, self.state.step, self.state.loss_sum, self.state.images = epoch + 1, 0, 0.0, 0
            save()
            late = int(self._most(torch.tensor([float(stop.number)])))
            if late:  # a signal during scoring or saving
                raise _stopped(late, stage, self.state, checkpoints is not None)
        if self.state.best is not None:
            network.load_state_dict(self.state.best)

    def _change(self, change: Callable[[], bool]) -> None:
        """Let ``change`` replace parameters of the network; the others keep their optimiser state."""
        kept = optimizer_state(self.optimizer, self.network)
        # Columns of U and V may now be other singular vectors, even if their number is the same.
        kept = {name: entries for name, entries in kept.items() if ".parametrizations." not in f".{name}"}
        if change():
            self.state.optimizer = kept
            del self.wrapped, self.optimizer  # a network must have only one wrapper at a time
            gc.collect()
            self.set_up(self.state)

    def set_up(self, state: StageState | None) -> None:
        """Make the optimiser, the wrapped network and the order of images; ``state`` is that of an interrupted stage."""
        fabric, stage = self.fabric, self.stage
        to_fast_layout(self.network, self.splits.signature)
        if fabric.world_size > 1:
            freeze_unused(self.network, self.splits, self.task)
        settings = stage.optimizer, stage.lr, stage.momentum, stage.weight_decay, stage.scale_gradients
        optimizer = make_optimizer(self.network, *settings)
        module: Any = torch.compile(self.network) if stage.compile else self.network
        self.wrapped, self.optimizer = fabric.setup(module, optimizer)
        if state is not None:
            self.state = state
            if state.step and state.batch_size != stage.batch_size:  # steps are not comparable, so the epoch starts again
                state.step, state.loss_sum, state.images = 0, 0.0, 0
            if not restore_optimizer(self.optimizer, self.network, state.optimizer):
                text = f"{stage.name} training continues with another optimizer, without the state of the previous one"
                self.on_event(Warned(text))
        self.state.batch_size = stage.batch_size
        if self.teacher is not None and not self.has_teacher:
            self.has_teacher = True
            frozen = copy_network(self.teacher).eval().requires_grad_(False)
            self.teacher = to_fast_layout(frozen, self.splits.signature).to(fabric.device)
        if fabric.device.type == "cuda":  # sets in memory are kept and augmented on the device
            self.splits = self.splits.to(fabric.device)
        name = zlib.crc32(stage.name.encode())
        share = {"rank": fabric.global_rank, "world": fabric.world_size, "portions": stage.accumulate}
        self.order = Order(seed_of(Purpose.STAGE, stage.seed, name), **share)
        self.steps = self.order.steps(len(self.splits.train), stage.batch_size)
        self.chance = self.task.chance_loss(len(self.splits.data.classes))
        self.bad = 0

    def batches(self, epoch: int) -> Iterator[tuple[int, Batch, Any]]:
        """(step, inputs, targets) for the rest of an epoch, this process's part."""
        train, first = self.splits.train, self.state.step
        order = self.order.of(epoch, first)
        batches = train.batches(self.stage.batch_size, self.fabric.device, order, self.splits.data.augmentation)
        for step, (inputs, targets) in enumerate(batches, first):
            yield step, inputs, targets

    def step(self, step: int, inputs: Batch, targets: Any, asked: float) -> float:
        """One optimiser step, skipped if the loss is not finite; returns the largest request of all processes."""
        epoch, stage, network, fabric = self.state.epoch, self.stage, self.network, self.fabric
        began = time.perf_counter()
        rate = self._rate(epoch, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed_torch(seed_of(Purpose.DROPOUT, self.order.seed, epoch, step, fabric.global_rank))
        if self.extra_loss is not None:
            self.extra_loss.before_step()
        buffers = [buffer.clone() for buffer in network.buffers()]
        size = min(stage.batch_size, len(self.splits.train) - step * stage.batch_size)  # of all processes together
        task, value, of_all = self._backward(inputs, targets, size, asked)
        self.sound &= math.isfinite(value) and (self.chance is None or task <= _MOST_SOUND * self.chance)
        if not math.isfinite(value):  # a bad batch must not change weights or statistics; several in a row are divergence
            self.bad += 1
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, before in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(before)
            if self.bad > _MOST_BAD_STEPS or (step + 1 == self.steps and not self.state.images):
                self._give_up(f"the loss is {value}", step)
        else:
            self.bad = 0
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.state.loss_sum += task * size
            self.state.images += size
        self.state.step = step + 1
        self.seconds.append(time.perf_counter() - began)
        self.on_event(StepDone(stage.name, epoch, stage.epochs, step, self.steps, value))
        return of_all

    def _give_up(self, what: str, step: int) -> NoReturn:
        """Raise the error for diverged training, after removing checkpoints that it cannot continue from."""
        if self.checkpoints is not None:
            self.checkpoints.fall_back()
        epoch, rate = self.state.epoch, self._rate(self.state.epoch, step)
        raise InputError(
            f"{what} at step {step + 1} of epoch {epoch + 1} ({self.stage.name}, learning rate {rate:.2g})",
            "Try a lower learning rate: with --resume --allow-changes training continues from where the loss was sound.",
        )

    def _backward(self, inputs: Batch, targets: Any, size: int, asked: float) -> tuple[float, float, float]:
        """Compute gradients of the global batch's mean loss; (task loss, total loss, request), the same in all processes.

        If the loss is not finite, the caller discards the gradients.
        """
        stage, network, fabric = self.stage, self.network, self.fabric
        sizes = self.order.sizes(size)
        parts = fast_layout(network, inputs).split(sizes)
        portions = list(zip(parts, split_targets(targets, sizes), strict=True))
        sums = torch.zeros(3, dtype=torch.float64)
        for number, (part, truth) in enumerate(portions):
            last = number + 1 == len(portions)
            with fabric.no_backward_sync(self.wrapped, enabled=not last and fabric.world_size > 1):
                with measuring(self.task):
                    task, outputs = self.task.training_loss(partial(call, self.wrapped), part, truth)
                loss = task
                if self.teacher is not None and stage.distill and outputs is not None:
                    with torch.no_grad(), fabric.autocast():  # float32 takes twice as long
                        teachers = run(self.teacher, part)
                    followed = distillation(outputs, self.task.distilled(teachers), stage)
                    if followed is not None:
                        loss = (1 - stage.distill) * task + stage.distill * followed
                # Gradients are averaged over processes, whose parts of the batch may differ in size by one image.
                loss = loss * (len(part) * fabric.world_size / size)
                if last and self.extra_loss is not None:
                    loss = loss + self.extra_loss()
                sums[0] += float(task.detach()) * len(part) / size
                sums[1] += float(loss.detach()) / fabric.world_size
                if last:
                    sums = self._sum(sums, asked)
                # Always for the portions before the last, because BatchNorm needs all processes.
                if not last or math.isfinite(float(sums[1])):
                    fabric.backward(loss)
        return float(sums[0]), float(sums[1]), float(sums[2])

    def _sum(self, sums: Tensor, asked: float) -> Tensor:
        """The sums over all processes, and their largest request."""
        sums[2] = asked
        if self.fabric.world_size == 1:
            return sums
        total: Any = self.fabric.all_reduce(sums[:2].to(self.fabric.device), reduce_op="sum")
        return torch.cat([total.cpu(), self._most(sums[2:])])

    def _most(self, asked: Tensor) -> Tensor:
        """The largest request of all processes."""
        most: Any = self.fabric.all_reduce(asked.to(self.fabric.device), reduce_op="max")
        largest: Tensor = most.cpu()
        return largest

    def _rate(self, epoch: int, step: int) -> float:
        return self.stage.rate((epoch + step / self.steps) / self.stage.epochs)

    def _score(self) -> float:
        # Not the wrapped network, which communicates in every batch: other processes may have fewer batches.
        with self.fabric.autocast():
            try:
                heldout, task = self.splits.heldout, self.task
                return score(self.network, heldout, self.fabric.device, "heldout", fabric=self.fabric, task=task).primary
            except NotANumber as error:
                if not self.state.step:  # before the first step, training is not the cause
                    raise
                self._give_up(error.message, self.steps - 1)

    def _report(self, heldout: float, trained: float, seconds: float, images: int) -> None:
        state, stage = self.state, self.stage
        done = EpochDone(
            stage=stage.name,
            epoch=state.epoch + 1,
            epochs=stage.epochs,
            steps=self.steps,
            loss=state.loss_sum / max(1, state.images),
            heldout_score=heldout,
            metric=self.task.metric,
            lr=self._rate(state.epoch, state.step - 1),
            seconds=round(seconds, 3),
            images_per_second=round(images / max(trained, 1e-9), 1),
            step_ms=round(self.median_ms(), 3),
        )
        self.on_event(done)


def _stopped(number: int, stage: Stage, state: StageState, saved: bool) -> Stopped:
    where = f"stopped in {stage.name} training, after step {state.step} of epoch {state.epoch + 1}"
    return Stopped(number, where, "The same command with --resume continues from there." if saved else None)

"""One stage of training: dense, SVD or fine-tuning. They differ in what is added to the loss and which epoch is kept."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import statistics
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrexport.data.images import Splits
from lrexport.data.order import Order, seed_of
from lrexport.errors import InputError, Stopped, UsageError
from lrexport.lowrank.svd_form import fit_ranks
from lrexport.lowrank.tracing import fast_layout
from lrexport.training.batchnorm import global_statistics
from lrexport.training.checkpoints import Checkpoints, StageState, optimizer_state, restore_optimizer
from lrexport.training.engine import to_fast_layout
from lrexport.training.memory import naming_the_batch
from lrexport.training.optimizers import Optimizer, make_optimizer
from lrexport.training.schedules import MILESTONES, Schedule, learning_rate
from lrexport.training.scoring import score
from lrexport.training.stopping import StopRequest, heeding_signals

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
_MOST_BAD_STEPS = 3  # steps in a row without a finite loss, before a stage gives up
_TIMED_STEPS = 5
_SAVE = 0.5  # asked for beside the numbers of signals: a checkpoint


@dataclass(frozen=True)
class Stage:
    """How one stage trains. ``weight_decay`` acts on ordinary weights, never on U, s, V.

    ``batch_size`` images make a step, whatever the number of processes that share them, in ``accumulate`` portions.
    ``milestones`` are shares of the stage. ``checkpoint_minutes`` is the longest time between two checkpoints; there is one
    after every epoch in any case.
    """

    name: str
    epochs: int
    lr: float
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = MILESTONES
    warmup_epochs: float = 0.0
    distill: float = 0.0
    temperature: float = 4.0
    keep_best: bool = True
    seed: int = 0
    accumulate: int = 1
    compile: bool = False
    checkpoint_minutes: float = math.inf


def train_stage(
    network: nn.Module,
    splits: Splits,
    stage: Stage,
    fabric: Fabric,
    on_event: OnEvent,
    extra_loss: Callable[[], Tensor] | None = None,
    teacher: nn.Module | None = None,
    before_epoch: Callable[[int], bool] | None = None,
    after_epoch: Callable[[int, nn.Module], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> None:
    """Train ``network`` in place for ``stage.epochs``, ending with the epoch that is best on the held-out images.

    ``extra_loss`` is added to the loss (equation 3); ``teacher`` gives distillation with ``stage.distill`` as its share;
    ``stage.keep_best`` False keeps the last epoch instead. ``before_epoch`` is told the epoch, from 0, and may put other
    parameters into the network, as its answer says: those that stay keep what the optimiser knows of them. With
    ``checkpoints`` it goes on from the last of them, on the CPU to the bit as if it had never stopped.

    Raises InputError when the loss stops being finite, Stopped after SIGTERM or Ctrl-C, UsageError where a batch has fewer
    images than there are processes.
    """
    if stage.epochs == 0:
        return
    if min(stage.batch_size, len(splits.train)) < fabric.world_size * stage.accumulate:
        raise UsageError(
            f"a batch of {min(stage.batch_size, len(splits.train))} images cannot be shared by {fabric.world_size} processes"
            f" in {stage.accumulate} portions",
            "Give a larger --batch-size, fewer --devices or less --accumulate.",
        )
    state = checkpoints.load() if checkpoints is not None else None
    if state is not None:
        fit_ranks(network, state.network)
        network.load_state_dict(state.network)
    # Where a weight has one channel, channels_last and the usual layout are one, under two names.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    training = _Training(network, splits, stage, fabric, on_event, extra_loss, teacher)
    where = f"{fabric.device} in {stage.name} training"
    memory = naming_the_batch(where, stage.batch_size, stage.accumulate, fabric.world_size)
    with memory, global_statistics(network, fabric.world_size), heeding_signals() as stop:
        training.run(state, stop, checkpoints, before_epoch, after_epoch)
    network.eval()


def step_milliseconds(network: nn.Module, splits: Splits, stage: Stage, fabric: Fabric) -> float:
    """Median time of a step of the stage, on a copy of ``network`` that is thrown away."""
    plain = replace(stage, epochs=1, distill=0.0)
    training = _Training(copy.deepcopy(network), splits, plain, fabric, lambda _event: None, None, None)
    with global_statistics(training.network, fabric.world_size):
        training._set_up(None)
        training.wrapped.train()
        for step, images, labels in itertools.islice(training._batches(0), _TIMED_STEPS):
            training._step(step, images, labels, 0.0)
    return training.median_ms()


@dataclass
class _Training:
    """A stage under way."""

    network: nn.Module
    splits: Splits
    stage: Stage
    fabric: Fabric
    on_event: OnEvent
    extra_loss: Callable[[], Tensor] | None
    teacher: nn.Module | None
    state: StageState = field(default_factory=StageState)
    has_teacher: bool = False  # whether the teacher is ready
    seconds: list[float] = field(default_factory=list)  # of the steps of this epoch

    def median_ms(self) -> float:
        """Median of the steps since the last call, in milliseconds."""
        taken, self.seconds = self.seconds, []
        return 1e3 * statistics.median(taken) if taken else 0.0

    def run(
        self,
        state: StageState | None,
        stop: StopRequest,
        checkpoints: Checkpoints | None,
        before_epoch: Callable[[int], bool] | None,
        after_epoch: Callable[[int, nn.Module], None] | None,
    ) -> None:
        """All epochs that are left."""
        stage, network, fabric = self.stage, self.network, self.fabric
        self._set_up(state)
        if state is None and stage.keep_best:  # training must not end worse than it began
            self.state.best_top1 = self._score()
            self.state.best = copy.deepcopy(network.state_dict())
        saved = time.monotonic()

        def save() -> None:
            nonlocal saved
            if checkpoints is not None:
                fabric.barrier()  # nobody may still look for what an earlier life left
                self.state.network, self.state.optimizer = network.state_dict(), optimizer_state(self.optimizer, network)
                checkpoints.save(self.state)
                fabric.barrier()
            saved = time.monotonic()

        if state is None:
            save()
        for epoch in range(self.state.epoch, stage.epochs):
            if before_epoch is not None and self.state.step == 0:
                self._change(partial(before_epoch, epoch))
            started, before = time.perf_counter(), self.state.images
            self.wrapped.train()
            for step, images, labels in self._batches(epoch):
                due = checkpoints is not None and time.monotonic() - saved > 60 * stage.checkpoint_minutes
                asked = self._step(step, images, labels, stop.number or due * _SAVE)
                if asked:
                    save()
                if asked > _SAVE:
                    raise _stopped(int(asked), stage, self.state, checkpoints is not None)
            trained = time.perf_counter() - started
            top1 = self._score()
            self._tell(top1, trained, time.perf_counter() - started, self.state.images - before)
            if after_epoch is not None:
                after_epoch(epoch + 1, network)
            if stage.keep_best and top1 > self.state.best_top1:  # NaN is never larger
                self.state.best_top1, self.state.best = top1, copy.deepcopy(network.state_dict())
            self.state.epoch, self.state.step, self.state.loss_sum, self.state.images = epoch + 1, 0, 0.0, 0
            save()
            late = int(self._most(torch.tensor([float(stop.number)])))
            if late:  # asked while the epoch was scored and saved
                raise _stopped(late, stage, self.state, checkpoints is not None)
        if self.state.best is not None:
            network.load_state_dict(self.state.best)

    def _change(self, change: Callable[[], bool]) -> None:
        """Let ``change`` put other parameters into the network; the optimiser goes on with those that stay."""
        known = optimizer_state(self.optimizer, self.network)
        if change():
            self.state.optimizer = known
            del self.wrapped, self.optimizer  # before there is another wrapper of the same network
            gc.collect()
            self._set_up(self.state)

    def _set_up(self, state: StageState | None) -> None:
        fabric, stage = self.fabric, self.stage
        to_fast_layout(self.network)
        optimizer = make_optimizer(self.network, stage.optimizer, stage.lr, stage.momentum, stage.weight_decay)
        module: Any = torch.compile(self.network) if stage.compile else self.network
        self.wrapped, self.optimizer = fabric.setup(module, optimizer)
        if state is not None:
            self.state = state
            restore_optimizer(self.optimizer, self.network, state.optimizer)
        if self.teacher is not None and not self.has_teacher:
            self.has_teacher = True
            frozen = copy.deepcopy(self.teacher).eval().requires_grad_(False)
            self.teacher = to_fast_layout(frozen).to(fabric.device)
        if fabric.device.type == "cuda":  # sets that are in memory stay on the device, augmentation happens there
            self.splits = self.splits.to(fabric.device)
        name = zlib.crc32(stage.name.encode())
        share = {"rank": fabric.global_rank, "world": fabric.world_size, "portions": stage.accumulate}
        self.order = Order(seed_of(stage.seed, name), **share)
        self.steps = self.order.steps(len(self.splits.train), stage.batch_size)
        self.bad = 0

    def _batches(self, epoch: int) -> Any:
        """(step, images, labels) of what is left of an epoch, this process's part."""
        train, first = self.splits.train, self.state.step
        order = self.order.of(epoch, first)
        batches = train.batches(self.stage.batch_size, self.fabric.device, order, self.splits.data.augmentation)
        for step, (images, labels) in enumerate(batches, first):
            yield step, images, labels

    def _step(self, step: int, images: Tensor, labels: Tensor, asked: float) -> float:
        """One step of the optimiser, or none where the loss is not finite; the most that any process asks for."""
        epoch, stage, network, fabric = self.state.epoch, self.stage, self.network, self.fabric
        began = time.perf_counter()
        progress = (epoch + step / self.steps) / stage.epochs
        warmup = stage.warmup_epochs / stage.epochs
        rate = learning_rate(stage.lr, stage.schedule, progress, warmup, stage.milestones)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(seed_of(self.order.seed, epoch, step, fabric.global_rank))  # dropout's
        buffers = [buffer.clone() for buffer in network.buffers()]
        size = min(stage.batch_size, len(self.splits.train) - step * stage.batch_size)  # of all processes together
        task, value, of_all = self._backward(images, labels, size, asked)
        if not math.isfinite(value):  # one bad batch must reach neither weights nor statistics; a row is divergence
            self.bad += 1
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, before in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(before)
            if self.bad > _MOST_BAD_STEPS or (step + 1 == self.steps and not self.state.images):
                raise InputError(
                    f"the loss is {value} at step {step + 1} of epoch {epoch + 1} ({stage.name}, learning rate {rate:.2g})",
                    "Try a lower learning rate: with --resume --allow-changes it goes on from the last whole epoch.",
                )
        else:
            self.bad = 0
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.state.loss_sum += task * size
            self.state.images += size
        self.state.step = step + 1
        self.rate = rate
        self.seconds.append(time.perf_counter() - began)
        where = {"stage": stage.name, "epoch": epoch, "epochs": stage.epochs, "step": step, "steps": self.steps}
        self.on_event({"event": "step", **where, "loss": value})
        return of_all

    def _backward(self, images: Tensor, labels: Tensor, size: int, asked: float) -> tuple[float, float, float]:
        """Gradients of the global batch's mean loss. (task loss, whole loss, asked), the same in all processes.

        The loss is summed up before any gradient is: a gradient of a loss that is not finite is of no use.
        """
        stage, fabric = self.stage, self.fabric
        sizes = self.order.sizes(size)
        portions = list(zip(fast_layout(images).split(sizes), labels.split(sizes), strict=True))
        sums = torch.zeros(3, dtype=torch.float64)
        for number, (part, truth) in enumerate(portions):
            last = number + 1 == len(portions)
            with fabric.no_backward_sync(self.wrapped, enabled=not last and fabric.world_size > 1):
                logits = self.wrapped(part)
                task = F.cross_entropy(logits, truth)
                loss = task
                if self.teacher is not None and stage.distill:
                    loss = (1 - stage.distill) * task + stage.distill * _distillation(logits, self.teacher(part), stage)
                # Gradients are averaged over the processes, whose parts of the batch may differ by an image.
                loss = loss * (len(truth) * fabric.world_size / size)
                if last and self.extra_loss is not None:
                    loss = loss + self.extra_loss()
                sums[0] += float(task.detach()) * len(truth) / size
                sums[1] += float(loss.detach()) / fabric.world_size
                if last:
                    sums = self._sum(sums, asked)
                if math.isfinite(float(sums[1])) if last else math.isfinite(float(loss.detach())):
                    fabric.backward(loss)
                elif not last:
                    sums[1] = math.nan  # and what came before it is thrown away
        return float(sums[0]), float(sums[1]), float(sums[2])

    def _sum(self, sums: Tensor, asked: float) -> Tensor:
        """Over the processes; of what they ask for the largest."""
        sums[2] = asked
        if self.fabric.world_size == 1:
            return sums
        total: Any = self.fabric.all_reduce(sums[:2].to(self.fabric.device), reduce_op="sum")
        return torch.cat([total.cpu(), self._most(sums[2:])])

    def _most(self, asked: Tensor) -> Tensor:
        """The largest over the processes."""
        most: Any = self.fabric.all_reduce(asked.to(self.fabric.device), reduce_op="max")
        found: Tensor = most.cpu()
        return found

    def _score(self) -> float:
        return score(self.wrapped, self.splits.heldout, self.fabric.device, "heldout", fabric=self.fabric).top1

    def _tell(self, top1: float, trained: float, seconds: float, images: int) -> None:
        state, stage = self.state, self.stage
        event = {"event": "epoch", "stage": stage.name, "epoch": state.epoch + 1, "epochs": stage.epochs}
        event |= {"steps": self.steps, "loss": state.loss_sum / max(1, state.images), "heldout_top1": top1, "lr": self.rate}
        event |= {"seconds": round(seconds, 3), "images_per_second": round(images / max(trained, 1e-9), 1)}
        self.on_event({**event, "step_ms": round(self.median_ms(), 3)})


def _stopped(number: int, stage: Stage, state: StageState, saved: bool) -> Stopped:
    where = f"stopped in {stage.name} training, after step {state.step} of epoch {state.epoch + 1}"
    return Stopped(number, where, "The same command with --resume goes on from there." if saved else None)


def _distillation(logits: Tensor, teacher_logits: Tensor, stage: Stage) -> Tensor:
    """Hinton et al. 2015 (arXiv 1503.02531): KL divergence of softened outputs, scaled by T² to keep the gradient's size."""
    soft, target = (F.log_softmax(z / stage.temperature, dim=1) for z in (logits, teacher_logits))
    return F.kl_div(soft, target, reduction="batchmean", log_target=True) * stage.temperature**2

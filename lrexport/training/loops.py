"""One stage of training: dense, SVD or fine-tuning. They differ in what is added to the loss and which epoch is kept."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrexport.data.images import Splits
from lrexport.errors import InputError
from lrexport.lowrank.svd_form import SVDForm
from lrexport.lowrank.tracing import fast_layout
from lrexport.training.engine import to_fast_layout
from lrexport.training.schedules import Schedule, learning_rate
from lrexport.training.scoring import score

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Event = dict[str, Any]
_MOST_BAD_STEPS = 3  # steps in a row without a finite loss, before a stage gives up


@dataclass(frozen=True)
class Stage:
    """How one stage trains. ``weight_decay`` acts on ordinary weights, never on U, s, V."""

    name: str
    epochs: int
    lr: float
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    distill: float = 0.0
    temperature: float = 4.0
    keep_best: bool = True
    seed: int = 0


def train_stage(
    network: nn.Module,
    splits: Splits,
    stage: Stage,
    fabric: Fabric,
    on_event: Callable[[Event], None],
    extra_loss: Callable[[], Tensor] | None = None,
    teacher: nn.Module | None = None,
    after_epoch: Callable[[int, nn.Module], None] | None = None,
) -> None:
    """Train ``network`` in place for ``stage.epochs``, ending with the epoch that is best on the held-out images.

    ``extra_loss`` is added to the loss (equation 3); ``teacher`` gives distillation with ``stage.distill`` as its share;
    ``stage.keep_best`` False keeps the last epoch instead. Raises InputError when the loss stops being finite.
    """
    if stage.epochs == 0:
        return
    torch.manual_seed(stage.seed)
    shuffle = torch.Generator().manual_seed(stage.seed)
    to_fast_layout(network)
    optimizer = torch.optim.SGD(parameter_groups(network, stage.weight_decay), lr=stage.lr, momentum=stage.momentum)
    wrapped, optimizer = fabric.setup(network, optimizer)
    if teacher is not None:
        teacher = to_fast_layout(copy.deepcopy(teacher).eval().requires_grad_(False)).to(fabric.device)

    def objective(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = wrapped(images)
        loss = task = F.cross_entropy(logits, labels)
        if teacher is not None and stage.distill:
            loss = (1 - stage.distill) * task + stage.distill * _distillation(logits, teacher(images), stage)
        return task, loss if extra_loss is None else loss + extra_loss()

    best_top1, best_state = -1.0, None
    if stage.keep_best:  # training must not end worse than it began
        best_top1 = score(wrapped, splits.heldout, fabric.device, "heldout").top1
        best_state = copy.deepcopy(network.state_dict())
    for epoch in range(stage.epochs):
        started = time.perf_counter()
        wrapped.train()
        done = _train_epoch(stage, epoch, splits, shuffle, objective, network, optimizer, fabric, on_event)
        trained = time.perf_counter() - started
        accuracy = score(wrapped, splits.heldout, fabric.device, "heldout")
        seconds = time.perf_counter() - started
        event = {"event": "epoch", "stage": stage.name, "epoch": epoch + 1, "epochs": stage.epochs}
        event |= {"loss": done.mean_loss, "heldout_top1": accuracy.top1, "lr": done.rate}
        on_event({**event, "seconds": round(seconds, 3), "images_per_second": round(done.images / trained, 1)})
        if after_epoch is not None:
            after_epoch(epoch + 1, network)
        if stage.keep_best and accuracy.top1 > best_top1:  # NaN is never larger
            best_top1, best_state = accuracy.top1, copy.deepcopy(network.state_dict())
    if best_state is not None:
        network.load_state_dict(best_state)
    network.eval()


@dataclass(frozen=True)
class _EpochDone:
    mean_loss: float
    images: int
    rate: float


def _train_epoch(
    stage: Stage,
    epoch: int,
    splits: Splits,
    shuffle: torch.Generator,
    objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    network: nn.Module,
    optimizer: Any,
    fabric: Fabric,
    on_event: Callable[[Event], None],
) -> _EpochDone:
    steps = _steps_per_epoch(len(splits.train), stage.batch_size)
    total, counted, bad, rate = 0.0, 0, 0, stage.lr
    batches = splits.train.batches(stage.batch_size, fabric.device, shuffle, splits.data.augmentation)
    for step, (images, labels) in enumerate(batches):
        progress = (epoch + step / steps) / stage.epochs
        rate = learning_rate(stage.lr, stage.schedule, progress, stage.warmup_epochs / stage.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        statistics = [buffer.clone() for buffer in network.buffers()]
        task, loss = objective(fast_layout(images), labels)
        value = float(loss.detach())
        if not math.isfinite(value):  # one bad batch must reach neither weights nor statistics; a row is divergence
            bad += 1
            for buffer, before in zip(network.buffers(), statistics, strict=True):
                buffer.copy_(before)
            if bad > _MOST_BAD_STEPS or (step + 1 == steps and not counted):
                raise InputError(
                    f"the loss is {value} at step {step + 1} of epoch {epoch + 1} ({stage.name}, learning rate {rate:.2g})",
                    "Try a lower learning rate; the last whole epoch is in the run's checkpoint folder.",
                )
            continue
        bad = 0
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total, counted = total + float(task.detach()) * len(labels), counted + len(labels)
        where = {"stage": stage.name, "epoch": epoch, "epochs": stage.epochs, "step": step, "steps": steps}
        on_event({"event": "step", **where, "loss": value})
    return _EpochDone(total / max(1, counted), counted, rate)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """SGD's groups: ordinary weights decay; U, s, V do not."""
    held: list[Any] = [getattr(module, "parametrizations", {}) for module in network.modules()]
    forms = (form["weight"] for form in held if "weight" in form and isinstance(form["weight"][0], SVDForm))
    factors = {id(parameter) for form in forms for parameter in form.parameters()}
    ordinary = [parameter for parameter in network.parameters() if id(parameter) not in factors]
    free = [parameter for parameter in network.parameters() if id(parameter) in factors]
    groups = [{"params": ordinary, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _distillation(logits: Tensor, teacher_logits: Tensor, stage: Stage) -> Tensor:
    """Hinton et al. 2015 (arXiv 1503.02531): KL divergence of softened outputs, scaled by T² to keep the gradient's size."""
    soft, target = (F.log_softmax(z / stage.temperature, dim=1) for z in (logits, teacher_logits))
    return F.kl_div(soft, target, reduction="batchmean", log_target=True) * stage.temperature**2


def _steps_per_epoch(images: int, batch_size: int) -> int:
    return max(1, math.ceil(images / batch_size) - (0 < images % batch_size < batch_size // 2))

"""One stage of training: dense, SVD or fine-tuning, which differ in the added loss and in the epoch that is kept."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from lrexport.data.images import Splits
from lrexport.errors import UsageError
from lrexport.events import OnEvent, ignore_events
from lrexport.lowrank.factors.svd_form import fit_ranks
from lrexport.lowrank.regularisation.regularisers import ExtraLoss
from lrexport.tasks.classification import CLASSIFICATION
from lrexport.tasks.task import Task
from lrexport.torch_tools.batchnorm import global_statistics, needing_several
from lrexport.torch_tools.copying import copy_network
from lrexport.torch_tools.memory import naming_the_batch
from lrexport.training.checkpoints import Checkpoints
from lrexport.training.stage import Stage
from lrexport.training.stage_run import StageRun
from lrexport.training.stopping import heeding_signals

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Stage", "step_milliseconds", "train_stage"]
_WARM_UP_STEPS, _TIMED_STEPS = 3, 7


def train_stage(
    network: nn.Module,
    splits: Splits,
    stage: Stage,
    fabric: Fabric,
    on_event: OnEvent,
    extra_loss: ExtraLoss | None = None,
    teacher: nn.Module | None = None,
    before_epoch: Callable[[int], bool] | None = None,
    after_epoch: Callable[[int, nn.Module], None] | None = None,
    checkpoints: Checkpoints | None = None,
    task: Task = CLASSIFICATION,
) -> None:
    """Train ``network`` in place for ``stage.epochs``, and keep the epoch that is best on the held-out images.

    ``task`` has the loss, and the metric that decides which epoch is best.

    ``stage.keep_best`` False keeps the last epoch instead. ``extra_loss``, a module without input, is added to the loss
    (equation 3); ``teacher`` is distilled from with the share ``stage.distill``. ``before_epoch`` gets the epoch, from 0,
    and returns True if it has replaced parameters of the network; the others keep their optimiser state. With
    ``checkpoints`` training continues from the last one, on the CPU bit by bit as without the interruption.

    Raises InputError if the loss stops being finite, Stopped after SIGTERM or Ctrl-C, UsageError if a batch has fewer
    images than processes, or too few for BatchNorm.
    """
    if stage.epochs == 0:
        return
    _check_batch(network, splits, stage, fabric)
    state = checkpoints.load() if checkpoints is not None else None
    if state is not None:
        fit_ranks(network, state.network)
        network.load_state_dict(state.network)
        if extra_loss is not None:
            extra_loss.load_state_dict(state.extra)
    # For a weight with one channel, channels_last and the contiguous layout are the same, but have different strides.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    training = StageRun(network, splits, stage, fabric, on_event, extra_loss, teacher, checkpoints, task)
    where = f"{fabric.device} in {stage.name} training"
    memory = naming_the_batch(where, stage.batch_size, stage.accumulate, fabric.world_size)
    with memory, global_statistics(network, fabric.world_size), heeding_signals() as stop:
        training.run(state, stop, before_epoch, after_epoch)
    network.eval()


def step_milliseconds(
    network: nn.Module, splits: Splits, stage: Stage, fabric: Fabric, task: Task = CLASSIFICATION
) -> float:
    """Median time of a step of the stage, on a temporary copy of ``network``. Raises UsageError as :func:`train_stage`."""
    _check_batch(network, splits, stage, fabric)
    plain = replace(stage, epochs=1, distill=0.0, lr=1e-12)  # the learning rate does not matter, but must not diverge
    training = StageRun(copy_network(network), splits, plain, fabric, ignore_events, None, None, task=task)
    with global_statistics(training.network, fabric.world_size):
        training.set_up(None)
        training.wrapped.train()
        for step, inputs, targets in itertools.islice(training.batches(0), _WARM_UP_STEPS + _TIMED_STEPS):
            if step == _WARM_UP_STEPS:
                training.median_ms()
            training.step(step, inputs, targets, 0.0)
    return training.median_ms()


def _check_batch(network: nn.Module, splits: Splits, stage: Stage, fabric: Fabric) -> None:
    """Raise UsageError unless each portion has an image for every process, and several for BatchNorm."""
    size = min(stage.batch_size, len(splits.train))
    if size < fabric.world_size * stage.accumulate:
        raise UsageError(
            f"a batch of {size} images is too small for {fabric.world_size} processes and {stage.accumulate} portions",
            "Give a larger --batch-size, fewer --devices or a smaller --accumulate.",
        )
    alone = needing_several(network, splits.signature) if size < 2 * stage.accumulate else []
    if alone:
        raise UsageError(
            f"BatchNorm needs several images at a time ({', '.join(alone[:3])}); a batch of {size} images in"
            f" {stage.accumulate} portions has single ones",
            "Give a larger --batch-size or a smaller --accumulate.",
        )

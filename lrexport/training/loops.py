"""One stage of training: dense, SVD or fine-tuning. They differ in what is added to the loss and which epoch is kept."""

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
    extra_loss: nn.Module | None = None,
    teacher: nn.Module | None = None,
    before_epoch: Callable[[int], bool] | None = None,
    after_epoch: Callable[[int, nn.Module], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> None:
    """Train ``network`` in place for ``stage.epochs``, ending with the epoch that is best on the held-out images.

    ``extra_loss``, a module without input, is added to the loss (equation 3); ``teacher`` gives distillation with
    ``stage.distill`` as its share; ``stage.keep_best`` False keeps the last epoch instead. ``before_epoch`` is told the
    epoch, from 0, and may put other parameters into the network, as its answer says: those that stay keep what the
    optimiser knows of them. With ``checkpoints`` it goes on from the last of them, on the CPU to the bit as if it had
    never stopped.

    Raises InputError when the loss stops being finite, Stopped after SIGTERM or Ctrl-C, UsageError where a batch has fewer
    images than there are processes, or too few for BatchNorm.
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
    # Where a weight has one channel, channels_last and the usual layout are one, under two names.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    training = StageRun(network, splits, stage, fabric, on_event, extra_loss, teacher, checkpoints)
    where = f"{fabric.device} in {stage.name} training"
    memory = naming_the_batch(where, stage.batch_size, stage.accumulate, fabric.world_size)
    with memory, global_statistics(network, fabric.world_size), heeding_signals() as stop:
        training.run(state, stop, before_epoch, after_epoch)
    network.eval()


def step_milliseconds(network: nn.Module, splits: Splits, stage: Stage, fabric: Fabric) -> float:
    """Median time of a step of the stage, on a copy of ``network`` that is thrown away. Raises UsageError as above."""
    _check_batch(network, splits, stage, fabric)
    plain = replace(stage, epochs=1, distill=0.0, lr=1e-12)  # at which a step takes as long, and none diverges
    training = StageRun(copy_network(network), splits, plain, fabric, ignore_events, None, None)
    with global_statistics(training.network, fabric.world_size):
        training.set_up(None)
        training.wrapped.train()
        for step, images, labels in itertools.islice(training.batches(0), _WARM_UP_STEPS + _TIMED_STEPS):
            if step == _WARM_UP_STEPS:
                training.median_ms()
            training.step(step, images, labels, 0.0)
    return training.median_ms()


def _check_batch(network: nn.Module, splits: Splits, stage: Stage, fabric: Fabric) -> None:
    """That every process has an image of each portion, and BatchNorm several."""
    size = min(stage.batch_size, len(splits.train))
    if size < fabric.world_size * stage.accumulate:
        raise UsageError(
            f"a batch of {size} images cannot be shared by {fabric.world_size} processes in {stage.accumulate} portions",
            "Give a larger --batch-size, fewer --devices or less --accumulate.",
        )
    alone = needing_several(network, splits.train.image_shape) if size < 2 * stage.accumulate else []
    if alone:
        raise UsageError(
            f"{', '.join(alone[:3])}: BatchNorm cannot be trained on one image at a time, which a batch of {size} images in"
            f" {stage.accumulate} portions comes to",
            "Give a larger --batch-size or less --accumulate.",
        )

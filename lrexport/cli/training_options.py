"""Options of ``train``, ``compress`` and ``sweep``: model, data and the schedule of all stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from lrexport.cli.help import DISTILLATION, HARDWARE, LAYERS, MODEL_AND_DATA, OUTPUT, TRAINING, section, stacked
from lrexport.cli.option_types import DataType, MilestonesType, ModelType, NumbersType, ShapeType, StrengthType, TaskType
from lrexport.cli.options import (
    FILE,
    Command,
    choice_option,
    count_option,
    field_option,
    number_option,
    switch_option,
    trust_option,
)
from lrexport.config.compression import DEFAULT_DENSE_EPOCHS, TrainConfig

_OWN = "[default: the network's, else ImageNet's]"
TASK = "What the outputs are for: classification, segmentation, image, detection, fidelity or package.module:object."


def training_options() -> Callable[[Command], Command]:
    """The argument MODEL and an option for every field of TrainConfig, read by :func:`train_config`."""
    return stacked(
        click.argument("model", type=ModelType()),
        _model_options(),
        _layer_options(),
        _schedule_options(),
        _distillation_options(),
        _hardware_options(),
        _log_options(),
    )


def train_config(options: dict[str, Any]) -> TrainConfig:
    """TrainConfig from the options of :func:`training_options`, which are removed from ``options``."""
    return TrainConfig(**{field.name: options.pop(field.name) for field in fields(TrainConfig)})


def _model_options() -> Callable[[Command], Command]:
    made = TrainConfig
    return section(
        MODEL_AND_DATA,
        click.option(
            "--data", type=DataType(), metavar="DATA", help="Data: cifar10[:ROOT], folder:ROOT, images:ROOT, arrays:FILE, …"
        ),
        click.option("--weights", type=FILE, metavar="FILE", help="Initial weights: safetensors or a checkpoint."),
        click.option("--input-shape", type=ShapeType(), help="Shape of one input, such as 3,224,224."),
        click.option(
            "--input",
            multiple=True,
            metavar="NAME=SHAPE[:DTYPE[:LOW..HIGH]]",
            help="An input of the network: image=3,224,224, tokens=16:int64:0..100. Repeatable.",
        ),
        rare=(
            field_option(made, "weights_key", str, "KEY", "Key of the weights in the file, such as state_dict_ema."),
            click.option("--task", type=TaskType(), metavar="TASK", help=f"{TASK} [default: that of the data]"),
            click.option("--download", is_flag=True, help="Download cifar10 or cifar100 if it is missing."),
            number_option(made, "heldout", "Share of training images held out to choose ranks and epochs."),
            count_option(made, "max_bad", "Number of unreadable images of a folder to tolerate."),
            field_option(made, "mean", NumbersType(), None, f"Mean of pixels, by channel. {_OWN}"),
            field_option(made, "std", NumbersType(), None, f"Standard deviation of pixels, by channel. {_OWN}"),
            field_option(made, "value_range", str, "LOW..HIGH", "Range of pixels before mean and std. [default: 0..1]"),
            count_option(made, "resize", "Shorter side of pictures, in pixels, before the crop."),
            choice_option(made, "crop", ": the middle of a picture, or all of it. [default: center]"),
            choice_option(made, "channel_order", ": order of channels. [default: rgb]"),
            switch_option(made, "export_check", "First check that the dense network exports to ONNX."),
            trust_option(),
        ),
    )


def _layer_options() -> Callable[[Command], Command]:
    return section(
        LAYERS,
        choice_option(
            TrainConfig,
            "scheme",
            ": how kernels become matrices; auto: the best for each layer.",
        ),
        click.option("--keep", multiple=True, metavar="PATTERN", help="Layers to keep dense: 'layer1.*'. Repeatable."),
    )


def _schedule_options() -> Callable[[Command], Command]:
    untrained = f"0 with weights, else {DEFAULT_DENSE_EPOCHS}"
    return section(
        TRAINING,
        count_option(TrainConfig, "dense_epochs", f"Epochs of dense training. [default: {untrained}]"),
        count_option(TrainConfig, "svd_epochs", "Epochs of training in SVD form."),
        count_option(TrainConfig, "batch_size", "Images per training step."),
        number_option(TrainConfig, "lr", "Learning rate of SVD training and fine-tuning."),
        rare=(
            number_option(TrainConfig, "dense_lr", "Learning rate of dense training."),
            choice_option(TrainConfig, "optimizer", "; SGD has momentum 0.9."),
            choice_option(TrainConfig, "schedule", ": how the learning rate falls."),
            field_option(
                TrainConfig,
                "milestones",
                MilestonesType(),
                None,
                "Shares of a stage at which --schedule step divides the learning rate by 10.",
            ),
            number_option(TrainConfig, "warmup_epochs", "Epochs over which the learning rate rises."),
            number_option(TrainConfig, "weight_decay", "Weight decay of ordinary weights; U, s and V have none."),
            choice_option(
                TrainConfig,
                "svd_form",
                ": U, s and V are trained, or the weight is and they are refreshed from time to time.",
            ),
            number_option(TrainConfig, "orthogonality", "λ_o of the paper's equation 3."),
            field_option(
                TrainConfig,
                "sparsity_strength",
                StrengthType(),
                "X|auto",
                "λ_s of equation 3; auto adapts it to the budget, layer by layer.",
            ),
            choice_option(
                TrainConfig,
                "sparsity",
                ": the regulariser that λ_s weights; path scales down what exceeds the budget, without one.",
            ),
            switch_option(TrainConfig, "scale_gradients", "Scale gradients of factors so that SGD steps match dense ones."),
            count_option(TrainConfig, "accumulate", "Micro-batches per training step, to save memory."),
            field_option(TrainConfig, "seed", int, "N", "Seed of weights, order and augmentation."),
        ),
    )


def _distillation_options() -> Callable[[Command], Command]:
    made, default = TrainConfig, "[default: the dense network itself]"
    teacher = f"Teacher network, or a run, for its dense network. {default}"
    weights = "Weights of --teacher; required unless it is a run."
    return section(
        DISTILLATION,
        rare=(
            number_option(made, "distill", "Share of the loss that follows the teacher's outputs."),
            click.option("--teacher", type=ModelType(), metavar="MODEL|RUN", help=teacher),
            click.option("--teacher-weights", type=FILE, metavar="FILE", help=weights),
            field_option(made, "teacher_weights_key", str, "KEY", "Key of the weights in that file."),
        ),
    )


def _hardware_options() -> Callable[[Command], Command]:
    return section(
        HARDWARE,
        choice_option(TrainConfig, "device", "."),
        rare=(
            count_option(TrainConfig, "devices", "Devices of this machine to train on, one process each."),
            count_option(TrainConfig, "nodes", "Machines to train on, when torchrun or SLURM starts the processes."),
            choice_option(TrainConfig, "precision", "; auto: bfloat16 on GPUs that support it, else float32."),
            switch_option(TrainConfig, "compile", "Train through torch.compile."),
            count_option(
                TrainConfig,
                "workers",
                "Processes that read images from disk. [default: one per core]",
            ),
        ),
    )


def _log_options() -> Callable[[Command], Command]:
    return section(
        OUTPUT,
        rare=(
            number_option(
                TrainConfig, "checkpoint_minutes", "Longest time between checkpoints; every epoch writes one as well."
            ),
            click.option(
                "--log-to",
                multiple=True,
                type=click.Choice(("tensorboard", "mlflow", "wandb")),
                help="Also log training there, in addition to log.jsonl. Repeatable.",
            ),
        ),
    )

"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from lrexport.artifacts.plain_files import destination
from lrexport.artifacts.run_files import RECORD
from lrexport.artifacts.run_folder import plain
from lrexport.cli.option_types import InputPath, MilestonesType, PathType, ShapeType, StrengthType, TargetType
from lrexport.config.compression import TrainConfig
from lrexport.errors import UsageError
from lrexport.text import option_name
from lrexport.trust import consent

Command = TypeVar("Command", bound=Callable[..., Any])


RUN = PathType(path_type=Path, file_okay=False)
FILE = InputPath(path_type=Path, dir_okay=True)


def stacked(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, shown in --help in the order given."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def json_option() -> Callable[[Command], Command]:
    """``--json FILE|-``, passed as ``json_to``."""
    return output_option("json", "Write the result as JSON to a file, or - for stdout.")


def output_option(name: str, text: str) -> Callable[[Command], Command]:
    """``--NAME FILE|-``, passed as ``NAME_to`` and checked before any work."""
    return click.option(f"--{name}", f"{name}_to", metavar="FILE|-", callback=check_output, help=text)


def check_output(_context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    """The callback of an option that names a file to write, or - for stdout: work must not be done for nothing.

    Raises UsageError where its folder is not there, InputError where it is a device, a FIFO, a socket or a folder.
    """
    if given is None or given == "-":
        return given
    folder = Path(given).parent
    if not folder.is_dir():
        raise UsageError(
            f"{option.opts[-1]} {given}: the folder {folder} does not exist", "Create it, or give another FILE."
        )
    destination(Path(given))
    return given


def target_option(text: str = "Where to measure.", default: str | None = "local") -> Callable[[Command], Command]:
    """``--target``, passed as text for :func:`lrexport.measure.targets.parse_target`."""
    place = TargetType()
    return click.option("--target", type=place, metavar=place.name, default=default, show_default=True, help=text)


def threads_option() -> Callable[[Command], Command]:
    """``--threads``, of the runtime on the target."""
    text = "Threads of inference."
    return click.option("--threads", type=click.IntRange(1), metavar="N", default=1, show_default=True, help=text)


def choice_option(config: type, name: str, values: Sequence[str], text: str) -> Callable[[Command], Command]:
    """One of some words; the default is the configuration's."""
    return _option(config, name, click.Choice(values), None, text)


def count_option(config: type, name: str, text: str, least: int = 0) -> Callable[[Command], Command]:
    """A whole number of at least ``least``."""
    return _option(config, name, click.IntRange(least), "N", text)


def switch_option(config: type, name: str, text: str) -> Callable[[Command], Command]:
    """``--name/--no-name``."""
    default = next(field.default for field in fields(config) if field.name == name)
    flag = option_name(name)
    return click.option(f"--{flag}/--no-{flag}", default=default, show_default=True, help=text)


def number_option(config: type, name: str, text: str, **limits: Any) -> Callable[[Command], Command]:
    """A number within ``limits``, as click.FloatRange takes them."""
    return _option(config, name, click.FloatRange(**{"min": 0, **limits}), "X", text)


def _option(config: type, name: str, kind: Any, metavar: str | None, text: str) -> Callable[[Command], Command]:
    default = next(field.default for field in fields(config) if field.name == name)
    flag = f"--{option_name(name)}"
    return click.option(flag, type=kind, metavar=metavar, default=default, show_default=default is not None, help=text)


def training_options() -> Callable[[Command], Command]:
    """What ``train`` and ``compress`` have in common: model, data, schedule."""
    made = TrainConfig
    data = "digits, cifar10[:ROOT], cifar100[:ROOT], imagenet:ROOT, folder:ROOT or package.module:callable. Without data, "
    return stacked(
        click.argument("model"),
        click.option("--data", metavar="DATA", help=f"{data}compression is training-free."),
        click.option("--weights", type=FILE, help="Weights to start from: safetensors or a PyTorch checkpoint."),
        _option(made, "weights_key", str, "KEY", "Which weights of that file, where several fit: as state_dict_ema."),
        click.option(
            "--input-shape", type=ShapeType(), help="Shape of one input: 3,224,224, or 64 or 1,16000 or 3,16,112,112."
        ),
        click.option("--download", is_flag=True, help="Let cifar10 and cifar100 be fetched."),
        choice_option(
            made,
            "scheme",
            ("spatial", "channel", "input-channel", "auto"),
            "How kernels become matrices; auto: layer by layer.",
        ),
        click.option("--keep", multiple=True, metavar="PATTERN", help="Layers to leave dense, as 'layer1.*'; repeatable."),
        count_option(made, "dense_epochs", "Epochs of dense training first [default: 0 with weights, 20 without]."),
        count_option(made, "svd_epochs", "Epochs in SVD form."),
        number_option(made, "orthogonality", "λ_o of the paper's equation 3."),
        _option(
            made, "sparsity_strength", StrengthType(), "X|auto", "λ_s of equation 3; auto: steered to the budget, by layer."
        ),
        choice_option(made, "sparsity", ("hoyer", "l1", "none"), "What λ_s weighs."),
        count_option(made, "batch_size", "Images in a training step, of all devices together.", least=1),
        count_option(made, "accumulate", "Portions that a batch goes through in, for memory's sake.", least=1),
        choice_option(made, "optimizer", ("sgd", "adam"), "SGD with momentum 0.9, or Adam."),
        switch_option(made, "scale_gradients", "Let steps of SGD in factors move a kernel as far as dense ones do."),
        number_option(made, "lr", "Learning rate of SVD training and fine-tuning.", min_open=True),
        number_option(made, "dense_lr", "Learning rate of dense training.", min_open=True),
        number_option(made, "weight_decay", "Of ordinary weights, never of U, s, V."),
        choice_option(made, "schedule", ("cosine", "step"), "How the learning rate falls."),
        click.option(
            "--milestones",
            type=MilestonesType(),
            default="1/2,3/4",
            show_default=True,
            help="Shares of a stage at which the schedule step divides the learning rate by ten.",
        ),
        number_option(made, "warmup_epochs", "Epochs in which the learning rate rises."),
        number_option(made, "distill", "Share of the loss that follows the teacher's outputs.", max=1),
        click.option(
            "--teacher",
            metavar="MODEL|RUN",
            help="Network to follow, say a larger one, or a run's dense network [default: the dense network itself].",
        ),
        click.option("--teacher-weights", type=FILE, help="Weights of --teacher, needed unless it is a run."),
        _option(made, "teacher_weights_key", str, "KEY", "Which weights of that file, where several fit."),
        number_option(made, "heldout", "Share of the training images held out for choices.", max=0.5, min_open=True),
        switch_option(made, "export_check", "Export the dense network to ONNX before any work, to see that it can be."),
        count_option(made, "max_bad", "Images of a folder that may be left out because they cannot be read."),
        choice_option(made, "device", ("auto", "cpu", "cuda", "mps"), "Where to train."),
        count_option(made, "devices", "Devices of this machine to train on, a process each.", least=1),
        count_option(made, "nodes", "Machines to train on, where torchrun or SLURM starts the processes.", least=1),
        choice_option(made, "precision", ("auto", "float32", "bfloat16"), "auto is bfloat16 where the device has it."),
        switch_option(made, "compile", "Train through torch.compile."),
        _option(made, "workers", click.IntRange(0), "N", "Processes that read images from disk [default: one a core]."),
        number_option(made, "checkpoint_minutes", "Longest time between checkpoints; there is one after every epoch."),
        click.option(
            "--log-to",
            multiple=True,
            type=click.Choice(("tensorboard", "mlflow", "wandb")),
            help="Log training there as well as to log.jsonl; repeatable.",
        ),
        _option(made, "seed", int, "N", "Of weights, order and augmentation."),
    )


def resume_options() -> Callable[[Command], Command]:
    """``--resume`` and ``--allow-changes``, of commands that make one run."""
    return stacked(
        click.option("--resume", is_flag=True, help="Go on with a run that was stopped; otherwise begin."),
        click.option("--allow-changes", is_flag=True, help="With --resume: go on though other choices, data or devices."),
    )


def trust_option() -> Callable[[Command], Command]:
    """``--trust-code``, of every command that follows what a run's record names; nothing is passed on."""

    def trust(context: click.Context, _option: click.Parameter, given: bool) -> None:
        context.with_resource(consent.trusting(given))

    text = "Run the code that a run's record names without asking; what you name yourself needs no option."
    return click.option("--trust-code", is_flag=True, expose_value=False, callback=trust, help=text)


def train_config(options: dict[str, Any]) -> TrainConfig:
    """TrainConfig from the options that :func:`training_options` declares; others are left in ``options``."""
    return TrainConfig(**{field.name: options.pop(field.name) for field in fields(TrainConfig)})


def is_run(model: str) -> bool:
    """Whether MODEL is a run's folder. Raises InputError where its record is a link or no plain file."""
    try:
        return plain(Path(model), RECORD).is_file()
    except ValueError:  # a NUL, which no path can have
        return False

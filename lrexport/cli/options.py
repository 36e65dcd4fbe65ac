"""Options that several commands share, and the types behind them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lrexport.errors import UsageError
from lrexport.units import parse_share

if TYPE_CHECKING:
    from lrexport.config import TrainConfig

Command = TypeVar("Command", bound=Callable[..., Any])


class ShapeType(click.ParamType[tuple[int, ...]]):
    """``3,224,224`` → (3, 224, 224)."""

    name = "C,H,W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).replace("x", ",").split(",")
        if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is no shape; write channels, height, width, as in 3,224,224", param, ctx)
        return tuple(int(part) for part in parts)


class ShareType(click.ParamType[float]):
    """``0.5`` or ``50%`` → 0.5."""

    name = "SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_share(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class EpochsOrSame(click.ParamType[int | str]):
    """A number of epochs, or ``same``."""

    name = "N|same"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if str(value) == "same" or str(value).isdigit():
            return "same" if str(value) == "same" else int(value)
        self.fail(f"{value!r} is neither a number of epochs nor 'same'", param, ctx)
        return None


RUN = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=True)


def stacked(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, shown in --help in the order given."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def json_option() -> Callable[[Command], Command]:
    """``--json FILE|-``, passed as ``json_to``."""
    return click.option("--json", "json_to", metavar="FILE|-", help="Write the result as JSON to a file, or - for stdout.")


def training_options() -> Callable[[Command], Command]:
    """What ``train`` and ``compress`` have in common: model, data, schedule."""
    scheme = click.Choice(["spatial", "channel", "input-channel"])
    choice = click.Choice
    return stacked(
        click.argument("model"),
        click.option("--data", metavar="DATA", help="digits, cifar10[:ROOT], cifar100[:ROOT], imagenet:ROOT, folder:ROOT "
                     "or package.module:callable. Without data, compression is training-free."),
        click.option("--weights", type=FILE, help="Weights to start from: safetensors or a PyTorch state dict."),
        click.option("--input-shape", type=ShapeType(), help="Shape of one input, as in 3,224,224."),
        click.option("--download", is_flag=True, help="Let cifar10 and cifar100 be fetched."),
        click.option("--scheme", type=scheme, default="spatial", show_default=True, help="How kernels become matrices."),
        click.option("--dense-epochs", type=click.IntRange(0), help="Epochs of dense training before anything else "
                     "[default: 0 with weights, 20 without]."),
        click.option("--svd-epochs", type=click.IntRange(0), default=6, show_default=True, help="Epochs in SVD form."),
        click.option("--orthogonality", type=click.FloatRange(0), default=1.0, show_default=True, help="λ_o of the paper's "
                     "equation 3."),
        click.option("--sparsity-strength", type=click.FloatRange(0), default=0.03, show_default=True, help="λ_s of "
                     "equation 3."),
        click.option("--sparsity", type=choice(["hoyer", "l1", "none"]), default="hoyer", show_default=True,
                     help="What λ_s weighs."),
        click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True),
        click.option("--lr", type=click.FloatRange(0, min_open=True), default=0.02, show_default=True, help="Learning rate "
                     "of SVD training and fine-tuning."),
        click.option("--dense-lr", type=click.FloatRange(0, min_open=True), default=0.1, show_default=True, help="Learning "
                     "rate of dense training."),
        click.option("--weight-decay", type=click.FloatRange(0), default=1e-4, show_default=True, help="Of ordinary "
                     "weights, never of U, s, V."),
        click.option("--schedule", type=choice(["cosine", "step"]), default="cosine", show_default=True),
        click.option("--warmup-epochs", type=click.FloatRange(0), default=0.0, show_default=True),
        click.option("--distill", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of the loss that "
                     "follows the dense network's outputs."),
        click.option("--heldout", type=click.FloatRange(0, 0.5, min_open=True), default=0.1, show_default=True,
                     help="Share of the training images held out for choices (at most 5000)."),
        click.option("--device", type=choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True),
        click.option("--precision", type=choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True),
        click.option("--seed", type=int, default=0, show_default=True),
    )  # fmt: skip


def train_config(options: dict[str, Any]) -> TrainConfig:
    """TrainConfig from the options that :func:`training_options` declares; others are left in ``options``."""
    from dataclasses import fields

    from lrexport.config import TrainConfig

    return TrainConfig(**{field.name: options.pop(field.name) for field in fields(TrainConfig)})


def is_run(model: str) -> bool:
    """Whether MODEL is a run's folder."""
    return (Path(model) / "run.json").is_file()

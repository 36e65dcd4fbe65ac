"""What --data may be, checked by its name alone, before torch is loaded."""

from __future__ import annotations

from pathlib import Path

from lrexport.errors import InputError, UsageError
from lrexport.networks.names import check_import_path
from lrexport.text import nearest

FOLDERS = ("folder", "imagenet")
CIFAR = ("cifar10", "cifar100")
NAMES = ("digits", *CIFAR, *reversed(FOLDERS))


def is_import_path(source: str) -> bool:
    """Whether --data names a callable of somebody's own."""
    name, colon, _ = source.partition(":")
    return bool(colon) and name not in (*CIFAR, *FOLDERS)


def check_source(source: str, download: bool = False) -> None:
    """Raise UsageError for a name that is not known or a module that does not exist, InputError for an absent folder."""
    name, _, root = source.partition(":")
    if name in FOLDERS:
        check_folder(name, root)
    elif name in CIFAR:
        if not download and not Path(root or "data").is_dir():
            raise no_cifar(name, Path(root or "data"), "there is no such folder")
    elif is_import_path(source):
        check_import_path(source, "--data")
    elif source != "digits":
        raise unknown(source)


def check_folder(name: str, root: str) -> None:
    """Raise where ``folder:ROOT`` or ``imagenet:ROOT`` has no ROOT, or that not the folders that it needs."""
    if not root:
        raise UsageError(f"--data {name} needs a folder", f"Write {name}:PATH.")
    wanted = f"{root} needs the folders train and val (or test), one folder a class in each"
    if not Path(root).is_dir():
        raise InputError(f"there is no folder {root}", f"{wanted}.")
    if not Path(root, "train").is_dir() or not any(Path(root, part).is_dir() for part in ("val", "test")):
        raise InputError(wanted)


def no_cifar(name: str, root: Path, why: object) -> InputError:
    """For a CIFAR data set that is not in ``root``."""
    return InputError(f"{name} was not found in {root}: {why}", f"Give --download, or its folder as {name}:ROOT.")


def unknown(source: str) -> UsageError:
    """For a name that is not known, with the nearest that is."""
    name = source.partition(":")[0]
    close = [f"folder:{name}"] if Path(name).is_dir() else nearest(name, NAMES)
    return UsageError(
        f"unknown --data {source!r}",
        (f"Did you mean {close[0]}? " if close else "")
        + "Known: digits, cifar10[:ROOT], cifar100[:ROOT], imagenet:ROOT, folder:ROOT, package.module:callable.",
    )


def no_calibration() -> UsageError:
    """For int8 of a run that was made without data."""
    return UsageError(
        "--int8 needs images to calibrate on, and this run was made without data",
        "Give --data: some of its training images, never its test images, are used, without their labels.",
    )

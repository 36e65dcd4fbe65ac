"""Check --data by its name alone, before torch is loaded."""

from __future__ import annotations

from pathlib import Path

from lrexport.errors import InputError, UsageError
from lrexport.networks.names import check_import_path
from lrexport.text import nearest

FOLDERS = ("folder", "imagenet")
PICTURES = ("images", "masks")
ARRAYS = "arrays"
CIFAR = ("cifar10", "cifar100")
NAMES = ("digits", *CIFAR, *reversed(FOLDERS), *PICTURES, ARRAYS)
TEST_FOLDERS = ("val", "test")


def is_import_path(source: str) -> bool:
    """Whether --data is the import path of a user's callable."""
    name, colon, _ = source.partition(":")
    return bool(colon) and name not in (*CIFAR, *FOLDERS, *PICTURES, ARRAYS)


def check_source(source: str, download: bool = False) -> None:
    """Raise UsageError for an unknown name or a module that does not exist, InputError for a missing folder."""
    name, _, root = source.partition(":")
    if name in FOLDERS:
        check_folder(name, root)
    elif name in PICTURES:
        check_pictures(name, root)
    elif name == ARRAYS:
        check_arrays(root)
    elif name in CIFAR:
        if not download and not Path(root or "data").is_dir():
            raise no_cifar(name, Path(root or "data"), "the folder does not exist")
    elif is_import_path(source):
        check_import_path(source, "--data")
    elif source != "digits":
        raise unknown(source)


def check_folder(name: str, root: str) -> None:
    """Raise UsageError if ``folder:ROOT`` or ``imagenet:ROOT`` lacks ROOT, InputError if the folder or a part is missing."""
    if not root:
        raise UsageError(f"--data {name} needs a folder", f"Write {name}:PATH.")
    expected = f"{root} needs the folders train and val (or test), each with one folder per class"
    if not Path(root).is_dir():
        raise InputError(f"folder {root} does not exist", f"{expected}.")
    if not Path(root, "train").is_dir() or not any(Path(root, part).is_dir() for part in TEST_FOLDERS):
        raise InputError(expected, f"For pictures without classes give images:{root}." if Path(root).is_dir() else None)


def check_pictures(name: str, root: str) -> None:
    """Raise UsageError if ``images:ROOT`` or ``masks:ROOT`` lacks ROOT, InputError if a folder is missing."""
    if not root:
        raise UsageError(f"--data {name} needs a folder", f"Write {name}:PATH.")
    if not Path(root).is_dir():
        raise InputError(f"folder {root} does not exist", f"Write {name}:PATH, the folder with the pictures.")
    parts = [Path(root)]
    test = next((Path(root, part) for part in TEST_FOLDERS if Path(root, part).is_dir()), None)
    if Path(root, "train").is_dir() and test is not None:
        parts = [Path(root, "train"), test]
    for part in parts if name == "masks" else ():
        for folder in ("images", "masks"):
            if not (part / folder).is_dir():
                raise InputError(
                    f"folder {part / folder} does not exist",
                    "masks:ROOT needs the folders images and masks in ROOT, or in ROOT/train and ROOT/val (or test).",
                )


def check_arrays(path: str) -> None:
    """Raise UsageError if ``arrays:FILE`` lacks FILE, InputError if it is no file."""
    if not path:
        raise UsageError("--data arrays needs a file", "Write arrays:FILE.npz.")
    if not Path(path).is_file():
        raise InputError(f"cannot read {path}: no such file", "Write it with numpy.savez(FILE, NAME=array, …).")


def no_cifar(name: str, root: Path, why: object) -> InputError:
    """The error for a CIFAR dataset that is not in ``root``."""
    return InputError(f"cannot find {name} in {root}: {why}", f"Give --download, or its folder as {name}:ROOT.")


def unknown(source: str) -> UsageError:
    """The error for an unknown name, with the nearest known one."""
    name = source.partition(":")[0]
    close = [f"folder:{name}"] if Path(name).is_dir() else nearest(name, NAMES)
    return UsageError(
        f"unknown --data {source!r}",
        (f"Did you mean {close[0]}? " if close else "")
        + "Known: digits, cifar10[:ROOT], cifar100[:ROOT], imagenet:ROOT, folder:ROOT, images:ROOT, masks:ROOT, "
        "arrays:FILE.npz, package.module:callable.",
    )


def no_calibration() -> UsageError:
    """The error for --int8 with a run that was made without data."""
    return UsageError(
        "--int8 needs samples to calibrate on, but this run was made without data",
        "Give --data; only some of its training samples are used, without labels: images:FOLDER is enough.",
    )

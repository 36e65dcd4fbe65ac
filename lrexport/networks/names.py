"""Check MODEL by its name alone, before torch is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from lrexport.artifacts import files
from lrexport.artifacts.lfs import refuse_lfs_pointer
from lrexport.errors import DeviceError, UsageError
from lrexport.text import is_onnx_name, nearest
from lrexport.trust.current_folder import origin_of

DEPTHS = (20, 32, 44, 56, 110)
CIFAR_NAMES = tuple(f"resnet{depth}" for depth in DEPTHS)
TORCHVISION = "torchvision:"
TIMM = "timm:"
# Options of torchvision's and of timm's builders that give a network published weights.
GIVE_WEIGHTS = ("weights", "pretrained")
# How torchvision's and timm's files declare a model; further decorators, some on several lines, may follow.
_REGISTERED = re.compile(r'^@register_model(?:\((?:name="(\w+)")?\))?\n(?:[@\s)].*\n)*def (\w+)\(', re.MULTILINE)
# Old names that timm still knows, and the places of its configurations, by which weights are called name.tag.
_RENAMED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}", re.MULTILINE | re.DOTALL)
_KEY = re.compile(r"""^\s*['"]([\w.]+)\*?['"]\s*:""", re.MULTILINE)


def parse_model(model: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of a MODEL such as ``torchvision:resnet18?num_classes=10``.

    Raises UsageError for options of an .onnx file.
    """
    if is_onnx_name(model):  # a path may have a question mark
        return model, {}
    name, _, query = model.partition("?")
    if is_onnx_name(name) and query:
        raise UsageError(f"invalid MODEL {model!r}: an .onnx file takes no options", f"Give {name}.")
    return name, {key: _literal(value) for key, value in parse_qsl(query)}


def _literal(text: str) -> Any:
    """``10`` → int, ``0.5`` → float, ``true`` → bool, ``none`` → None; anything else stays text."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def is_import_path(source: str) -> bool:
    """Whether MODEL, without its options, is the import path of a user's callable."""
    return ":" in source and not source.startswith((TORCHVISION, TIMM)) and not is_onnx_name(source)


def check_name(name: str) -> None:
    """Raise UsageError if MODEL, without its options, names nothing; neither torch nor the user's code is loaded.

    Raises InputError for an .onnx file that is missing, empty or a Git LFS pointer; DeviceError for timm's networks if
    timm is not installed.
    """
    if is_onnx_name(name):
        files.check_readable(Path(name))
        refuse_lfs_pointer(Path(name))
        return
    if name in CIFAR_NAMES:
        return
    if name.startswith(TORCHVISION):
        known = list(torchvision_names())
        if known and name.removeprefix(TORCHVISION) not in known:
            raise no_torchvision(name.removeprefix(TORCHVISION), known)
    elif name.startswith(TIMM):
        _check_timm(name.removeprefix(TIMM))
    elif is_import_path(name):
        check_import_path(name, "MODEL")
    elif name.endswith(".py"):
        raise _a_file("MODEL", name)
    else:
        raise _unknown(name)


def no_weights_for(model: str, option: str) -> UsageError:
    """The error for weights that are given for an .onnx file."""
    return UsageError(f"{option} does not apply to {model}: an .onnx file has its own weights", f"Omit {option}.")


def random_teacher() -> UsageError:
    """The error for a teacher that was never trained."""
    return UsageError("it has random weights", "Give --teacher-weights FILE, or a run as the teacher.")


def check_import_path(path: str, what: str) -> None:
    """Raise UsageError if ``path`` is not of the form ``package.module:callable``, or if its module does not exist."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"invalid {what} {path!r}: expected package.module:callable")
    if module_name.endswith(".py"):
        raise _a_file(what, path)
    if origin_of(module_name) is not None:
        return
    parts = module_name.split(".")
    known = next(depth for depth in range(len(parts)) if origin_of(".".join(parts[: depth + 1])) is None)
    raise no_module(what, path, ".".join(parts[: known + 1]))


def no_module(what: str, path: str, name: str) -> UsageError:
    """The error for an import path whose module ``name`` cannot be found."""
    return UsageError(f"{what} {path!r}: no module named {name!r}", "It must be in the current folder, or installed.")


def no_torchvision(name: str, known: list[str]) -> UsageError:
    """The error for a name that torchvision does not have."""
    close = nearest(name, known, 3)
    return UsageError(f"torchvision has no model {name!r}", f"Close: {', '.join(close)}." if close else None)


def no_timm(name: str, known: Iterable[str]) -> UsageError:
    """The error for a name, or a tag of weights, that timm does not have."""
    close = nearest(name, list(known), 3)
    hint = f"Close: {', '.join(close)}." if close else "timm.list_models() has all names."
    return UsageError(f"timm has no model {name!r}", hint)


def missing_timm(module: str = "timm") -> DeviceError:
    """The error for timm's networks without timm, or without a ``module`` that it needs."""
    return DeviceError(f"MODEL {TIMM}NAME needs {module}", "Install it with: pip install 'lrexport[timm]'")


def torchvision_names() -> Iterator[str]:
    """The models that the files of the installed torchvision declare; none if their format is not recognised."""
    return _declared("torchvision")


def timm_names() -> Iterator[str]:
    """The models that the files of the installed timm declare, without tags; none if timm is not installed."""
    return _declared("timm")


def _check_timm(name: str) -> None:
    """Raise the error for a name that timm's files do not declare, or for a tag that they do not mention."""
    if PathFinder.find_spec("timm") is None:
        raise missing_timm()
    texts = list(_texts("timm"))
    architecture, _, tag = name.partition(".")
    known = {declared for text in texts for declared in _declared_in(text)}
    old = {key for text in texts for block in _RENAMED.findall(text) for key in _KEY.findall(block)}
    if known and architecture not in known | old:
        raise no_timm(name, sorted(known))
    # Some tags are composed from parts, so a tag is only refused if its text is nowhere.
    if tag and not any(tag in text for text in texts):
        tags = [key for text in texts for key in _KEY.findall(text) if key.startswith(f"{architecture}.")]
        raise no_timm(name, tags)


def _declared(package: str) -> Iterator[str]:
    for text in _texts(package):
        yield from _declared_in(text)


def _declared_in(text: str) -> Iterator[str]:
    for named, function in _REGISTERED.findall(text):
        yield named or function


def _texts(package: str) -> Iterator[str]:
    """The files in which an installed package declares its models."""
    spec = PathFinder.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(Path(folder, "models").rglob("*.py")):
            yield path.read_text(encoding="utf-8")


# Where names with a prefix come from.
ELSEWHERE = {TORCHVISION: torchvision_names, TIMM: timm_names}


def _unknown(name: str) -> UsageError:
    close = nearest(name, CIFAR_NAMES, 3)
    close[:0] = [f"{prefix}{name}" for prefix, known in ELSEWHERE.items() if name in known()]
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    where = "It is a folder, but not a run (it has no run.json). " if Path(name).is_dir() else ""
    if Path(name).is_file():
        where = "It is a file, but its name does not end in .onnx. "
    return UsageError(
        f"unknown MODEL {name!r}",
        f"{hint}{where}Known: {', '.join(CIFAR_NAMES)}, torchvision:NAME, timm:NAME, "
        "package.module:callable, FILE.onnx, or a run's folder.",
    )


def _a_file(what: str, path: str) -> UsageError:
    """The error for a file instead of a module; a run's record needs a name that can be imported again."""
    file, _, attribute = path.partition(":")
    where = "" if Path(file).resolve().parent == Path.cwd() else f" and start in {Path(file).parent}"
    return UsageError(
        f"{what} {path!r} names a file; expected an import path",
        f"Write {Path(file).stem}:{attribute or 'CALLABLE'}{where}.",
    )

"""Load the weights of a file into a network: find the state dict that fits, under any prefix, or report why none does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lrexport.artifacts import tensors
from lrexport.artifacts.state_dicts import StateDicts, has_plain_values
from lrexport.errors import InputError, UsageError
from lrexport.networks import cifar_resnet, torchvision_zoo
from lrexport.torch_tools.import_torchvision import torchvision

_SHOWN = 10
# Parts of names that wrappers add: DataParallel and averaging, torch.compile.
_WRAPPERS = {"module", "_orig_mod"}
# Tensors among the weights that are not weights: the number of averaged models, and two counts of the package thop.
_NOT_WEIGHTS = {"n_averaged", "total_ops", "total_params"}
# Places of averages over training, which a script saves next to the trained weights.
_AVERAGED = re.compile(r"ema|averag|swa|shadow|polyak", re.IGNORECASE)
_TOP = "."


@dataclass(frozen=True)
class _Candidate:
    """Tensors of a file, renamed as in the network. ``name`` is their place in the file, ``unused`` the number of others."""

    name: str
    values: dict[str, Tensor]
    unused: int = 0


@dataclass(frozen=True)
class _Misfit:
    """How tensors differ from a network's: missing and unexpected names, and names whose shape or type differs."""

    missing: list[str]
    unexpected: list[str]
    differ: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.differ)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.differ)


def load_weights(network: nn.Module, path: str | Path, key: str | None = None, option: str = "key") -> tuple[str, ...]:
    """Load the weights of a safetensors file or a PyTorch checkpoint into ``network``, in place; returns notes for the user.

    A checkpoint may contain other values too. The weights are the mapping of tensors whose names and shapes fit the
    network, at any place in the file (``state_dict``, ``model.ema``); prefixes that the network's names lack are removed.
    If several mappings fit, ``key`` selects one by its place. Without ``key`` the first that is not an average over
    training is taken, with a note. ``option`` is the name of ``key`` in messages.

    Raises InputError naming missing and unexpected tensors, different shapes and the most similar known network, or the
    tensors with NaN or infinity; UsageError if the file has no weights at ``key``.
    """
    if not isinstance(network, nn.Module):
        raise UsageError(f"invalid network of type {type(network).__name__}: expected a torch.nn.Module")
    path = Path(path)
    state_dicts = tensors.load_all(path)
    expected = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    every = [each for place, values in state_dicts.items() for each in _candidates(place, values, expected, network)]
    chosen = [each for each in every if key is None or _is_at(each.name, key)]
    if not chosen:
        fitting_names = [each.name for each in every if not _misfit(each.values, expected)]
        raise _unknown_key(path, state_dicts, option, key, fitting_names)
    fitting = _different([each for each in chosen if not _misfit(each.values, expected)])
    nearest = [min(chosen, key=lambda each: len(_misfit(each.values, expected)))]
    taken = next((each for each in fitting if not _AVERAGED.search(each.name)), (fitting or nearest)[0])
    not_plain = [name for name, value in taken.values.items() if not has_plain_values(value)]
    if not_plain:
        raise tensors.without_plain_values(path, not_plain)
    if not fitting:
        raise _mismatch(path, taken, expected)
    weights = names_of_weights(network)
    _check_finite({name: value for name, value in taken.values.items() if name in weights}, str(path))
    network.load_state_dict(taken.values, strict=False)
    return tuple(_notes(path, taken, fitting, option))


def check_finite(network: nn.Module, where: str) -> None:
    """Raise InputError naming the first weights with NaN or infinity; other buffers (attention masks) may have them."""
    names = names_of_weights(network)
    weights = {name: value for name, value in network.state_dict().items() if name in names}
    _check_finite(weights, where)


def names_of_weights(network: nn.Module) -> set[str]:
    """The names of all values in the state dict that must be finite: parameters, and statistics of normalisations."""
    names = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    for place, module in network.named_modules(remove_duplicate=False):
        own = [name for name, _ in module.named_buffers(recurse=False)]
        if "running_mean" in own:  # BatchNorm and InstanceNorm; in frozen ones weight and bias are buffers as well
            names |= {f"{place}.{name}".lstrip(".") for name in own}
    return names


def _check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    bad = [name for name, value in weights.items() if isinstance(value, Tensor) and not _is_finite(value)]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise InputError(
            f"NaN or infinity in the weights of {where}: {', '.join(bad[:_SHOWN])}{more}",
            "Training diverged before this was saved: use an earlier checkpoint.",
        )


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point():
        return True
    return bool(torch.isfinite(value.float() if value.itemsize == 1 else value).all())


def _candidates(
    place: str, values: Mapping[str, Tensor], expected: Mapping[str, Tensor], network: nn.Module
) -> Iterator[_Candidate]:
    """The tensors at one place of a file, as a whole and under every prefix that a wrapper could have added."""
    whole = _named_as(values, expected, network)
    yield _Candidate(place or _TOP, whole)
    if not _misfit(whole, expected) or not expected:
        return
    probe = max(expected, key=len)  # one name is enough to find all prefixes
    plain_probe = _unwrapped(probe)
    prefixes: dict[str, None] = {}
    for name in values:
        plain = _unwrapped(name)
        for given, suffix in ((name, probe), (plain, plain_probe)):
            if given.endswith(f".{suffix}"):
                prefixes[given[: -len(suffix)]] = None
    for prefix in prefixes:
        below = {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}
        if not below:
            unwrapped = ((_unwrapped(name), value) for name, value in values.items())
            below = {name[len(prefix) :]: value for name, value in unwrapped if name.startswith(prefix)}
        named = _named_as(below, expected, network)
        weights = [name for name in values if name not in _NOT_WEIGHTS]
        yield _Candidate(f"{place}.{prefix}".strip("."), named, len(weights) - len(named))


def _named_as(values: Mapping[str, Tensor], expected: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """``values`` by the network's names: wrappers that only one side has and other names of the classifier are replaced."""
    ours = {_unwrapped(name): name for name in expected}
    renamed: dict[str, Tensor] = {}
    for name, value in values.items():
        if name.rpartition(".")[2] in _NOT_WEIGHTS and name not in expected:
            continue
        own = name if name in expected else ours.get(_unwrapped(name), name)
        # If two tensors of the file get the same name, the second keeps its old one.
        renamed[own if own not in renamed else name] = value
    if isinstance(network, cifar_resnet.CifarResNet):  # published checkpoints call its classifier "linear" or "fc"
        renamed = {f"linear.{name[3:]}" if name.startswith("fc.") else name: value for name, value in renamed.items()}
    return torchvision_zoo.without_auxiliary(renamed, network)


def _different(candidates: list[_Candidate]) -> list[_Candidate]:
    """The candidates without duplicates: two prefixes can lead to the same tensors, and a file can contain them twice."""
    by_tensors = {
        frozenset((name, value.data_ptr()) for name, value in each.values.items()): each for each in candidates[::-1]
    }
    return list(by_tensors.values())[::-1]


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _misfit(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> _Misfit:
    # Old checkpoints lack BatchNorm's counter, and nothing depends on it.
    missing = [name for name in expected if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in expected]
    return _Misfit(missing, unexpected, [n for n in expected if n in given and _differs(given[n], expected[n])])


def _differs(given: Tensor, expected: Tensor) -> bool:
    """In shape, or in type: integers, such as quantised weights, instead of floating-point numbers."""
    return given.shape != expected.shape or (expected.is_floating_point() and not given.is_floating_point())


def _is_at(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.") or (key == "" and name == _TOP)


def _notes(path: Path, taken: _Candidate, fitting: list[_Candidate], option: str) -> Iterator[str]:
    names = [each.name for each in fitting]
    if len(names) > 1:
        others = ", ".join(name for name in names if name != taken.name)
        yield f"{path} has several weights that fit: took {taken.name}; choose another with {option} ({others})"
    if taken.unused > 0:
        yield f"{path}: took the tensors at {taken.name}; {taken.unused} others are not used"


def _unknown_key(path: Path, state_dicts: StateDicts, option: str, key: str | None, fitting: list[str]) -> UsageError:
    what = "Weights that fit the network" if fitting else "Tensors"
    places = fitting or [place or _TOP for place in state_dicts]
    return UsageError(
        f"invalid {option} {key!r}: expected the place of weights in {path}", f"{what} are at: {_first(places)}."
    )


def _mismatch(path: Path, nearest: _Candidate, expected: Mapping[str, Tensor]) -> InputError:
    given, misfit = nearest.values, _misfit(nearest.values, expected)
    at = "" if nearest.name == _TOP else f" (its tensors at {nearest.name})"
    lines = [f"{path} does not fit the network{at}"]
    for label, names in (("missing", misfit.missing), ("unexpected", misfit.unexpected)):
        if names:
            lines.append(f"  {label} ({len(names)}): {_first(names)}")
    if misfit.differ:
        shapes = [f"{name} {_form(given[name], expected[name])}" for name in misfit.differ]
        lines.append(f"  other shapes ({len(shapes)}): {_first(shapes)}")
    return InputError("\n".join(lines), _closest(given))


def _form(given: Tensor, expected: Tensor) -> str:
    if given.shape != expected.shape:
        return f"{tuple(given.shape)} instead of {tuple(expected.shape)}"
    return f"{str(given.dtype).removeprefix('torch.')} instead of {str(expected.dtype).removeprefix('torch.')}"


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _closest(given: Mapping[str, Tensor]) -> str | None:
    """A hint naming the known network whose tensors overlap most with ``given`` (Jaccard index), if it exceeds ½."""
    mine = {(name, tuple(value.shape)) for name, value in given.items() if not name.endswith("num_batches_tracked")}
    mine |= {(f"linear.{name[3:]}", shape) for name, shape in mine if name.startswith("fc.")}
    best, score = "", 0.5
    for source, network in _known_networks():
        theirs = {(name, tuple(p.shape)) for name, p in network.state_dict().items() if "num_batches" not in name}
        overlap = len(mine & theirs) / len(mine | theirs)
        if overlap > score:
            best, score = source, overlap
    return f"These look like weights of {best}." if best else None


def _known_networks() -> list[tuple[str, nn.Module]]:
    families = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "vgg16", "vgg16_bn", "densenet121")
    known: list[tuple[str, nn.Module]] = []
    with torch.device("meta"):  # shapes without memory
        known += [(f"resnet{depth}", cifar_resnet.CifarResNet(depth)) for depth in cifar_resnet.DEPTHS]
        models = torchvision("models")
        known += [(f"torchvision:{name}", models.get_model(name, weights=None)) for name in families]
    return known

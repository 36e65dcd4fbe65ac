"""Put the weights of a file into a network: whichever of its state dicts fits, under whatever prefix, or why none does."""

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
# Modules that wrap a network, or a part of it, and so stand in the names: DataParallel and averaging, torch.compile.
_WRAPPERS = {"module", "_orig_mod"}
# What others leave among the weights: how many were averaged, and two counts of the package thop.
_BESIDE = {"n_averaged", "total_ops", "total_params"}
# Averages over training, which a script keeps beside the weights that it trains.
_AVERAGED = re.compile(r"ema|averag|swa|shadow|polyak", re.IGNORECASE)
_TOP = "."


@dataclass(frozen=True)
class _Candidate:
    """Tensors of a file as a network names them. ``name`` is where they stand there, ``unused`` how many do beside them."""

    name: str
    values: dict[str, Tensor]
    unused: int = 0


@dataclass(frozen=True)
class _Misfit:
    """In what tensors differ from a network's."""

    missing: list[str]
    unexpected: list[str]
    differ: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.differ)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.differ)


def load_weights(network: nn.Module, path: str | Path, key: str | None = None, option: str = "key") -> tuple[str, ...]:
    """Load the weights in a safetensors file or a PyTorch checkpoint into ``network``, in place; returns what to note.

    A checkpoint may hold anything beside them. Taken is the mapping of tensors whose names and shapes fit the network,
    wherever it stands (``state_dict``, ``model.ema``); a prefix that the network's names do not have is removed. Where
    several fit, ``key`` says which, by its place; otherwise the first that is not an average over training is taken, and
    noted. ``option`` is what ``key`` is called in messages.

    Raises InputError naming missing and unexpected tensors, shapes that differ and the closest known network, or the
    tensors that hold NaN or infinity; UsageError where no weights of the file have that key.
    """
    if not isinstance(network, nn.Module):
        raise UsageError(f"invalid network of type {type(network).__name__}: expected a torch.nn.Module")
    path = Path(path)
    held = tensors.load_all(path)
    wanted = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    every = [each for place, values in held.items() for each in _candidates(place, values, wanted, network)]
    chosen = [each for each in every if key is None or _is_at(each.name, key)]
    if not chosen:
        raise _unknown_key(path, held, option, key, [each.name for each in every if not _misfit(each.values, wanted)])
    fitting = _different([each for each in chosen if not _misfit(each.values, wanted)])
    nearest = [min(chosen, key=lambda each: len(_misfit(each.values, wanted)))]
    taken = next((each for each in fitting if not _AVERAGED.search(each.name)), (fitting or nearest)[0])
    hollow = [name for name, value in taken.values.items() if not has_plain_values(value)]
    if hollow:
        raise tensors.without_plain_values(path, hollow)
    if not fitting:
        raise _mismatch(path, taken, wanted)
    weights = names_of_weights(network)
    _check_finite({name: value for name, value in taken.values.items() if name in weights}, str(path))
    network.load_state_dict(taken.values, strict=False)
    return tuple(_notes(path, taken, fitting, option))


def check_finite(network: nn.Module, where: str) -> None:
    """Raise InputError naming the first weights that hold NaN or infinity; other buffers may (attention masks do)."""
    weights = names_of_weights(network)
    held = {name: value for name, value in network.state_dict().items() if name in weights}
    _check_finite(held, where)


def names_of_weights(network: nn.Module) -> set[str]:
    """Parameters and the statistics of normalisations, by their names in the state dict: what must be finite."""
    names = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    for place, module in network.named_modules(remove_duplicate=False):
        own = [name for name, _ in module.named_buffers(recurse=False)]
        if "running_mean" in own:  # BatchNorm, InstanceNorm, and frozen ones, whose weight and bias are buffers, too
            names |= {f"{place}.{name}".lstrip(".") for name in own}
    return names


def _check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    bad = [name for name, value in weights.items() if isinstance(value, Tensor) and not _is_finite(value)]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise InputError(
            f"NaN or infinity in the weights of {where}: {', '.join(bad[:_SHOWN])}{more}",
            "Training diverged before these were saved; use an earlier checkpoint.",
        )


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point():
        return True
    return bool(torch.isfinite(value.float() if value.itemsize == 1 else value).all())


def _candidates(
    place: str, values: Mapping[str, Tensor], wanted: Mapping[str, Tensor], network: nn.Module
) -> Iterator[_Candidate]:
    """The tensors at one place of a file, as a whole and below every prefix that could be a wrapper's."""
    whole = _named_as(values, wanted, network)
    yield _Candidate(place or _TOP, whole)
    if not _misfit(whole, wanted) or not wanted:
        return
    probe = max(wanted, key=len)  # by this one name all prefixes are found
    plain_probe = _unwrapped(probe)
    prefixes: dict[str, None] = {}
    for name in values:
        plain = _unwrapped(name)
        for given, sought in ((name, probe), (plain, plain_probe)):
            if given.endswith(f".{sought}"):
                prefixes[given[: -len(sought)]] = None
    for prefix in prefixes:
        below = {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}
        if not below:
            unwrapped = ((_unwrapped(name), value) for name, value in values.items())
            below = {name[len(prefix) :]: value for name, value in unwrapped if name.startswith(prefix)}
        named = _named_as(below, wanted, network)
        left = [name for name in values if name not in _BESIDE]
        yield _Candidate(f"{place}.{prefix}".strip("."), named, len(left) - len(named))


def _named_as(values: Mapping[str, Tensor], wanted: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """``values`` by the network's names: without wrappers that only one of the two has, and as its family calls layers."""
    ours = {_unwrapped(name): name for name in wanted}
    renamed: dict[str, Tensor] = {}
    for name, value in values.items():
        if name.rpartition(".")[2] in _BESIDE and name not in wanted:
            continue
        own = name if name in wanted else ours.get(_unwrapped(name), name)
        # Two of the file's tensors may come to one name: then they keep their own.
        renamed[own if own not in renamed else name] = value
    if isinstance(network, cifar_resnet.CifarResNet):  # whose classifier is called either in the wild
        renamed = {f"linear.{name[3:]}" if name.startswith("fc.") else name: value for name, value in renamed.items()}
    return torchvision_zoo.without_auxiliary(renamed, network)


def _different(candidates: list[_Candidate]) -> list[_Candidate]:
    """Each once: the same tensors can be found by two prefixes, and stand in a file twice."""
    by_tensors = {
        frozenset((name, value.data_ptr()) for name, value in each.values.items()): each for each in candidates[::-1]
    }
    return list(by_tensors.values())[::-1]


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _misfit(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> _Misfit:
    # BatchNorm's counter is absent from old checkpoints, and nothing depends on it.
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    return _Misfit(missing, unexpected, [name for name in wanted if name in given and _differs(given[name], wanted[name])])


def _differs(given: Tensor, wanted: Tensor) -> bool:
    """In shape; or integers stand, quantised maybe, where the network has fractions."""
    return given.shape != wanted.shape or (wanted.is_floating_point() and not given.is_floating_point())


def _is_at(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.") or (key == "" and name == _TOP)


def _notes(path: Path, taken: _Candidate, fitting: list[_Candidate], option: str) -> Iterator[str]:
    names = [each.name for each in fitting]
    if len(names) > 1:
        others = ", ".join(name for name in names if name != taken.name)
        yield f"{path} holds several weights that fit: {taken.name} was taken, {option} chooses another ({others})"
    if taken.unused > 0:
        yield f"{path}: the tensors at {taken.name} were taken; {taken.unused} beside them are not used"


def _unknown_key(path: Path, held: StateDicts, option: str, key: str | None, fitting: list[str]) -> UsageError:
    what = "Weights that fit the network" if fitting else "Tensors"
    places = fitting or [place or _TOP for place in held]
    return UsageError(
        f"invalid {option} {key!r}: expected the place of weights in {path}", f"{what} are at: {_first(places)}."
    )


def _mismatch(path: Path, nearest: _Candidate, wanted: Mapping[str, Tensor]) -> InputError:
    given, misfit = nearest.values, _misfit(nearest.values, wanted)
    at = "" if nearest.name == _TOP else f" (its tensors at {nearest.name})"
    lines = [f"{path} does not fit the network{at}"]
    for label, names in (("missing", misfit.missing), ("unexpected", misfit.unexpected)):
        if names:
            lines.append(f"  {label} ({len(names)}): {_first(names)}")
    if misfit.differ:
        shapes = [f"{name} {_form(given[name], wanted[name])}" for name in misfit.differ]
        lines.append(f"  other shapes ({len(shapes)}): {_first(shapes)}")
    return InputError("\n".join(lines), _closest(given))


def _form(given: Tensor, wanted: Tensor) -> str:
    if given.shape != wanted.shape:
        return f"{tuple(given.shape)} instead of {tuple(wanted.shape)}"
    return f"{str(given.dtype).removeprefix('torch.')} instead of {str(wanted.dtype).removeprefix('torch.')}"


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _closest(given: Mapping[str, Tensor]) -> str | None:
    """The known network whose tensor names and shapes overlap most with ``given`` (Jaccard index), if more than half."""
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

"""Is the exported graph the network? onnx's checker, outputs against torch, accuracy against torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from lrexport.data.images import ImageSet
from lrexport.errors import InputError
from lrexport.formats.agreement import (
    RELATIVE_TOLERANCE,
    Agreement,
    Array,
    ComparedOutputs,
    Rounding,
    Terms,
    check_agreement,
)
from lrexport.measure.latency import session
from lrexport.runs.record import Accuracy
from lrexport.tasks.classification import count_correct, images_of, nan_rows, not_a_number
from lrexport.text import first_line
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.tracing import flat_tensors

__all__ = ["RELATIVE_TOLERANCE", "Comparison", "Reference"]

# Cohen's κ up to which agreement counts as slight (Landis and Koch 1977, doi:10.2307/2529310).
_LEAST_KAPPA = 0.2
# Agreement that is good whatever κ is: where almost all images are of one class, κ tells nothing.
_GOOD_AGREEMENT = 0.9
_READ_AT_ONCE = 250
# Share of images whose predicted class may differ for near-ties before an export counts as wrong.
_TIES = 0.001
# Inputs that rounding errors are measured on: double precision takes several times as long.
_MEASURED = 3

Comparison = Agreement


def check_model(model: onnx.ModelProto) -> None:
    """onnx's checker with strict shape inference. Raises InputError."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError, and what else its C++ raises: they share no base
        raise InputError(f"the exported graph is not valid ONNX: {first_line(error)}") from error


class Reference:
    """What torch gives for some inputs, which graphs are compared with.

    ``extremes`` are inputs at which a network may well give infinity or round badly: there a graph only has to do the same.
    Raises InputError where the network gives NaN for one of ``inputs``.
    """

    def __init__(
        self, network: nn.Module, inputs: Mapping[str, Tensor], extremes: Mapping[str, Tensor] | None = None
    ) -> None:
        self._network = network
        self._groups = [
            (given, [_outputs(network, each) for each in given.values()], lenient)
            for given, lenient in ((inputs, False), (extremes or {}, True))
            if given
        ]
        for label, outputs in zip(inputs, self._groups[0][1] if inputs else (), strict=True):
            for output in outputs:
                if output.is_floating_point() and output.isnan().any():
                    share = f"{int(output.isnan().sum()):,} of {output.numel():,} values"
                    raise InputError(
                        f"the network gives NaN on {label}: {share}",
                        "Are its weights sound, and does it take inputs of this range?",
                    )

    def compare(self, model: onnx.ModelProto) -> Comparison:
        """Run ``model`` on every input. Raises InputError with the largest difference and where it is."""
        check_model(model)
        runtime = _open(model)
        worst = Comparison(0.0, "nowhere")
        for given, wanted, lenient in self._groups:
            results = [_run(runtime, label, each) for label, each in given.items()]
            names = [item.name for item in runtime.get_outputs()]
            for label, mine, torchs in zip(given, results, wanted, strict=True):
                _check_form(label, mine, torchs)
            for number, name in enumerate(names):
                pairs = [
                    ComparedOutputs(label, _array(torchs[number]), np.asarray(mine[number]).astype(np.float64))
                    for label, torchs, mine in zip(given, wanted, results, strict=True)
                ]
                terms = Terms("the exported graph", "torch", lenient=lenient)
                rounding = self._rounding(list(given.values()), wanted, number)
                worst = worst.worst(check_agreement(pairs, rounding, terms, name if len(names) > 1 else ""))
        return worst

    def _rounding(self, inputs: list[Tensor], wanted: list[list[Tensor]], number: int) -> Rounding:
        """Of output ``number``: what float32 gets wrong on a few of the inputs."""
        last = len(inputs) - 1
        chosen = sorted({round(last * part / (_MEASURED - 1)) for part in range(_MEASURED)})

        def measure() -> Sequence[Array]:
            exact = [_more_exact(self._network, inputs[index])[number] for index in chosen]
            pairs = [
                ComparedOutputs("", _array(one), _array(wanted[index][number]))
                for one, index in zip(exact, chosen, strict=True)
            ]
            return [np.where(np.isfinite(pair.difference), pair.difference, 0.0) for pair in pairs]

        return measure


def compare_with_torch(network: nn.Module, model: onnx.ModelProto, inputs: Mapping[str, Tensor]) -> Comparison:
    """Run both on every input. Raises InputError with the largest error and where it is when it passes the tolerance."""
    return Reference(network, inputs).compare(model)


@torch.no_grad()
def _outputs(network: nn.Module, given: Tensor) -> list[Tensor]:
    """The network's outputs on the CPU, copied: they may be views of the input, which the network may change."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with eval_mode(network):
        return [tensor.detach().cpu().clone() for tensor in flat_tensors(network(given.to(device, copy=True)))]


def check_repeats(network: nn.Module, given: Tensor) -> None:
    """Raise InputError for a network that gives two outputs for one input in eval mode, naming where that begins."""
    first, second = _outputs(network, given), _outputs(network, given)
    worst = 0.0
    for one, two in zip(first, second, strict=True):
        if one.shape != two.shape:
            worst = float("inf")
        elif one.numel():
            scale = float(np.nan_to_num(np.abs(_array(one))).max()) or 1.0
            worst = max(worst, float(ComparedOutputs("", _array(one), _array(two)).difference.max()) / scale)
    if worst <= RELATIVE_TOLERANCE:
        return
    raise InputError(
        f"in eval mode the network gives two outputs for one input, which differ by {worst:.2g} of the largest: "
        f"it draws random numbers or keeps something between two runs, {_where_it_differs(network, given)}",
        "Dropout must be given training=self.training, as in F.dropout(x, p, self.training); an exported graph cannot draw.",
    )


def _where_it_differs(network: nn.Module, given: Tensor) -> str:
    """The first module that gives two outputs though it was given the same twice."""
    runs: list[list[tuple[str, list[Tensor], list[Tensor]]]] = []
    names: dict[nn.Module, str] = {module: name for name, module in network.named_modules() if name}

    def copies(value: object) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in flat_tensors(value)]

    def note(module: nn.Module, given_to: object, output: object) -> None:
        runs[-1].append((names[module], copies(given_to), copies(output)))

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        for _ in range(2):
            runs.append([])
            _outputs(network, given)
    finally:
        for hook in hooks:
            hook.remove()
    for (name, one_given, one), (_, two_given, two) in zip(*runs, strict=False):
        if not _all_equal(one_given, two_given):
            return f"in its own forward, before its module {name!r}"
        if not _all_equal(one, two):
            return f"in its module {name!r}"
    return "in its own forward"


def _all_equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(
        mine.shape == other.shape and torch.equal(mine.nan_to_num(), other.nan_to_num())
        for mine, other in zip(one, two, strict=True)
    )


def _more_exact(network: nn.Module, given: Tensor) -> list[Tensor]:
    """The network's outputs in double precision, or, where it computes in float32 whatever it is given, for an input that
    differs in its last bits."""
    tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))
    wide = {name: tensor.detach().double() for name, tensor in tensors.items() if tensor.is_floating_point()}
    try:
        with torch.no_grad(), eval_mode(network):
            result = torch.func.functional_call(network, wide, (given.double(),), tie_weights=True)
            return [tensor.detach().cpu().clone() for tensor in flat_tensors(result)]
    except Exception:  # a forward that makes float32 of its own; whatever it is, the network runs as it was made
        signs = torch.randint(2, given.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return _outputs(network, given * (1 + 4 * torch.finfo(torch.float32).eps * signs))


def _run(runtime: Any, label: str, given: Tensor) -> list[npt.NDArray[Any]]:
    try:
        outputs: list[npt.NDArray[Any]] = runtime.run(None, {runtime.get_inputs()[0].name: given.contiguous().numpy()})
    except Exception as error:  # its exceptions share no base but Exception
        raise InputError(f"ONNX Runtime cannot run the exported graph on {label}: {first_line(error)}") from error
    return outputs


def _check_form(label: str, results: list[npt.NDArray[Any]], wanted: list[Tensor]) -> None:
    """Number, shapes and types of the outputs."""
    if len(results) != len(wanted):
        raise InputError(f"the exported graph gives {len(results)} outputs on {label}, torch gives {len(wanted)}")
    for mine, torchs in zip(results, wanted, strict=True):
        if mine.shape != tuple(torchs.shape):
            raise InputError(f"the exported graph gives {mine.shape} on {label}, torch gives {tuple(torchs.shape)}")
        kind = str(torchs.dtype).removeprefix("torch.")
        if str(mine.dtype) != kind:
            raise InputError(f"the exported graph gives {mine.dtype} on {label}, torch gives {kind}")


def _array(tensor: Tensor) -> Array:
    return tensor.to(torch.float64).numpy()


def score_onnx(path: Path, images: ImageSet, split: str) -> Accuracy:
    """Accuracy of an ONNX file in ONNX Runtime, at its own batch size, on all cores. Raises NotANumber for NaN."""
    runtime = session(path, threads=0)
    top1 = top5 = bad = 0
    for batch, labels in feed(images, runtime):
        logits = _logits(runtime, batch)[: len(labels)]
        first, five = count_correct(logits, labels)
        top1, top5, bad = top1 + first, top5 + five, bad + nan_rows(logits)
    if bad:
        raise not_a_number(f"{path.name} in ONNX Runtime", bad, len(images), images_of(split))
    return Accuracy(top1=top1 / len(images), top5=top5 / len(images), n=len(images), split=split)


def compare_predictions(reference: Path, model: onnx.ModelProto, images: ImageSet) -> float:
    """Share of ``images`` that ``model`` puts in the same class as ``reference``, the float32 file it was quantised from.

    Raises InputError where it declares another input or output, gives what is not finite, or agrees on fewer than nine of
    ten images and hardly more often than two files that know nothing of each other.
    """
    check_model(model)
    wanted, declared = _declared(onnx.load(str(reference))), _declared(model)
    if declared != wanted:
        raise InputError(f"the int8 graph of {reference.name} declares {declared} instead of {wanted}")
    runtimes = (session(reference, threads=0), _open(model))
    classes: tuple[list[Tensor], list[Tensor]] = ([], [])
    for batch, labels in feed(images, runtimes[0]):
        for runtime, named in zip(runtimes, classes, strict=True):
            logits = _logits(runtime, batch)[: len(labels)]
            if not logits.isfinite().all():
                raise InputError(f"{reference.name} gives NaN or infinity" + (" in int8" if runtime is runtimes[1] else ""))
            named.append(logits.argmax(1))
    agreement, kappa = _agreement(torch.cat(classes[0]), torch.cat(classes[1]))
    if kappa < _LEAST_KAPPA and agreement < _GOOD_AGREEMENT:
        raise InputError(
            f"in int8 {reference.name} names the same class on {100 * agreement:.1f} % of {len(images)} calibration images, "
            f"which is hardly more than chance (Cohen's κ {kappa:.2f})",
            "Are its weights trained? If so, try more --calibration-images. Nothing that looks finished was left.",
        )
    return agreement


def _agreement(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Share of equal classes, and Cohen's κ: that share above what the classes' frequencies alone would give. (N,), (N,)."""
    count = int(torch.maximum(first, second).max()) + 1
    shares = [torch.bincount(classes, minlength=count).double() / len(classes) for classes in (first, second)]
    agreement, chance = float((first == second).double().mean()), float(shares[0] @ shares[1])
    return agreement, (agreement - chance) / (1 - chance) if chance < 1 else 1.0


def feed(
    images: ImageSet, runtime: Any, dynamic_batch: int = _READ_AT_ONCE
) -> Iterator[tuple[npt.NDArray[np.float32], Tensor]]:
    """Batches as a session takes them, (B, C, H, W) and the labels of those that are no filling.

    A fixed batch is filled up with its last image; images are read many at a time whatever the batch.
    """
    fixed = runtime.get_inputs()[0].shape[0]
    size = fixed if isinstance(fixed, int) else dynamic_batch
    for batch, labels in images.batches(size * max(1, _READ_AT_ONCE // size), torch.device("cpu")):
        array = batch.contiguous().numpy()
        for start in range(0, len(array), size):
            part = array[start : start + size]
            if isinstance(fixed, int) and len(part) < fixed:
                part = np.concatenate([part, np.repeat(part[-1:], fixed - len(part), axis=0)])
            yield part, labels[start : start + size]


def _logits(runtime: Any, batch: npt.NDArray[np.float32]) -> Tensor:
    """(B, C, H, W) → (B, classes)."""
    return torch.from_numpy(runtime.run(None, {runtime.get_inputs()[0].name: batch})[0])


def _open(model: onnx.ModelProto) -> Any:
    """An ONNX Runtime session. Raises InputError where the runtime refuses the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised; names would be printed raw
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but Exception
        raise InputError(f"ONNX Runtime refuses the exported graph: {error}") from error


def _declared(model: onnx.ModelProto) -> list[tuple[str, int, list[int]]]:
    """Name, type and shape of inputs and outputs as they are written; 0 for a dynamic size, whose name may change."""
    return [
        (item.name, item.type.tensor_type.elem_type, [size.dim_value for size in item.type.tensor_type.shape.dim])
        for item in (*model.graph.input, *model.graph.output)
    ]


def check_same_accuracy(path: Path, torch_accuracy: Accuracy, onnx_accuracy: Accuracy) -> None:
    """Raise InputError unless both agree up to ties."""
    allowed = max(_TIES, 1.5 / torch_accuracy.n)
    if abs(torch_accuracy.top1 - onnx_accuracy.top1) > allowed:
        raise InputError(
            f"{path.name} scores {onnx_accuracy.top1:.4f} in ONNX Runtime, torch {torch_accuracy.top1:.4f} on the same "
            f"{torch_accuracy.n} images",
            "The export is not the network that was trained; nothing that looks finished was left.",
        )

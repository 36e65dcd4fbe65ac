"""Is the exported graph the network? onnx's checker, outputs against torch, accuracy against torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from lrexport.data.images import ImageSet
from lrexport.errors import InputError
from lrexport.measure.latency import session
from lrexport.record import Accuracy
from lrexport.training.scoring import count_correct

# float32 through different kernels: largest difference relative to the largest output.
RELATIVE_TOLERANCE = 1e-4
# Cohen's κ up to which agreement counts as slight (Landis and Koch 1977, doi:10.2307/2529310).
_LEAST_KAPPA = 0.2
# Agreement that is good whatever κ is: where almost all images are of one class, κ tells nothing.
_GOOD_AGREEMENT = 0.9
_READ_AT_ONCE = 250
# Share of images whose predicted class may differ for near-ties before an export counts as wrong.
_TIES = 0.001


@dataclass(frozen=True)
class Comparison:
    """The largest difference from torch, relative to torch's largest output, and the input where it was."""

    relative_error: float
    where: str

    def worst(self, other: Comparison) -> Comparison:
        return self if self.relative_error >= other.relative_error else other


def check_model(model: onnx.ModelProto) -> None:
    """onnx's checker with strict shape inference. Raises InputError."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise InputError(f"the exported graph is not valid ONNX: {error}") from error


@torch.no_grad()
def compare_with_torch(network: nn.Module, model: onnx.ModelProto, inputs: Mapping[str, Tensor]) -> Comparison:
    """Run both on every input. Raises InputError with the largest error and where it is when it passes the tolerance."""
    check_model(model)
    runtime = _open(model)
    name = runtime.get_inputs()[0].name
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    worst = Comparison(0.0, "nowhere")
    for label, given in inputs.items():
        wanted = network(given.to(device)).detach().cpu().numpy()
        found = runtime.run(None, {name: given.numpy()})[0]
        if found.shape != wanted.shape:
            raise InputError(f"the exported graph gives {found.shape} on {label}, torch gives {wanted.shape}")
        difference = np.abs(found.astype(np.float64) - wanted)
        scale = max(float(np.abs(wanted).max()), np.finfo(np.float32).tiny)
        place = np.unravel_index(int(np.nan_to_num(difference, nan=np.inf).argmax()), difference.shape)
        relative = float(difference[place]) / scale
        if not relative <= RELATIVE_TOLERANCE:
            raise InputError(
                f"the exported graph differs from torch by {relative:.2g} of the largest output on {label}, "
                f"at output {tuple(int(index) for index in place)}: {found[place]:.6g} instead of {wanted[place]:.6g}",
                f"At most {RELATIVE_TOLERANCE:g} is allowed. Nothing was written.",
            )
        worst = worst.worst(Comparison(relative, label))
    return worst


def score_onnx(path: Path, images: ImageSet, split: str) -> Accuracy:
    """Accuracy of an ONNX file in ONNX Runtime, at its own batch size, on all cores."""
    runtime = session(path, threads=0)
    top1 = top5 = 0
    for batch, labels in feed(images, runtime):
        first, five = count_correct(_logits(runtime, batch)[: len(labels)], labels)
        top1, top5 = top1 + first, top5 + five
    return Accuracy(top1=top1 / len(images), top5=top5 / len(images), n=len(images), split=split)


def compare_predictions(reference: Path, model: onnx.ModelProto, images: ImageSet) -> float:
    """Share of ``images`` that ``model`` puts in the same class as ``reference``, the float32 file it was quantised from.

    Raises InputError where it declares another input or output, gives what is not finite, or agrees on fewer than nine of
    ten images and hardly more often than two files that know nothing of each other.
    """
    check_model(model)
    wanted, found = _declared(onnx.load(str(reference))), _declared(model)
    if found != wanted:
        raise InputError(f"the int8 graph of {reference.name} declares {found} instead of {wanted}")
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
    options.log_severity_level = 3
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

"""Is the exported graph the network? onnx's checker, outputs against torch, accuracy against torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
    import onnxruntime

    check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        runtime = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but Exception
        raise InputError(f"ONNX Runtime refuses the exported graph: {error}") from error
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
    given = runtime.get_inputs()[0]
    size = given.shape[0] if isinstance(given.shape[0], int) else 250
    top1 = top5 = 0
    for batch, labels in images.batches(size, torch.device("cpu")):
        array = batch.contiguous().numpy()
        missing = size - len(array) if isinstance(given.shape[0], int) else 0
        if missing:
            array = np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
        logits = torch.from_numpy(runtime.run(None, {given.name: array})[0])[: len(labels)]
        first, five = count_correct(logits, labels)
        top1, top5 = top1 + first, top5 + five
    return Accuracy(top1=top1 / len(images), top5=top5 / len(images), n=len(images), split=split)


def check_same_accuracy(path: Path, torch_accuracy: Accuracy, onnx_accuracy: Accuracy) -> None:
    """Raise InputError unless both agree up to ties."""
    allowed = max(_TIES, 1.5 / torch_accuracy.n)
    if abs(torch_accuracy.top1 - onnx_accuracy.top1) > allowed:
        raise InputError(
            f"{path.name} scores {onnx_accuracy.top1:.4f} in ONNX Runtime, torch {torch_accuracy.top1:.4f} on the same "
            f"{torch_accuracy.n} images",
            "The export is not the network that was trained; nothing that looks finished was left.",
        )

"""Scores of exported files in ONNX Runtime, and whether they are those of the torch network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.data.images import ImageSet
from lrexport.errors import InputError
from lrexport.formats.feeding import feed
from lrexport.formats.graph_sessions import feed_of
from lrexport.formats.sample_sessions import like_network
from lrexport.measure.latency import session
from lrexport.metric import SHARE
from lrexport.runs.scores import Score
from lrexport.tasks.classification import CLASSIFICATION
from lrexport.tasks.scoring import computed, images_of, measuring, nan_samples, not_a_number
from lrexport.tasks.task import Task
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.outputs import refilled

# Share of images whose predicted class may differ because of near-ties; of other scores than shares, relative to them.
_TIES = 0.001


def score_onnx(
    path: Path,
    images: ImageSet,
    split: str,
    task: Task = CLASSIFICATION,
    like: Any = None,
    network: nn.Module | None = None,
    runtime: Any = None,
) -> Score:
    """The metrics of an ONNX file in ONNX Runtime, or in ``runtime``, a session; at its own batch size, on all cores.

    ``like`` is an output of the torch network, whose form the file's outputs get; None for a single tensor.
    ``network`` is that network: its file, if it came
    from one, then takes its inputs. Raises NotANumber for NaN, InputError if the task raises an error.
    """
    where = "ONNX Runtime" if runtime is None else "its runtime"
    runtime = runtime or like_network(session(path, threads=0), network)
    meter, bad = task.meter(), 0
    for batch, targets, count in feed(images, runtime, task.score_batch, task.score_batch):
        outputs = _outputs_of(runtime, batch, count, like)
        bad += nan_samples(outputs, count)
        with measuring(task):
            meter.update(outputs, task.targets_of(batch[:count], targets))
    if bad:
        raise not_a_number(f"{path.name} in {where}", bad, len(images), images_of(split))
    return computed(task, meter, len(images), split)


def _outputs_of(runtime: Any, batch: Batch, count: int, like: Any) -> Any:
    """The outputs for the first ``count`` samples of a batch, in the form of ``like``."""
    arrays = [torch.from_numpy(array) for array in runtime.run(None, feed_of(runtime, batch))]
    cut = [array[:count] if array.ndim and len(array) == len(batch) else array for array in arrays]
    return cut[0] if like is None or isinstance(like, Tensor) else refilled(like, iter(cut))


def check_same_score(path: Path, of_torch: Score, of_onnx: Score) -> None:
    """Raise InputError unless both scores agree up to ties."""
    for (metric, torchs), (_, mine) in zip(of_torch.metrics_of, of_onnx.metrics_of, strict=True):
        allowed = max(_TIES, 1.5 / of_torch.n) if metric.unit == SHARE else _TIES * max(1.0, abs(torchs))
        if abs(torchs - mine) > allowed:
            raise InputError(
                f"{path.name} scores {mine:.4f} in ONNX Runtime, torch {torchs:.4f} on the same {of_torch.n} images"
                + ("" if of_torch.task == CLASSIFICATION.name else f" ({metric.name})"),
                "The exported file is not the trained network. No files were written.",
            )
        if of_torch.task == CLASSIFICATION.name:  # top-1 alone
            return

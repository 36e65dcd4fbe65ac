"""Load the starting point of a job, a model with weights and data or an earlier run, and check that its parts fit."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrexport.artifacts.run_files import RECORD, SVD
from lrexport.config.comparison import IMAGES, SETTLED
from lrexport.config.compression import AskedForm, AskedScheme, TrainConfig
from lrexport.data.datasets import check_fits, load_data
from lrexport.data.images import Splits, hold_out
from lrexport.errors import InputError, UsageError
from lrexport.formats.onnx import check_output
from lrexport.formats.rewritten import cost_of
from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.networks.building import ModelRecipe, from_record, resolve
from lrexport.networks.names import random_teacher
from lrexport.networks.weights import check_finite, load_weights
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.runs import loading
from lrexport.runs.record import RANDOM, Earlier, Record, load_record
from lrexport.runs.request import RunRequest
from lrexport.runs.sources import DataSource
from lrexport.tasks.named import task_of
from lrexport.tasks.task import Task
from lrexport.torch_tools.copying import copy_network, with_same_weights
from lrexport.torch_tools.plain_form import make_plain
from lrexport.torch_tools.tracing import run_once


@dataclass(frozen=True)
class Start:
    """The starting point of a run: options, recipe, record, data and networks.

    ``teacher`` is the network to distil from, by default the dense one. ``task`` is what the data is for, None if
    nothing can be trained or scored. ``trained``: ``svd`` has had SVD training.
    """

    config: TrainConfig
    recipe: ModelRecipe
    record: Record
    splits: Splits | None
    dense: nn.Module
    svd: SVDNetwork
    teacher: nn.Module
    task: Task | None
    trained: bool = False


def start_of(request: RunRequest[Any]) -> Start:
    """Load what a request names, and check that it fits together. Raises InputError and UsageError."""
    return _from_model(request.train) if request.source is None else _from_run(request, request.source)


def _from_model(config: TrainConfig) -> Start:
    notes: list[str] = []
    recipe, splits, network, task = _load(config, notes)
    trains = trains_svd(config, splits, task)
    svd = to_svd_form((copy_network if trains else with_same_weights)(network), recipe, config, trains)
    teacher = _load_teacher(config, splits, task, notes) or network
    digests = config.digests() | _data_digest(splits)
    record = Record(
        model=recipe.to_record(), data=_data_record(splits), config=config.to_record(), digests=digests, notes=notes
    )
    return Start(config, recipe, record, splits, network, svd, teacher, task)


def _from_run(request: RunRequest[Any], source: Path) -> Start:
    """Start from the SVD-trained network of a run, or from its dense one if it has no other.

    Options of finished stages stay as they were. From the dense network, the request decides those of SVD training.
    """
    config, before = request.train, load_record(source)
    recipe = from_record(before.model, source / RECORD)
    dense, svd = loading.load_start(source, before), load_svd(config, source, trained=request.command == "train")
    # Options of finished stages stay, above all those of the held-out images.
    done = {name: before.config[name] for name in SETTLED if name in before.config}
    done["weights"] = Path(done["weights"]) if done.get("weights") else None
    done = {name: tuple(value) if isinstance(value, list) else value for name, value in done.items()}
    done.setdefault("keep", ())
    data = config.data or (before.data.source if before.data else None)
    trained = SVD in before.files
    if not trained:
        done |= {name: getattr(config, name) for name in request.chosen_again}
    given, config = config.data, replace(config, **done, model=recipe.source, data=data)
    with loading.naming_recorded_data(before, given):
        splits = _load_splits(config, recipe, None if given else source / RECORD)
    task = _fitting_task(
        config.task or before.config.get("task"), splits, dense, recipe, None if config.task else source / RECORD
    )
    config = replace(config, task=config.task or before.config.get("task"))
    digests = {name: value for name, value in before.digests.items() if name in ("weights_sha256", "model_sha256")}
    digests |= config.teacher_digest() | _data_digest(splits)
    earlier = [*before.earlier, Earlier(run=None if request.in_place else str(source), config=before.config)]
    notes = [RANDOM] if RANDOM in before.notes else []
    teacher = _load_teacher(config, splits, task, notes) or dense
    record = Record(model=before.model, data=_data_record(splits), digests=digests, earlier=earlier, notes=notes)
    return Start(config, recipe, record, splits, dense, svd, teacher, task, trained)


def _data_record(splits: Splits | None) -> DataSource | None:
    return splits.to_record() if splits is not None else None


def _data_digest(splits: Splits | None) -> dict[str, str]:
    return {"data_sha256": splits.digest()} if splits is not None else {}


@dataclass(frozen=True)
class PlanningStart:
    """The starting point of a plan; ``notes`` are about its weights, which may be ``random``."""

    recipe: ModelRecipe
    svd: SVDNetwork
    splits: Splits | None
    notes: list[str]
    random: bool
    task: Task | None


def load_for_planning(config: TrainConfig, source: Path | None = None) -> PlanningStart:
    """Load a model, or the run ``source``, without writing anything. Raises as :func:`start_of`."""
    notes: list[str] = []
    if source is None:
        recipe, splits, network, task = _load(config, notes)
        _load_teacher(config, splits, task, notes)  # only for its errors
        svd = to_svd_form(network, recipe, config, trained=False)
        return PlanningStart(recipe, svd, splits, notes, recipe.is_random(config.weights), task)
    record = load_record(source)
    recipe = from_record(record.model, source / RECORD)
    data = config.data or (record.data.source if record.data else None)
    kept = {name: record.config[name] for name in IMAGES if name in record.config}
    kept = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    with loading.naming_recorded_data(record, config.data):
        splits = _load_splits(replace(config, **kept, data=data), recipe, None if config.data else source / RECORD)
    asked, named_in = config.task or record.config.get("task"), None if config.task else source / RECORD
    task = _fitting_task(asked, splits, loading.load_start(source, record), recipe, named_in)
    _load_teacher(config, splits, task, notes)
    return PlanningStart(recipe, load_svd(config, source, trained=False), splits, notes, RANDOM in record.notes, task)


def load_svd(config: TrainConfig, source: Path, trained: bool = True) -> SVDNetwork:
    """The network of a run in SVD form, after SVD training if the run has it; ``trained``: SVD training follows."""
    record = load_record(source)
    recipe = from_record(record.model, source / RECORD)
    if SVD not in record.files:
        return to_svd_form(loading.load_start(source, record), recipe, config, trained)
    loading.check_size(recipe, source, record)
    as_trained = {"scheme": record.config["scheme"], "keep": tuple(record.config.get("keep", ()))}
    as_trained["svd_form"] = record.config.get("svd_form", "explicit")
    svd = to_svd_form(recipe.build(), recipe, replace(config, **as_trained), trained=True)
    loading.fill(svd.network, record, source, SVD)
    return svd


def trains_svd(config: TrainConfig, splits: Splits | None, task: Task | None) -> bool:
    """Whether SVD training follows. Without targets it would only follow the dense network, away from low ranks."""
    return config.svd_epochs != 0 and splits is not None and task is not None and not task.follows_dense


def to_svd_form(network: nn.Module, recipe: ModelRecipe, config: TrainConfig, trained: bool) -> SVDNetwork:
    """Put ``network`` into SVD form, in place, with the scheme and the kept layers of ``config``.

    Where nothing is ``trained`` in it, weights stay as they are: U, s, V would take twice their memory.
    """
    form = config.svd_form if trained else "implicit"
    if not isinstance(network, OnnxNetwork):
        return decompose(network, recipe.signature, config.scheme, config.keep, form=form)
    return decompose_file(network, config.scheme, config.keep, form)


def without_layers(network: OnnxNetwork) -> InputError:
    """The error for a file in which nothing can be compressed."""
    why = "; ".join(f"{name}: {reason}" for name, reason in [*network.graph_reasons.items()][:3])
    quantised = any("Integer" in node.op_type or node.op_type.startswith("QLinear") for node in network.source.graph.node)
    return InputError(
        "the file has no convolution or product with constant weights that can be compressed" + (f" ({why})" if why else ""),
        "It is quantised: give the float32 file that it was made from." if quantised else None,
    )


def decompose_file(
    network: OnnxNetwork, scheme: AskedScheme, keep: Collection[str], form: AskedForm = "explicit"
) -> SVDNetwork:
    """:func:`decompose` for a network from a file; costs of the whole network are those of the file, in place."""
    if not network.layers:
        raise without_layers(network)
    cost = cost_of(network)
    svd = decompose(network, network.signature, scheme, keep, total_macs=cost.macs, form=form)
    in_layers = sum(layer.dense_params for layer in svd.layers.values())
    in_layers += sum(layer.dense_params for layer in svd.dense.values())
    return replace(svd, other_params=max(0, cost.params - in_layers))


def _fitting_task(
    asked: str | None, splits: Splits | None, network: nn.Module, recipe: ModelRecipe, named_in: Path | None = None
) -> Task | None:
    """The task of the data, which fits the dense network; None without one. Raises as :func:`task_of`."""
    # Also needed without data: weights computed by a hook must exist before the network can be copied.
    output: object = run_once(network, recipe.signature)
    if splits is not None:
        check_fits(splits.data, recipe.signature)
    task = task_of(asked, splits.data, network, named_in, output) if splits is not None else None
    if splits is None or task is None:
        check_output(output)  # now, not only at the export
    else:
        task.check_output(output, splits.data)
    return task


def _load(config: TrainConfig, notes: list[str]) -> tuple[ModelRecipe, Splits | None, nn.Module, Task | None]:
    """Recipe, data, network and task of a MODEL, after checking that they fit together."""
    recipe = resolve(config.model, config.signature)
    splits = _load_splits(config, recipe)
    if splits is not None and splits.data.classes:
        recipe = recipe.with_classes(len(splits.data.classes))
    torch.manual_seed(config.seed)  # the seed also decides the initial weights
    if not config.dense_epochs and not config.svd_epochs:
        recipe = recipe.sharing_weights()
    network = _load_network(recipe, config.weights, config.weights_key, "--weights-key", notes)
    return recipe, splits, network, _fitting_task(config.task, splits, network, recipe)


def _load_network(recipe: ModelRecipe, weights: Path | None, key: str | None, option: str, notes: list[str]) -> nn.Module:
    network = recipe.as_made(notes)
    if weights is not None:
        notes += load_weights(network, weights, key, option)
    notes += make_plain(network, recipe.signature)
    check_finite(network, "the network")
    return network


def _load_teacher(config: TrainConfig, splits: Splits | None, task: Task | None, notes: list[str]) -> nn.Module | None:
    """The teacher that ``config`` names; None without one, or without data. Remarks on its weights go into ``notes``.

    Raises the errors of loading it, InputError if it does not fit the data, UsageError if it has random weights.
    """
    if config.teacher is None or splits is None or task is None:
        return None
    try:
        recipe, network = _teacher(config, splits, notes)
        output: object = run_once(network, recipe.signature)
        check_fits(splits.data, recipe.signature)
        task.check_output(output, splits.data)
    except (InputError, UsageError) as error:
        raise type(error)(f"the teacher {config.teacher}: {error.message}", error.hint) from error
    return network


def _teacher(config: TrainConfig, splits: Splits, notes: list[str]) -> tuple[ModelRecipe, nn.Module]:
    """A run's dense network, or a MODEL with its own weights or those of a file."""
    teacher, weights = str(config.teacher), config.teacher_weights
    run = Path(teacher)
    if (run / RECORD).is_file():
        if weights is not None:
            raise UsageError("it is a run, which has its own weights", "Leave out --teacher-weights.")
        record = load_record(run)
        if RANDOM in record.notes:
            raise UsageError("the dense network of this run has random weights", "Give a trained one.")
        return from_record(record.model, run / RECORD), loading.load_start(run, record)
    recipe = resolve(teacher, splits.signature).with_classes(len(splits.data.classes))
    if recipe.is_random(weights):
        raise random_teacher()
    return recipe, _load_network(recipe, weights, config.teacher_weights_key, "--teacher-weights-key", notes)


def _load_splits(config: TrainConfig, recipe: ModelRecipe, named_in: Path | None = None) -> Splits | None:
    """The data of ``config``; ``named_in`` is the file that names it, None if the user does."""
    if config.data is None:
        return None
    options = config.download, config.workers, config.max_bad
    data = load_data(config.data, recipe.signature, *options, named_in, config.preprocessing, recipe.preprocessing)
    return hold_out(data, config.heldout, seed=config.seed)

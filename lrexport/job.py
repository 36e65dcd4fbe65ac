"""One compression under way: opened from a model or from a run, with everything that can fail checked first."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrexport import runs
from lrexport.artifacts import files, tensors
from lrexport.artifacts.run_lock import RunLock
from lrexport.config import BY_SVD_TRAINING, FINISHED, TrainConfig
from lrexport.data.images import Splits, hold_out
from lrexport.data.resolve import check_fits, load_data
from lrexport.errors import LrexportError, UsageError
from lrexport.lowrank.decompose import SVDNetwork, decompose, run_once
from lrexport.measure.environment import environment
from lrexport.measure.torch_macs import count_torch_macs
from lrexport.models.resolve import ModelRecipe, from_record, resolve
from lrexport.models.weights import check_finite, load_weights
from lrexport.progress import Progress, is_stopped, take_up
from lrexport.record import CHECKPOINTS, DENSE, LOG, RECORD, SVD, Earlier, Record, Result, load_record
from lrexport.training.checkpoints import Checkpoints
from lrexport.training.engine import make_fabric
from lrexport.training.loggers import Loggers, check_installed
from lrexport.training.scoring import score

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Opening:
    """How a job begins: all that was ``asked`` for, and whether it may go on from where an earlier one was stopped."""

    asked: dict[str, Any]
    resume: bool = False
    allow_changes: bool = False


@dataclass
class Job:
    """The run's folder and record, the networks, and where training happens. Epochs count what each has seen here.

    The folder is held until the job is closed. Of several processes the ``first`` writes.
    """

    run: Path
    config: TrainConfig
    recipe: ModelRecipe
    record: Record
    splits: Splits | None
    dense: nn.Module
    svd: SVDNetwork
    fabric: Any
    on_event: OnEvent
    progress: Progress
    lock: RunLock | None
    loggers: Loggers
    dense_epochs: int = 0
    svd_epochs: int = 0
    fine_tune_epochs: int = 0
    baseline_epochs: int = 0

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception: object) -> None:
        self.loggers.close(done=exception[0] is None)
        if self.lock is not None:
            self.lock.release()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        first: bool = self.fabric.is_global_zero
        return first

    def checkpoints(self, stage: str) -> Checkpoints:
        """Those of one stage of training."""
        return Checkpoints(self.run / CHECKPOINTS, stage, self.run / LOG, self.first)

    def store(self, name: str, network: nn.Module) -> None:
        """Save a network's weights in the run and their hash in the record, which is not written yet."""
        if self.first:
            tensors.save(self.run / name, network.state_dict())
            self.record.seal(self.run, name)

    def save(self) -> None:
        """Write the record."""
        if self.first:
            self.record.save(self.run)

    def result(self, network: nn.Module, epochs: int) -> Result:
        """Figures of a network; this looks at the test images, once, and at the held-out ones that choices are made by."""
        result = torch_result(network, self.recipe.input_shape, self.record.notes).model_copy(update={"epochs": epochs})
        if self.splits is None:
            return result
        device = self.fabric.device
        network.to(device)
        heldout = score(network, self.splits.heldout, device, "heldout", fabric=self.fabric)
        accuracy = score(network, self.splits.test, device, "test", fabric=self.fabric)
        return result.model_copy(update={"accuracy": accuracy, "heldout_accuracy": heldout})


def open_job(config: TrainConfig, run: Path, on_event: OnEvent, opening: Opening) -> Job:
    """A new run of a model. The folder, the model, the weights and the data are checked before any training."""
    fabric = _begin(config)
    _check_free(run, fabric, opening)
    recipe, splits, network = _from_model(config)
    svd = to_svd_form(copy.deepcopy(network), recipe, config)
    record = Record(model=recipe.to_record(), config=config.to_record())
    return _job(config, run, recipe, record, splits, network, svd, fabric, on_event, opening)


def reopen_job(
    config: TrainConfig,
    source: Path,
    run: Path,
    on_event: OnEvent,
    opening: Opening,
    anew: tuple[str, ...] = BY_SVD_TRAINING,
) -> Job:
    """Go on from a run, in place or in another folder: from its SVD-trained network, or from its dense one.

    From the dense one, the choices ``anew`` are ``config``'s; all others of finished stages stay what they were.
    """
    fabric = _begin(config)
    before = load_record(source)
    recipe = from_record(before.model)
    if run.resolve() != source.resolve():
        _check_free(run, fabric, opening)
    dense, svd = runs.load_start(source, before), load_svd(config, source)
    # What the finished stages were trained with stays; the same held-out images above all.
    done = {name: before.config[name] for name in FINISHED if name in before.config}
    done["weights"] = Path(done["weights"]) if done.get("weights") else None
    done["keep"] = tuple(done.get("keep", ()))
    data = config.data or (before.data.source if before.data else None)
    if SVD not in before.files:
        done |= {name: getattr(config, name) for name in anew}
    config = replace(config, **done, model=recipe.source, data=data)
    splits = _load_splits(config, recipe)
    _check_fits(splits, dense, recipe)
    job = _job(config, run, recipe, Record(model=before.model), splits, dense, svd, fabric, on_event, opening)
    place = None if run.resolve() == source.resolve() else str(source)
    job.record.earlier = [*before.earlier, Earlier(run=place, config=before.config)]
    job.dense_epochs, job.svd_epochs = int(config.dense_epochs or 0), config.svd_epochs
    job.store(DENSE, dense)
    if SVD in before.files:
        job.store(SVD, svd.network)
    return job


def look(config: TrainConfig, source: Path | None) -> tuple[ModelRecipe, SVDNetwork, Splits | None]:
    """What a plan is made from, of a model or of a run, with nothing written."""
    if source is None:
        recipe, splits, network = _from_model(config)
        return recipe, to_svd_form(network, recipe, config), splits
    record = load_record(source)
    recipe = from_record(record.model)
    data = config.data or (record.data.source if record.data else None)
    kept = {name: record.config[name] for name in ("seed", "heldout") if name in record.config}
    return recipe, load_svd(config, source), _load_splits(replace(config, **kept, data=data), recipe)


def load_svd(config: TrainConfig, source: Path) -> SVDNetwork:
    """The network of a run in SVD form, SVD-trained where it has that stage."""
    record = load_record(source)
    recipe = from_record(record.model)
    if SVD not in record.files:
        return to_svd_form(runs.load_start(source, record), recipe, config)
    trained = {"scheme": record.config["scheme"], "keep": tuple(record.config.get("keep", ()))}
    svd = to_svd_form(recipe.build(), recipe, replace(config, **trained))
    runs.fill(svd.network, record, source, SVD)
    return svd


def to_svd_form(network: nn.Module, recipe: ModelRecipe, config: TrainConfig) -> SVDNetwork:
    """Put ``network`` into SVD form in place, with its MACs outside of layers counted."""
    run_once(network, recipe.input_shape)  # before fvcore, whose own errors name no shape
    total = count_torch_macs(network, recipe.input_shape).total
    return decompose(network, recipe.input_shape, config.scheme, config.keep, total)


def torch_result(network: nn.Module, input_shape: tuple[int, ...], notes: list[str]) -> Result:
    """MACs and parameters of a torch network; operators whose MACs are not counted are added to ``notes``."""
    params = sum(parameter.numel() for parameter in network.parameters())
    counted = count_torch_macs(network, input_shape)
    found = [f"MACs of {operator} are not counted" for operator in counted.uncounted]
    notes += [note for note in found if note not in notes]
    return Result(macs=counted.total, macs_counted_on="torch", params=params)


def _begin(config: TrainConfig) -> Any:
    """Where it is going to train, and that whatever it needs there is installed."""
    check_installed(config.log_to)
    return make_fabric(config.device, config.precision, config.devices, config.nodes)


def _job(
    config: TrainConfig,
    run: Path,
    recipe: ModelRecipe,
    record: Record,
    splits: Splits | None,
    dense: nn.Module,
    svd: SVDNetwork,
    fabric: Any,
    on_event: OnEvent,
    opening: Opening,
) -> Job:
    def log(event: Event) -> None:
        if not fabric.is_global_zero:
            return
        if event["event"] not in ("step", "pruning"):  # these are for who watches
            files.append_json_line(run / LOG, event)
        loggers(event)
        on_event(event)

    if fabric.world_size > 1 and splits is None:
        raise UsageError("several processes need data to train on", "Give --data, or one device.")
    lock = None
    if fabric.is_global_zero:
        files.make_run_folder(run)
        lock = RunLock(run)
    data = splits.digest() if splits else None
    asked = {**opening.asked, "data_sha256": data, "processes": fabric.world_size}
    try:
        progress = take_up(
            run, asked, opening.resume or not fabric.is_global_zero, opening.allow_changes, fabric.is_global_zero
        )
    except LrexportError:
        if lock is not None:
            lock.release()
        raise
    fabric.launch()
    watched = config.log_to if fabric.is_global_zero and splits else ()
    loggers = Loggers(watched, run, config.to_record(), on_event)
    record.data = splits.to_record() if splits else None
    ran = {"device": str(fabric.device), "precision": str(fabric.strategy.precision.precision)}
    if fabric.world_size > 1:
        ran["processes"] = str(fabric.world_size)
    record.environment = {**environment(), **ran}
    return Job(run, config, recipe, record, splits, dense, svd, fabric, log, progress, lock, loggers)


def _check_free(run: Path, fabric: Any, opening: Opening) -> None:
    """That nothing finished would be written over; a run that was stopped is another matter, and so is one that was killed
    before its first checkpoint, where it is to go on: it has a record, and no more than its dense network.
    """
    if not fabric.is_global_zero or not (run / RECORD).exists() or is_stopped(run):
        return
    record = load_record(run)
    if not opening.resume or SVD in record.files or record.results.compressed is not None:
        raise UsageError(f"{run} already holds a run", "Choose another folder with -o, or remove it first.")


def _check_fits(splits: Splits | None, network: nn.Module, recipe: ModelRecipe) -> None:
    if splits is not None:
        check_fits(splits.data, recipe.input_shape, tuple(run_once(network, recipe.input_shape).shape))


def _from_model(config: TrainConfig) -> tuple[ModelRecipe, Splits | None, nn.Module]:
    """Recipe, data and network of a MODEL, checked against each other."""
    recipe = resolve(config.model, config.input_shape)
    splits = _load_splits(config, recipe)
    if splits is not None:
        recipe = recipe.with_classes(len(splits.data.classes))
    torch.manual_seed(config.seed)  # fresh weights are part of what a seed decides
    network = _load_network(recipe, config.weights)
    _check_fits(splits, network, recipe)
    return recipe, splits, network


def _load_network(recipe: ModelRecipe, weights: Path | None) -> nn.Module:
    network = recipe.build()
    if weights is not None:
        load_weights(network, weights)
    check_finite(network.state_dict(), "the network")
    return network


def _load_splits(config: TrainConfig, recipe: ModelRecipe) -> Splits | None:
    if config.data is None:
        return None
    data = load_data(config.data, recipe.input_shape, config.download, config.workers)
    return hold_out(data, config.heldout, seed=config.seed)

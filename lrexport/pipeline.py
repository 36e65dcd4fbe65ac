"""The whole flow: model → SVD form → SVD training → ranks → fold → fine-tune → score; then export, verify, measure."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrexport import runs
from lrexport.artifacts import files, tensors
from lrexport.config import DEFAULT_DENSE_EPOCHS, CompressConfig, TrainConfig
from lrexport.data.images import Splits, hold_out
from lrexport.data.resolve import check_fits, load_data
from lrexport.errors import InputError, UsageError
from lrexport.export.onnx_export import FIRST_OPSET, Exported, export_onnx
from lrexport.export.verify import check_same_accuracy, score_onnx
from lrexport.lowrank.decompose import SVDNetwork, decompose, run_once
from lrexport.lowrank.fold import fold
from lrexport.lowrank.regularisers import losses
from lrexport.lowrank.selection import Selection, plan_macs, select
from lrexport.measure.environment import environment
from lrexport.measure.latency import measure_latency
from lrexport.measure.torch_macs import count_torch_macs
from lrexport.models.resolve import ModelRecipe, from_record, resolve
from lrexport.models.weights import check_finite, load_weights
from lrexport.record import RECORD, Record, Result, Results, load_record
from lrexport.training.checkpoints import clear_checkpoints, save_checkpoint
from lrexport.training.engine import make_fabric
from lrexport.training.loops import Stage, train_stage
from lrexport.training.scoring import reestimate_batchnorm, score

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


@dataclass
class Job:
    """One compression under way: the run's folder and record, the networks, and where things happen."""

    run: Path
    config: TrainConfig
    recipe: ModelRecipe
    record: Record
    splits: Splits | None
    dense: nn.Module
    svd: SVDNetwork
    fabric: Any
    on_event: OnEvent
    dense_epochs: int = 0
    svd_epochs: int = 0


def train(config: TrainConfig, run: Path, on_event: OnEvent) -> Record:
    """Dense training where needed, then SVD training; ``compress`` goes on from the run."""
    if config.data is None:
        raise UsageError("train needs data", "Give --data; without data, compress alone is training-free.")
    job = start(config, run, on_event)
    train_dense(job)
    train_svd(job)
    return job.record


def compress(config: CompressConfig, run: Path, on_event: OnEvent, source: Path | None = None) -> Record:
    """The whole flow up to the fine-tuned folded network; from the run ``source`` on, where one is given."""
    job = start(config.train, run, on_event) if source is None else resume(config.train, source, run, on_event)
    if source is None:
        train_dense(job)
        train_svd(job)
    job.record.config = config.to_record()
    selection = select(job.svd, energy=config.goal.energy, macs=config.goal.macs)
    network = prune(job, config, selection)
    fine_tune(job, config, network)
    baseline(job, config)
    finish(job, config, network)
    return job.record


def plan_only(config: CompressConfig, source: Path | None = None) -> tuple[SVDNetwork, Selection]:
    """What ``--dry-run`` shows: the plan for the network as it is, before any training. Nothing is written."""
    if source is None:
        recipe = resolve(config.train.model, config.train.input_shape)
        svd = _decompose(_load(recipe, config.train.weights), recipe, config.train)
    else:
        svd = _load_svd(source, load_record(source), config.train)
    return svd, select(svd, energy=config.goal.energy, macs=config.goal.macs)


def start(config: TrainConfig, run: Path, on_event: OnEvent) -> Job:
    """Everything that can fail fails here, before any training: the folder, the model, the weights, the data."""
    if (run / RECORD).exists():
        raise UsageError(f"{run} already holds a run", "Choose another folder with -o, or remove it first.")
    recipe = resolve(config.model, config.input_shape)
    files.make_run_folder(run)
    splits = _load_splits(config, recipe)
    if splits is not None:
        recipe = recipe.with_classes(len(splits.data.classes))
    network = _load(recipe, config.weights)
    if splits is not None:
        _check_fits(splits, network, recipe)
    record = Record(
        model=recipe.to_record(),
        data=splits.to_record() if splits else None,
        config=config.to_record(),
        environment=environment(),
    )
    return _job(config, run, recipe, record, splits, network, on_event)


def resume(config: TrainConfig, source: Path, run: Path, on_event: OnEvent) -> Job:
    """Go on from a run: its SVD-trained network where it has one, its dense network otherwise."""
    before = load_record(source)
    if run != source and (run / RECORD).exists():
        raise UsageError(f"{run} already holds a run", "Choose another folder with -o, or remove it first.")
    files.make_run_folder(run)
    recipe = from_record(before.model)
    data = config.data or (before.data.source if before.data else None)
    config = replace(config, model=recipe.source, data=data)
    splits = _load_splits(config, recipe)
    record = before.model_copy(deep=True, update={"environment": environment(), "notes": []})
    record.data = splits.to_record() if splits else None
    record.files, record.results, record.plan = {}, Results(), {}
    job = _job(config, run, recipe, record, splits, runs.load_dense(source, before), on_event)
    job.dense_epochs = before.results.dense.epochs if before.results.dense else 0
    if runs.SVD in before.files:
        job.svd = _load_svd(source, before, config)
        job.svd_epochs = int(before.config["svd_epochs"])
        _store(job, runs.SVD, job.svd.network)
    _store(job, runs.DENSE, job.dense)
    return job


def train_dense(job: Job) -> None:
    """Train the dense network first, where it has no weights of its own or more epochs are asked for."""
    epochs = job.config.dense_epochs
    if epochs is None:
        own_weights = job.config.weights is not None or not job.recipe.takes_num_classes
        own_weights = own_weights or bool(job.recipe.kwargs.get("weights"))
        epochs = 0 if own_weights or job.splits is None else DEFAULT_DENSE_EPOCHS
    if epochs and job.splits is not None:
        _run_stage(job, _stage(job, "dense", epochs, job.config.dense_lr), job.dense)
        job.dense_epochs = epochs
        job.svd = _decompose(copy.deepcopy(job.dense), job.recipe, job.config)
    _store(job, runs.DENSE, job.dense)
    job.record.results = Results(dense=_result(job.dense, job, epochs=job.dense_epochs))
    job.record.save(job.run)


def train_svd(job: Job) -> None:
    """Full-rank SVD training with the regularisers of equation 3."""
    config = job.config
    if job.splits is None or config.svd_epochs == 0:
        return
    extra = partial(losses, job.svd, config.orthogonality, config.sparsity_strength, config.sparsity)
    # The last epoch, not the best: sparsity grows along training, and the best held-out epoch is an early, dense one.
    stage = replace(_stage(job, "svd", config.svd_epochs, config.lr), keep_best=False)
    _run_stage(job, stage, job.svd.network, extra_loss=extra, teacher=job.dense)
    job.svd_epochs = config.svd_epochs
    _store(job, runs.SVD, job.svd.network)
    job.record.save(job.run)


def prune(job: Job, config: CompressConfig, selection: Selection) -> nn.Module:
    """Fold the plan's ranks and repair BatchNorm's statistics on training images."""
    job.record.plan = selection.plan
    job.record.notes += selection.warnings
    network = fold(job.svd, selection.plan)
    event: Event = {"event": "plan", "threshold": selection.threshold}
    event["macs"] = plan_macs(job.svd, selection.plan)
    event["dense_macs"] = job.svd.dense_macs
    if job.splits is not None:
        device = job.fabric.device
        network.to(device)
        event["heldout_top1"] = score(network, job.splits.heldout, device, "heldout").top1
        images = job.splits.train.subset(torch.arange(min(config.batchnorm_images, len(job.splits.train))))
        if config.batchnorm_images and reestimate_batchnorm(network, images.batches(250, device)):
            event["heldout_top1_after_batchnorm"] = score(network, job.splits.heldout, device, "heldout").top1
    job.on_event(event)
    return network


def fine_tune(job: Job, config: CompressConfig, network: nn.Module) -> None:
    """Low-rank fine-tuning: λ_s = 0, the plain pairs."""
    if job.splits is not None and config.fine_tune_epochs:
        _run_stage(job, _stage(job, "fine-tune", config.fine_tune_epochs, job.config.lr), network, teacher=job.dense)


def baseline(job: Job, config: CompressConfig) -> None:
    """Train the dense network on, so that the comparison is with one of the same budget."""
    epochs = config.baseline_epochs
    if epochs == "same":
        epochs = job.svd_epochs + config.fine_tune_epochs
    if job.splits is not None and epochs:
        _run_stage(job, _stage(job, "baseline", epochs, job.config.lr), job.dense)
        job.dense_epochs += epochs
        _store(job, runs.DENSE, job.dense)


def finish(job: Job, config: CompressConfig, network: nn.Module) -> None:
    """Save the network, look at the test images once, write the record."""
    _store(job, runs.MODEL, network)
    before = job.record.results.dense.epochs if job.record.results.dense else 0
    fine_tuned = config.fine_tune_epochs if job.splits else 0
    job.record.results = Results(
        dense=_result(job.dense, job, epochs=job.dense_epochs, scored=True),
        compressed=_result(network, job, epochs=before + job.svd_epochs + fine_tuned, scored=True),
    )
    job.record.save(job.run)
    for stage in ("dense", "svd", "fine-tune", "baseline"):
        clear_checkpoints(job.run, stage)


@dataclass(frozen=True)
class ExportOptions:
    """``batch`` None is a dynamic one; ``rounds`` 0 measures no latency; ``data`` overrides the record's."""

    batch: int | None = 1
    opset: int = FIRST_OPSET
    rounds: int = 100
    threads: int = 1
    data: str | None = None
    rescore: bool = True


def export_run(run: Path, options: ExportOptions, on_event: OnEvent) -> tuple[Record, dict[str, Exported]]:
    """model.onnx and dense.onnx of a run: exported, verified, re-scored, measured; then both appear at once."""
    record = load_record(run)
    networks = {"dense": runs.load_dense(run, record), "model": runs.load_compressed(run, record)}
    files.make_run_folder(run)
    test = _test_images(record, options)
    samples = next(iter(test.batches(8, torch.device("cpu"))))[0] if test is not None else None
    results = {"dense": record.results.dense, "model": record.results.compressed}
    with tempfile.TemporaryDirectory(dir=run, prefix=".export-") as scratch:
        exported: dict[str, Exported] = {}
        for name, network in networks.items():
            path = Path(scratch) / f"{name}.onnx"
            done = export_onnx(
                network, path, record.model.input_shape, batch=options.batch, opset=options.opset, samples=samples
            )
            exported[name] = done
            update: dict[str, Any] = {"macs": done.cost.macs, "macs_counted_on": "onnx", "bytes": done.bytes}
            if test is not None:
                found = score_onnx(path, test, "test")
                wanted = score(network, test, torch.device("cpu"), "test")
                check_same_accuracy(path, wanted, found)
                update["accuracy"] = found
            results[name] = (results[name] or _bare_result(network)).model_copy(update=update)
            event = {"event": "export", "file": path.name, "bytes": done.bytes, "opset": done.opset}
            event |= {"relative_error": done.comparison.relative_error, "simplified": done.simplified}
            on_event({**event, "rescored": test is not None})
        if options.rounds:
            measured = measure_latency(
                {name: Path(scratch) / f"{name}.onnx" for name in networks},
                baseline="dense",
                rounds=options.rounds,
                threads=options.threads,
                batch=options.batch or 1,
            )
            for name, latency in measured.items():
                results[name] = results[name].model_copy(update={"latency_ms": {"local": latency}})
        for name in networks:
            (Path(scratch) / f"{name}.onnx").replace(run / f"{name}.onnx")
    record.results = Results(dense=results["dense"], compressed=results["model"])
    record.seal(run, "dense.onnx", "model.onnx")
    record.environment = environment()
    record.save(run)
    return record, {name: replace(done, path=run / f"{name}.onnx") for name, done in exported.items()}


def _job(
    config: TrainConfig,
    run: Path,
    recipe: ModelRecipe,
    record: Record,
    splits: Splits | None,
    network: nn.Module,
    on_event: OnEvent,
) -> Job:
    def note(event: Event) -> None:
        if event["event"] != "step":
            files.append_json_line(run / "log.jsonl", event)
        on_event(event)

    svd = _decompose(copy.deepcopy(network), recipe, config)
    fabric = make_fabric(config.device, config.precision)
    return Job(run, config, recipe, record, splits, network, svd, fabric, note)


def _load(recipe: ModelRecipe, weights: Path | None) -> nn.Module:
    network = recipe.build()
    if weights is not None:
        load_weights(network, weights)
    check_finite(network.state_dict(), "the network")
    return network


def _decompose(network: nn.Module, recipe: ModelRecipe, config: TrainConfig) -> SVDNetwork:
    run_once(network, recipe.input_shape)
    total = count_torch_macs(network, recipe.input_shape).total
    return decompose(network, recipe.input_shape, config.scheme, total_macs=total)


def _load_svd(source: Path, record: Record, config: TrainConfig) -> SVDNetwork:
    """The network of a run in SVD form: SVD-trained where the run has that stage, else its dense one."""
    recipe = from_record(record.model)
    if runs.SVD not in record.files:
        return _decompose(runs.load_dense(source, record), recipe, config)
    svd = _decompose(recipe.build(), recipe, replace(config, scheme=record.config["scheme"]))
    svd.network.load_state_dict(tensors.load(record.check(source, runs.SVD)))
    return svd


def _load_splits(config: TrainConfig, recipe: ModelRecipe) -> Splits | None:
    if config.data is None:
        return None
    data = load_data(config.data, recipe.input_shape, config.download)
    return hold_out(data, config.heldout, seed=config.seed)


def _check_fits(splits: Splits, network: nn.Module, recipe: ModelRecipe) -> None:
    images, _ = next(iter(splits.heldout.batches(1, torch.device("cpu"))))
    if tuple(images.shape[1:]) != tuple(recipe.input_shape):
        raise InputError(f"the data has images {tuple(images.shape[1:])}, the network takes {recipe.input_shape}")
    output = run_once(network, recipe.input_shape)
    if output.ndim != 2:
        raise InputError(f"the network's output is {tuple(output.shape)}; (batch, classes) was wanted")
    check_fits(splits.data, output.shape[1])


def _stage(job: Job, name: str, epochs: int, lr: float) -> Stage:
    config = job.config
    return Stage(
        name,
        epochs,
        lr,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        warmup_epochs=min(config.warmup_epochs, epochs / 2),
        distill=config.distill if name in ("svd", "fine-tune") else 0.0,
        seed=config.seed,
    )


def _run_stage(job: Job, stage: Stage, network: nn.Module, **more: Any) -> None:
    assert job.splits is not None
    if not stage.distill:
        more.pop("teacher", None)

    def checkpoint(epoch: int, current: nn.Module) -> None:
        save_checkpoint(job.run, stage.name, epoch, current)

    train_stage(network, job.splits, stage, job.fabric, job.on_event, after_epoch=checkpoint, **more)


def _store(job: Job, name: str, network: nn.Module) -> None:
    tensors.save(job.run / name, network.state_dict())
    job.record.seal(job.run, name)


def _result(network: nn.Module, job: Job, epochs: int, scored: bool = False) -> Result:
    result = _bare_result(network, job.recipe.input_shape).model_copy(update={"epochs": epochs})
    if scored and job.splits is not None:
        network.to(job.fabric.device)
        return result.model_copy(update={"accuracy": score(network, job.splits.test, job.fabric.device, "test")})
    return result


def _bare_result(network: nn.Module, input_shape: tuple[int, ...] = ()) -> Result:
    params = sum(parameter.numel() for parameter in network.parameters())
    macs = count_torch_macs(network, input_shape).total if input_shape else 0
    return Result(macs=macs, macs_counted_on="torch", params=params)


def _test_images(record: Record, options: ExportOptions) -> Any:
    source = options.data or (record.data.source if record.data else None)
    if source is None or not options.rescore:
        return None
    return load_data(source, record.model.input_shape).test


__all__ = ["CompressConfig", "ExportOptions", "TrainConfig", "compress", "export_run", "plan_only", "train"]

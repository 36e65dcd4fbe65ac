"""The stages of a compression, in order; each returns its result and stores it in the run before the next one begins."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lrexport.artifacts import run_folder
from lrexport.artifacts.run_files import BASELINE, DENSE, EXAMPLES, EXPORTED, MODEL, SPECTRA, SVD
from lrexport.config.compression import DEFAULT_DENSE_EPOCHS, CompressConfig, TrainConfig
from lrexport.data.order import Order
from lrexport.events import ChoosingRanks, EpochDone, Event, FidelityMeasured, OnEvent, PlanChosen, Working
from lrexport.lowrank.factors.fold import fold_structure
from lrexport.lowrank.factors.spectra import spectra
from lrexport.lowrank.factors.svd_form import fit_ranks
from lrexport.lowrank.regularisation.implicit import (
    EnergyPath,
    ImplicitRegularisers,
    SteeredImplicit,
    steps_between_refreshes,
)
from lrexport.lowrank.regularisation.regularisers import ExtraLoss, Regularisers
from lrexport.lowrank.regularisation.steering import SteeredRegularisers
from lrexport.lowrank.selection.costs import plan_macs
from lrexport.metric import TOP1
from lrexport.runs import loading
from lrexport.runs.figures import Result, Results
from lrexport.runs.open import OpenRun, Trained, with_uncounted
from lrexport.runs.record import RANDOM, UNKNOWN_QUALITY, Record
from lrexport.runs.resume import Pruned, clear
from lrexport.runs.starting_point import to_svd_form, trains_svd
from lrexport.tasks.fidelity import SQNR, USUAL_DB
from lrexport.torch_tools.copying import copy_network
from lrexport.torch_tools.memory import give_back
from lrexport.training.engine import failing_together, to_fast_layout, with_float64
from lrexport.training.loops import Stage, step_milliseconds, train_stage
from lrexport.training.stopping import heeding_signals
from lrexport.workflow.examples import examples_of
from lrexport.workflow.falling_ranks import FALL, FallingRanks
from lrexport.workflow.pruning import Pruning


@dataclass(frozen=True)
class Compressed:
    """The folded network, its plan and notes, and its epochs of fine-tuning."""

    network: nn.Module
    pruned: Pruned
    epochs: int = 0


def train_dense(run: OpenRun[Any], trained: Trained) -> Trained:
    """Train the dense network first if it has no weights or ``dense_epochs`` is given."""
    config, record, svd, dense_epochs = trained.config, trained.record, trained.svd, 0
    untrained = run.recipe.is_random(config.weights)
    epochs = config.dense_epochs
    if epochs is None:
        epochs = DEFAULT_DENSE_EPOCHS if untrained else 0
    if epochs and run.splits is not None and run.task is not None and not run.task.follows_dense:
        _train(run, _stage(config, "dense", epochs, config.dense_lr), trained.dense)
        follows = trains_svd(config, run.splits, run.task)
        dense_epochs, svd = epochs, to_svd_form(copy_network(trained.dense), run.recipe, config, follows)
    elif untrained:
        record = record.model_copy(update={"notes": [*record.notes, RANDOM]})
    config = replace(config, dense_epochs=dense_epochs)
    record = run.store(run.store_source(record), DENSE, trained.dense)
    record = run.save(record, {**config.to_record(), "svd_epochs": 0})
    return replace(trained, record=record, config=config, svd=svd, dense_epochs=dense_epochs)


def train_svd(run: OpenRun[Any], trained: Trained, pruning: Pruning | None = None) -> Trained:
    """SVD training with the regularisers of equation 3; ``pruning`` is for falling ranks, or for λ_s "auto"."""
    config = trained.config
    if run.splits is None or run.task is None or not trains_svd(config, run.splits, run.task):
        return trained
    # The last epoch, not the best: sparsity grows during training, so the best held-out epoch is an early, dense one.
    stage = replace(_stage(config, "svd", config.svd_epochs, config.lr), keep_best=False)
    falling = None
    if pruning is not None and pruning.config.falling_ranks:
        falling = FallingRanks(pruning, math.ceil(FALL * config.svd_epochs), run.fabric, run.on_event)
    dense_ms, extra = 0.0, None
    if not run.checkpoints(stage.name).finished():
        run.on_event(Working("timing a training step"))
        dense_ms = step_milliseconds(trained.dense, run.splits, stage, run.fabric, run.task)
        extra = _regularisers(run, trained, pruning, stage)

    def report(event: Event) -> None:
        if isinstance(event, EpochDone) and dense_ms:
            event = replace(event, step_over_dense=round(event.step_ms / dense_ms, 3))
        if isinstance(event, EpochDone) and isinstance(extra, SteeredRegularisers | SteeredImplicit | EnergyPath):
            event = replace(event, steered=extra.summary())
        run.on_event(event)

    _train(run, stage, trained.svd.network, report, extra_loss=extra, teacher=run.teacher, before_epoch=falling)
    record = run.save(run.store(trained.record, SVD, trained.svd.network), config.to_record())
    return replace(trained, record=record, svd_epochs=config.svd_epochs)


def _regularisers(run: OpenRun[Any], trained: Trained, pruning: Pruning | None, stage: Stage) -> ExtraLoss:
    """The regularisers of equation 3; λ_s "auto" and the path aim at the ranks that one e for all layers would leave now.

    The global rule is not used for these ranks: it tends to sacrifice single layers.
    """
    config, svd = trained.config, trained.svd
    every = steps_between_refreshes(svd, stage.batch_size) if svd.form == "implicit" else 0
    if config.sparsity_strength != "auto" and config.sparsity != "path":
        fixed: ExtraLoss
        if every:
            fixed = ImplicitRegularisers(svd, config.sparsity_strength, config.sparsity, every)
        else:
            fixed = Regularisers(svd, config.orthogonality, config.sparsity_strength, config.sparsity)
        return fixed.to(run.fabric.device)
    assert run.splits is not None
    assert pruning is not None
    ranks: dict[str, int] = {}
    with failing_together(run.fabric):
        if run.first:
            ranks = pruning.even_ranks()
    if run.fabric.world_size > 1:
        ranks = run.fabric.broadcast(ranks, src=0)
    order = Order(stage.seed, world=run.fabric.world_size, portions=stage.accumulate)
    steps = stage.epochs * order.steps(len(run.splits.train), stage.batch_size)
    svd.network.to(run.fabric.device)
    aiming: ExtraLoss
    if config.sparsity == "path":
        aiming = EnergyPath(svd, ranks, steps, every)
    elif every:
        aiming = SteeredImplicit(svd, ranks, steps, config.sparsity, every)
    else:
        aiming = SteeredRegularisers(svd, ranks, steps, config.orthogonality, config.sparsity)
    return aiming.to(run.fabric.device)


def prune(run: OpenRun[Any], pruning: Pruning) -> Compressed:
    """Choose ranks, fold and repair: once per run, by the first of several processes.

    If training follows, the network is rebuilt from the stored plan and weights: it is the same in every process and in a
    resumed run.
    """
    if run.splits is None:
        return _choose(run, pruning)
    with failing_together(run.fabric):
        if run.first and run.progress.pruned is None:
            run.progress.begin_pruning()
            chosen = _choose(run, pruning)
            run.progress.note_pruned(chosen.pruned, chosen.network.state_dict())
    pruned, weights = run.progress.read_pruned()
    network = fold_structure(run.recipe.build(), pruned.plan)
    network.load_state_dict(weights)
    to_fast_layout(network.to(run.fabric.device), run.recipe.signature).eval()
    return Compressed(network, pruned)


def _choose(run: OpenRun[Any], pruning: Pruning) -> Compressed:
    if run.splits is not None:
        run.on_event(ChoosingRanks(min(len(run.splits.train), pruning.config.calibration_images)))
    else:
        run.on_event(Working("choosing ranks"))
    selection = pruning.select()
    give_back()
    run.on_event(Working("folding pairs and refitting them to the dense layers' outputs"))
    network, scores = pruning.fold(selection)
    latency = selection.latency
    chosen = PlanChosen(
        threshold=selection.threshold,
        scores=scores,
        heldout_before=selection.heldout_score,
        metric=run.task.metric if run.task is not None else TOP1,
        latency=latency,
        macs=plan_macs(pruning.svd, selection.plan),
        dense_macs=pruning.svd.dense_macs,
    )
    run.on_event(chosen)
    pruned = Pruned(plan=selection.plan, planned_latency=latency, notes=list(selection.warnings))
    if run.splits is not None:
        fidelity = pruning.heal(network, run.on_event)
        if fidelity is not None:
            run.on_event(FidelityMeasured(**dict(fidelity)))
        pruned = pruned.model_copy(update={"fidelity": fidelity})
    return Compressed(network, pruned)


def fine_tune(run: OpenRun[CompressConfig], trained: Trained, compressed: Compressed) -> Compressed:
    """Low-rank fine-tuning: the plain pairs, λ_s = 0."""
    config, epochs = trained.config, run.request.config.fine_tune_epochs
    if run.splits is None or run.task is None or not epochs:
        return compressed
    _train(run, _stage(config, "fine-tune", epochs, config.lr), compressed.network, teacher=run.teacher)
    return replace(compressed, epochs=epochs)


def train_baseline(run: OpenRun[CompressConfig], trained: Trained, compressed: Compressed) -> Trained:
    """Train the dense network further, for a comparison at the same training budget; dense.safetensors is kept."""
    config, epochs = trained.config, run.request.config.baseline_epochs
    if epochs == "same":
        epochs = trained.svd_epochs + compressed.epochs
    if run.splits is None or run.task is None or run.task.follows_dense or not epochs:
        return trained
    dense = copy_network(trained.dense)  # the network in SVD form may have the same weights
    _train(run, _stage(config, "baseline", epochs, config.lr), dense)
    return replace(trained, dense=dense, baseline_epochs=epochs)


def finish(run: OpenRun[CompressConfig], trained: Trained, compressed: Compressed) -> Record:
    """Score on the test images, then replace network and record of an earlier compression of the run."""
    pruned = compressed.pruned
    give_back()  # of the selection
    if run.splits is not None:
        run.on_event(Working("scoring the dense and the compressed network on held-out and test images"))
    dense = run.result(trained.dense, trained.dense_epochs + trained.baseline_epochs)
    small = run.result(compressed.network, trained.dense_epochs + trained.svd_epochs + compressed.epochs)
    update = {
        "plan": pruned.plan,
        "planned_latency": pruned.planned_latency,
        "fidelity": pruned.fidelity,
        "notes": with_uncounted([*trained.record.notes, *pruned.notes, *_damage(run, small, pruned)], dense, small),
        "results": Results(dense=dense, compressed=small),
    }
    record = trained.record.model_copy(update=update)
    if record.is_quality_unknown:
        record = record.model_copy(update={"notes": [*record.notes, UNKNOWN_QUALITY]})
    if run.first:
        content = {
            SPECTRA: _spectra(run, trained, record),
            **examples_of(run, trained.dense, compressed.network, dense.macs),
        }
        with heeding_signals():  # between writing the network and its record the run cannot be loaded
            record = _replace(run, trained, compressed.network, record, content)
    leave(run)
    return record


def _damage(run: OpenRun[Any], small: Result, pruned: Pruned) -> list[str]:
    """A note if the outputs have little in common with the dense network's, where nothing else says how good they are."""
    kept = None
    if run.task is None and pruned.fidelity is not None:
        kept = (pruned.fidelity.healed or pruned.fidelity.repaired)[SQNR]
    elif run.task is not None and run.task.follows_dense and small.accuracy is not None:
        kept = small.accuracy.primary
    if kept is None or kept >= USUAL_DB - 10:
        return []
    return [
        f"the outputs follow the dense network's with only {kept:.1f} dB SQNR; {USUAL_DB:g} dB are usual: give a larger "
        "budget, more inputs or more --heal-minutes"
    ]


def _replace(
    run: OpenRun[CompressConfig], trained: Trained, network: nn.Module, record: Record, more: Mapping[str, bytes]
) -> Record:
    """Write network, ``more`` files and record, replacing those of an earlier compression."""
    run_folder.remove(run.folder, *EXPORTED, BASELINE, EXAMPLES)  # of an earlier compression
    if trained.baseline_epochs:
        record = run.store(record, BASELINE, trained.dense)
    for name, content in more.items():
        record = run.store_bytes(record, name, content)
    record = run.store(record, MODEL, network)
    config = replace(run.request.config, train=trained.config)
    return run.save(record, {**config.to_record(), "svd_epochs": trained.svd_epochs})


def leave(run: OpenRun[Any]) -> None:
    """Remove the files that only a stopped run needs."""
    run.fabric.barrier()  # no process may still need them
    if run.first:
        clear(run.folder)


def _spectra(run: OpenRun[Any], trained: Trained, record: Record) -> bytes:
    """The layers' singular values as JSON, for the run."""
    trained.svd.network.to(with_float64(run.fabric.device))
    # trained.dense may have been trained further.
    start = loading.load_start(run.folder, record) if trained.svd_epochs else None
    layers = spectra(trained.svd, record.plan, start)
    return json.dumps(layers, allow_nan=False).encode()  # indented, a line a number


def _stage(config: TrainConfig, name: str, epochs: int, lr: float) -> Stage:
    return Stage(
        name,
        epochs,
        lr,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        optimizer=config.optimizer,
        scale_gradients=config.scale_gradients,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        milestones=config.milestones,
        warmup_epochs=min(config.warmup_epochs, epochs / 2),
        distill=config.distill if name in ("svd", "fine-tune") else 0.0,
        seed=config.seed,
        compile=config.compile,
        checkpoint_minutes=config.checkpoint_minutes,
    )


def _train(run: OpenRun[Any], stage: Stage, network: nn.Module, on_event: OnEvent | None = None, **more: Any) -> None:
    """Train, or load the result of this stage if the run has already finished it."""
    assert run.splits is not None
    assert run.task is not None
    kept = run.checkpoints(stage.name)
    done = kept.finished()
    if done is not None:
        fit_ranks(network, done)
        to_fast_layout(network.to(run.fabric.device), run.recipe.signature).eval().load_state_dict(done)
        return
    if run.first:
        run.progress.save()
    if not stage.distill:
        more.pop("teacher", None)
    train_stage(network, run.splits, stage, run.fabric, on_event or run.on_event, checkpoints=kept, task=run.task, **more)
    kept.finish(network)

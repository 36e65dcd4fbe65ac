"""The stages of a compression, in their order; each leaves its result in the run before the next begins."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from torch import nn

from lrexport.artifacts import run_folder
from lrexport.artifacts.run_files import BASELINE, DENSE, EXPORTED, MODEL, SPECTRA, SVD
from lrexport.config.compression import DEFAULT_DENSE_EPOCHS, CompressConfig
from lrexport.data.order import Order
from lrexport.events import ChoosingRanks, EpochDone, Event, OnEvent, PlanChosen
from lrexport.lowrank.factors.fold import fold_structure
from lrexport.lowrank.factors.spectra import spectra
from lrexport.lowrank.factors.svd_form import fit_ranks
from lrexport.lowrank.regularisation.regularisers import Regularisers
from lrexport.lowrank.regularisation.steering import SteeredRegularisers
from lrexport.lowrank.selection.costs import plan_macs
from lrexport.runs import loading
from lrexport.runs.open import Job
from lrexport.runs.record import RANDOM, Results
from lrexport.runs.resume import Pruned, clear
from lrexport.runs.starting_point import to_svd_form
from lrexport.torch_tools.copying import copy_network
from lrexport.training.engine import failing_together, to_fast_layout, with_float64
from lrexport.training.loops import Stage, step_milliseconds, train_stage
from lrexport.training.stopping import heeding_signals
from lrexport.workflow.falling_ranks import FALL, FallingRanks
from lrexport.workflow.pruning import Pruning


def train_dense(job: Job) -> None:
    """Train the dense network first, where it has no weights of its own or epochs are asked for."""
    untrained = job.recipe.is_random(job.config.weights)
    epochs = job.config.dense_epochs
    if epochs is None:
        epochs = DEFAULT_DENSE_EPOCHS if untrained else 0
    if epochs and job.splits is not None:
        _train(job, _stage(job, "dense", epochs, job.config.dense_lr), job.dense)
        job.dense_epochs = epochs
        job.svd = to_svd_form(copy_network(job.dense), job.recipe, job.config)
    elif untrained:
        job.record.notes.append(RANDOM)
    job.config = replace(job.config, dense_epochs=job.dense_epochs)
    job.store(DENSE, job.dense)
    _save(job, svd_epochs=0)


def train_svd(job: Job, pruning: Pruning | None = None) -> None:
    """SVD training with the regularisers of equation 3; by ``pruning`` ranks fall to its goal, or λ_s is steered to it."""
    config = job.config
    if job.splits is None or config.svd_epochs == 0:
        return
    # The last epoch, not the best: sparsity grows along training, and the best held-out epoch is an early, dense one.
    stage = replace(_stage(job, "svd", config.svd_epochs, config.lr), keep_best=False)
    falling = None
    if pruning is not None and pruning.config.falling_ranks:
        falling = FallingRanks(pruning, math.ceil(FALL * config.svd_epochs), job.fabric, job.on_event)
    dense_ms, extra = 0.0, None
    if not job.checkpoints(stage.name).finished():
        dense_ms = step_milliseconds(job.dense, job.splits, stage, job.fabric)
        extra = _regularisers(job, pruning, stage)

    def tell(event: Event) -> None:
        if isinstance(event, EpochDone) and dense_ms:
            event = replace(event, step_over_dense=round(event.step_ms / dense_ms, 3))
        if isinstance(event, EpochDone) and isinstance(extra, SteeredRegularisers):
            event = replace(event, steered=extra.summary())
        job.on_event(event)

    _train(job, stage, job.svd.network, tell, extra_loss=extra, teacher=job.teacher, before_epoch=falling)
    job.svd_epochs = config.svd_epochs
    job.store(SVD, job.svd.network)
    _save(job)


def _regularisers(job: Job, pruning: Pruning | None, stage: Stage) -> Regularisers:
    """Those of equation 3; a λ_s that is steered aims at the ranks that one e for all layers would leave now.

    The global rule would rather give one layer up, which pays where nothing can be done about what is dropped.
    """
    config = job.config
    if config.sparsity_strength != "auto":
        made = Regularisers(job.svd, config.orthogonality, config.sparsity_strength, config.sparsity)
        return made.to(job.fabric.device)
    assert job.splits is not None
    assert pruning is not None
    ranks: dict[str, int] = {}
    with failing_together(job.fabric):
        if job.first:
            ranks = pruning.even_ranks()
    if job.fabric.world_size > 1:
        ranks = job.fabric.broadcast(ranks, src=0)
    order = Order(stage.seed, world=job.fabric.world_size, portions=stage.accumulate)
    steps = stage.epochs * order.steps(len(job.splits.train), stage.batch_size)
    job.svd.network.to(job.fabric.device)
    return SteeredRegularisers(job.svd, ranks, steps, config.orthogonality, config.sparsity).to(job.fabric.device)


def prune(job: Job, pruning: Pruning) -> nn.Module:
    """Choose ranks, fold them, and repair what that broke: in the first of several processes, once in a run's life.

    Where training follows, the network is made from the plan and the weights as written, whoever wrote them: the same in
    every process, and in a run that is taken up again.
    """
    if job.splits is None:
        network, pruned = _choose(job, pruning)
    else:
        with failing_together(job.fabric):
            if job.first and job.progress.pruned is None:
                job.progress.begin_pruning()
                chosen, pruned = _choose(job, pruning)
                job.progress.note_pruned(pruned, chosen.state_dict())
        pruned, weights = job.progress.read_pruned()
        network = fold_structure(job.recipe.build(), pruned.plan)
        network.load_state_dict(weights)
        to_fast_layout(network.to(job.fabric.device), job.recipe.input_shape).eval()
    job.record.plan = pruned.plan
    job.record.planned_latency = pruned.planned_latency
    job.record.notes += pruned.notes
    return network


def _choose(job: Job, pruning: Pruning) -> tuple[nn.Module, Pruned]:
    if job.splits is not None:
        job.on_event(ChoosingRanks(min(len(job.splits.train), pruning.config.calibration_images)))
    selection = pruning.select()
    network, scores = pruning.fold(selection)
    latency = selection.latency
    chosen = PlanChosen(
        threshold=selection.threshold,
        scores=scores,
        heldout_top1_before=selection.heldout_top1,
        latency=latency,
        macs=plan_macs(job.svd, selection.plan),
        dense_macs=job.svd.dense_macs,
    )
    job.on_event(chosen)
    return network, Pruned(plan=selection.plan, planned_latency=latency, notes=list(selection.warnings))


def fine_tune(job: Job, network: nn.Module, epochs: int) -> None:
    """Low-rank fine-tuning: the plain pairs, λ_s = 0."""
    if job.splits is not None and epochs:
        _train(job, _stage(job, "fine-tune", epochs, job.config.lr), network, teacher=job.teacher)
        job.fine_tune_epochs = epochs


def train_baseline(job: Job, config: CompressConfig) -> None:
    """Train the dense network on, so that the comparison is with one of the same budget; the start stays as it was."""
    epochs = config.baseline_epochs
    if epochs == "same":
        epochs = job.svd_epochs + job.fine_tune_epochs
    if job.splits is not None and epochs:
        _train(job, _stage(job, "baseline", epochs, job.config.lr), job.dense)
        job.baseline_epochs = epochs


def finish(job: Job, network: nn.Module, config: CompressConfig) -> None:
    """Look at the test images; only now do network and record replace those of an earlier compression of the run."""
    job.record.results = Results(
        dense=job.result(job.dense, job.dense_epochs + job.baseline_epochs),
        compressed=job.result(network, job.dense_epochs + job.svd_epochs + job.fine_tune_epochs),
    )
    if job.first:
        found = _spectra(job)
        with heeding_signals():  # between the network and the record that knows it the run could not be loaded
            _replace(job, network, found, config)
    leave(job)


def _replace(job: Job, network: nn.Module, found: bytes, config: CompressConfig) -> None:
    """Write network, spectra and record over those of an earlier compression of the run."""
    run_folder.remove(job.run, *EXPORTED, BASELINE)  # of an earlier compression
    if job.baseline_epochs:
        job.store(BASELINE, job.dense)
    run_folder.write_bytes(job.run, SPECTRA, found)
    job.record.seal(job.run, SPECTRA)
    job.store(MODEL, network)
    _save(job, **{**replace(config, train=job.config).to_record(), "svd_epochs": job.svd_epochs})


def leave(job: Job) -> None:
    """Everything is done: what only a run that was stopped would need goes."""
    job.fabric.barrier()  # nobody may still look for it
    if job.first:
        clear(job.run)


def _spectra(job: Job) -> bytes:
    """The layers' singular values, as the run keeps them."""
    job.svd.network.to(with_float64(job.fabric.device))
    start = loading.load_start(job.run, job.record) if job.svd_epochs else None  # job.dense may have been trained on since
    found = spectra(job.svd, job.record.plan, start)
    return json.dumps(found, allow_nan=False).encode()  # indented, a line a number


def _save(job: Job, **config: Any) -> None:
    job.record.config = {**job.config.to_record(), **config}
    job.save()


def _stage(job: Job, name: str, epochs: int, lr: float) -> Stage:
    config = job.config
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


def _train(job: Job, stage: Stage, network: nn.Module, tell: OnEvent | None = None, **more: Any) -> None:
    """Train, or take what an earlier life of the run ended this stage with."""
    assert job.splits is not None
    kept = job.checkpoints(stage.name)
    done = kept.finished()
    if done is not None:
        fit_ranks(network, done)
        to_fast_layout(network.to(job.fabric.device), job.recipe.input_shape).eval().load_state_dict(done)
        return
    if job.first:
        job.progress.save()
    if not stage.distill:
        more.pop("teacher", None)
    train_stage(network, job.splits, stage, job.fabric, tell or job.on_event, checkpoints=kept, **more)
    kept.finish(network)

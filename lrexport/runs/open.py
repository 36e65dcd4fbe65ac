"""One compression under way: opened with everything that can fail checked first, in all of its processes or in none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from lrexport.artifacts import files, run_folder, tensors
from lrexport.artifacts.run_files import DENSE, LOG, SVD
from lrexport.artifacts.run_lock import RunLock
from lrexport.config.comparison import EPOCHS, SVD_FORM
from lrexport.config.compression import TrainConfig, several_need_data
from lrexport.events import ChoosingRanks, Event, ExportChecked, Noted, OnEvent, StepDone, Warned
from lrexport.formats.rehearsal import rehearse
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.measure.environment import environment
from lrexport.runs import log
from lrexport.runs.record import RANDOM, Result
from lrexport.runs.resume import Progress, check_folder, check_free, follow, is_stopped, take_up
from lrexport.runs.starting_point import Materials, Start, from_model, from_run
from lrexport.tasks.classification import score
from lrexport.training.checkpoints import Checkpoints
from lrexport.training.engine import check_same_images, failing_together, make_fabric, ran_on
from lrexport.training.first_pass import check_trains
from lrexport.training.loggers import Loggers, check_installed
from lrexport.training.stopping import saying_how_to_go_on


@dataclass(frozen=True)
class Opening:
    """How a job begins: all that was ``asked`` for, and whether it may go on from where an earlier one was stopped."""

    asked: dict[str, Any]
    resume: bool = False
    allow_changes: bool = False


@dataclass
class Job(Materials):
    """The subject, the run's folder, and where training happens. Epochs count what each network has seen here.

    Of several processes the ``first`` writes.
    """

    run: Path
    fabric: Any
    on_event: OnEvent
    progress: Progress
    dense_epochs: int = 0
    svd_epochs: int = 0
    fine_tune_epochs: int = 0
    baseline_epochs: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        first: bool = self.fabric.is_global_zero
        return first

    def checkpoints(self, stage: str) -> Checkpoints:
        """Those of one stage of training."""
        return Checkpoints(self.run, stage, LOG, self.first)

    def store(self, name: str, network: nn.Module) -> None:
        """Save a network's weights in the run and their hash in the record, which is not written yet."""
        if self.first:
            run_folder.write_bytes(self.run, name, tensors.packed(network.state_dict()))
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


@contextmanager
def open_job(
    config: TrainConfig,
    run: Path,
    on_event: OnEvent,
    opening: Opening,
    source: Path | None = None,
    anew: tuple[str, ...] = SVD_FORM,
) -> Iterator[Job]:
    """A new run of a model, or one that goes on from the run ``source``, in place or in another folder.

    Folder, model, weights and data are checked before any training, and where one of several processes finds something
    wrong all end. The folder is held inside the block. Raises Stopped where a signal ends it. ``anew``: see from_run.
    """
    check_installed(config.log_to)
    fabric = make_fabric(config.device, config.precision, config.devices, config.nodes)
    with saying_how_to_go_on(lambda: is_stopped(run)), ExitStack() as held:
        with failing_together(fabric, launching=True):
            fresh = source is None or run.resolve() != source.resolve()
            if fabric.is_global_zero:
                check_folder(run, config.log_to)
                if fresh:
                    check_free(run, opening.resume)  # and again once it is held: loading may take long
            start = from_model(config) if source is None else from_run(config, source, run, anew)
            checked = _check_network(start, run, fabric, opening)
            progress = _hold(run, start, fabric, opening, fresh, held)
        check_same_images(fabric, start.record.digests.get("data_sha256"))
        first = fabric.is_global_zero
        loggers = Loggers(start.config.log_to if first and start.splits else (), run, start.config.to_record(), on_event)
        held.push(lambda kind, _error, _traceback: loggers.close(done=kind is None))

        def record_event(event: Event) -> None:
            if not first:
                return
            if not isinstance(event, (StepDone, ChoosingRanks)):  # these are for people who watch
                for each in (*unwritten, event):
                    log.append(run, each)
                unwritten.clear()
            loggers(event)
            on_event(event)

        unwritten = list(checked)  # until work begins: a plan or a goal that is refused before leaves no log
        for event in checked:
            loggers(event)
            on_event(event)
        for text in start.record.notes:
            if first and text != RANDOM:  # which stands in the notes of a run that this one goes on from
                on_event(Noted(text))
        for text in start.splits.data.warnings if start.splits else ():
            if first:
                on_event(Warned(text))
        start.record.environment = environment() | ran_on(fabric)
        subject = {field.name: getattr(start, field.name) for field in fields(Materials)}
        job = Job(**subject, run=run, fabric=fabric, on_event=record_event, progress=progress)
        if source is not None:
            job.dense_epochs, job.svd_epochs = int(start.config.dense_epochs or 0), start.config.svd_epochs
            with failing_together(fabric):
                job.store(DENSE, start.dense)
                if start.trained:
                    job.store(SVD, start.svd.network)
        yield job


def _hold(run: Path, start: Start, fabric: Any, opening: Opening, fresh: bool, held: ExitStack) -> Progress:
    """Have the folder, in the process that writes, until ``held`` is closed; what is under way in it."""
    if fabric.world_size > 1 and start.splits is None:
        raise several_need_data()
    if not fabric.is_global_zero:
        return follow(run)
    files.make_run_folder(run)
    held.enter_context(RunLock(run))
    if fresh:
        check_free(run, opening.resume)
    asked = {**opening.asked, **start.record.digests, "processes": fabric.world_size}
    progress = take_up(run, asked, opening.resume, opening.allow_changes)
    run_folder.remove_leftovers(run)
    return progress


def _check_network(start: Start, run: Path, fabric: Any, opening: Opening) -> list[Event]:
    """What would stop the run after hours, found before them: in the process that writes, and once in a run's life.

    The events say what was found. A run that another goes on from was exported when it was begun.
    """
    if not fabric.is_global_zero or is_stopped(run):
        return []
    events: list[Event] = []
    shape = start.recipe.input_shape
    if opening.asked["source"] is None and start.config.export_check:
        done = rehearse(start.dense, shape)
        events.append(ExportChecked(round(done.seconds, 3)))
        events += [Warned(note) for note in done.notes]
    if start.splits is not None and any(opening.asked.get(name, 0) != 0 for name in EPOCHS):
        note = check_trains(start.dense, shape, start.splits)
        events += [Warned(note)] if note else []
    return events


def torch_result(network: nn.Module, input_shape: tuple[int, ...], notes: list[str]) -> Result:
    """MACs and parameters of a torch network; operators whose MACs are not counted are added to ``notes``."""
    params = sum(parameter.numel() for parameter in network.parameters())
    counted = count_torch_macs(network, input_shape)
    found = [f"MACs of {operator} are not counted" for operator in counted.uncounted]
    notes += [note for note in found if note not in notes]
    return Result(macs=counted.total, macs_counted_on="torch", uncounted=counted.uncounted, params=params)

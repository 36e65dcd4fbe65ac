"""A run under way: opened with everything that can fail checked first, in all of its processes or in none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from torch import nn

from lrexport.artifacts import files, run_folder, tensors
from lrexport.artifacts.run_files import DENSE, LOG, SVD
from lrexport.artifacts.run_lock import RunLock
from lrexport.config.comparison import EPOCHS
from lrexport.config.compression import TrainConfig, several_need_data
from lrexport.data.images import Splits
from lrexport.events import Event, ExportChecked, Noted, OnEvent, Warned, ignore_events
from lrexport.formats.rehearsal import rehearse
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.measure.environment import environment
from lrexport.networks.building import ModelRecipe
from lrexport.runs import log
from lrexport.runs.record import RANDOM, Record, Result
from lrexport.runs.request import Config, RunRequest
from lrexport.runs.resume import Progress, check_folder, check_free, follow, is_stopped, take_up
from lrexport.runs.starting_point import Start, start_of
from lrexport.tasks.classification import score
from lrexport.training.checkpoints import Checkpoints
from lrexport.training.engine import check_same_images, failing_together, make_fabric, ran_on
from lrexport.training.first_pass import check_trains
from lrexport.training.loggers import Loggers, check_installed
from lrexport.training.stopping import saying_how_to_go_on


@dataclass(frozen=True)
class OpenRun(Generic[Config]):
    """What stays the same from the first stage to the last: the request, its materials, and where training happens.

    ``teacher`` is what distillation follows, the dense network itself where no other is named. ``on_event`` logs, too.
    Of several processes the ``first`` writes.
    """

    request: RunRequest[Config]
    recipe: ModelRecipe
    splits: Splits | None
    teacher: nn.Module
    fabric: Any
    on_event: OnEvent
    progress: Progress

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.request.run

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        first: bool = self.fabric.is_global_zero
        return first

    def checkpoints(self, stage: str) -> Checkpoints:
        """Those of one stage of training."""
        return Checkpoints(self.folder, stage, LOG, self.first)

    def store(self, record: Record, name: str, network: nn.Module) -> Record:
        """Save a network's weights in the run; the record that knows their hash, which is not written yet."""
        return self.store_bytes(record, name, tensors.packed(network.state_dict())) if self.first else record

    def store_bytes(self, record: Record, name: str, content: bytes) -> Record:
        """As :meth:`store`, of a file's content, in the process that writes."""
        run_folder.write_bytes(self.folder, name, content)
        return record.sealed(self.folder, name)

    def save(self, record: Record, config: Mapping[str, Any]) -> Record:
        """Write the record, with ``config`` as what the run was made with so far."""
        record = record.model_copy(update={"config": {**config}})
        if self.first:
            record.save(self.folder)
        return record

    def result(self, network: nn.Module, epochs: int) -> Result:
        """Figures of a network; this looks at the test images, once, and at the held-out ones that choices are made by."""
        result = torch_result(network, self.recipe.input_shape).model_copy(update={"epochs": epochs})
        if self.splits is None:
            return result
        device = self.fabric.device
        network.to(device)
        heldout = score(network, self.splits.heldout, device, "heldout", fabric=self.fabric)
        accuracy = score(network, self.splits.test, device, "test", fabric=self.fabric)
        return result.model_copy(update={"accuracy": accuracy, "heldout_accuracy": heldout})


@dataclass(frozen=True)
class Trained:
    """What training has come to so far: the record, and both networks with the epochs that each has seen in this run.

    ``config`` says of settled options what they were: the dense epochs that there really were above all.
    """

    record: Record
    config: TrainConfig
    dense: nn.Module
    svd: SVDNetwork
    dense_epochs: int = 0
    svd_epochs: int = 0
    baseline_epochs: int = 0


@contextmanager
def open_run(
    request: RunRequest[Config], digests: Mapping[str, str] | None = None
) -> Iterator[tuple[OpenRun[Config], Trained]]:
    """The run, held inside the block, and what it starts from; ``digests`` are those of what was read for the request.

    Folder, model, weights and data are checked before any training, and where one of several processes finds something
    wrong all end. Raises Stopped where a signal ends it.
    """
    train = request.train
    check_installed(train.log_to)
    fabric = make_fabric(train.device, train.precision, train.devices, train.nodes)
    with saying_how_to_go_on(lambda: is_stopped(request.run)), ExitStack() as held:
        yield _open(request, digests or {}, fabric, held)  # of which nothing is kept here: networks take memory


def _open(
    request: RunRequest[Config], digests: Mapping[str, str], fabric: Any, held: ExitStack
) -> tuple[OpenRun[Config], Trained]:
    first = fabric.is_global_zero
    with failing_together(fabric, launching=True):
        if first:
            check_folder(request.run, request.train.log_to)
            if not request.in_place:
                check_free(request.run, request.resume)  # and again once it is held: loading may take long
        start = start_of(request)
        checked = _check_network(start, request, fabric)
        progress = _hold(request, start, digests, fabric, held)
    check_same_images(fabric, start.record.digests.get("data_sha256"))
    services = start.config.log_to if first and start.splits else ()
    loggers = Loggers(services, request.run, start.config.to_record(), request.on_event)
    held.push(lambda kind, _error, _traceback: loggers.close(done=kind is None))
    on_event = _logging(request, loggers, checked) if first else ignore_events
    if first:
        for event in (*checked, *_remarks(start)):
            request.on_event(event)
    run = OpenRun(request, start.recipe, start.splits, start.teacher, fabric, on_event, progress)
    update = {"environment": environment() | ran_on(fabric), "digests": {**start.record.digests, **digests}}
    return run, _begin(run, replace(start, record=start.record.model_copy(update=update)))


def _begin(run: OpenRun[Config], start: Start) -> Trained:
    """What a run starts from, another run's networks stored as its own."""
    begun = Trained(start.record, start.config, start.dense, start.svd)
    if run.request.source is None:
        return begun
    with failing_together(run.fabric):
        record = run.store(start.record, DENSE, start.dense)
        if start.trained:
            record = run.store(record, SVD, start.svd.network)
    dense_epochs, svd_epochs = int(start.config.dense_epochs or 0), start.config.svd_epochs
    return replace(begun, record=record, dense_epochs=dense_epochs, svd_epochs=svd_epochs)


def _logging(request: RunRequest[Any], loggers: Loggers, checked: list[Event]) -> OnEvent:
    """Pass events on to log.jsonl, services and whoever watches.

    What was ``checked`` is written when work begins: a plan or a goal that is refused before leaves no log.
    """
    unwritten = list(checked)
    for event in checked:
        loggers(event)

    def record_event(event: Event) -> None:
        if event.logged:
            for each in (*unwritten, event):
                log.append(request.run, each)
            unwritten.clear()
        loggers(event)
        request.on_event(event)

    return record_event


def _remarks(start: Start) -> Iterator[Event]:
    for text in start.record.notes:
        if text != RANDOM:  # which stands in the notes of a run that this one goes on from
            yield Noted(text)
    for text in start.splits.data.warnings if start.splits else ():
        yield Warned(text)


def _hold(request: RunRequest[Any], start: Start, digests: Mapping[str, str], fabric: Any, held: ExitStack) -> Progress:
    """Have the folder, in the process that writes, until ``held`` is closed; what is under way in it."""
    run = request.run
    if fabric.world_size > 1 and start.splits is None:
        raise several_need_data()
    if not fabric.is_global_zero:
        return follow(run)
    files.make_run_folder(run)
    held.enter_context(RunLock(run))
    if not request.in_place:
        check_free(run, request.resume)
    asked = {**request.asked(digests), **start.record.digests, "processes": fabric.world_size}
    progress = take_up(run, asked, request.resume, request.allow_changes)
    run_folder.remove_leftovers(run)
    return progress


def _check_network(start: Start, request: RunRequest[Any], fabric: Any) -> list[Event]:
    """What would stop the run after hours, found before them: in the process that writes, and once in a run's life.

    The events say what was found. A run that another goes on from was exported when it was begun.
    """
    if not fabric.is_global_zero or is_stopped(request.run):
        return []
    events: list[Event] = []
    shape = start.recipe.input_shape
    if request.source is None and start.config.export_check:
        done = rehearse(start.dense, shape)
        events.append(ExportChecked(round(done.seconds, 3)))
        events += [Warned(note) for note in done.notes]
    asked = request.config.to_record()
    if start.splits is not None and any(asked.get(name, 0) != 0 for name in EPOCHS):
        note = check_trains(start.dense, shape, start.splits)
        events += [Warned(note)] if note else []
    return events


def torch_result(network: nn.Module, input_shape: tuple[int, ...]) -> Result:
    """MACs and parameters of a torch network."""
    params = sum(parameter.numel() for parameter in network.parameters())
    counted = count_torch_macs(network, input_shape)
    return Result(macs=counted.total, macs_counted_on="torch", uncounted=counted.uncounted, params=params)


def with_uncounted(notes: list[str], *results: Result) -> list[str]:
    """``notes``, and what the MACs of these networks leave out."""
    uncounted = [f"MACs of {operator} are not counted" for result in results for operator in result.uncounted]
    return [*notes, *(note for note in dict.fromkeys(uncounted) if note not in notes)]

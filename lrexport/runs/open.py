"""Open a run: check everything that can fail first, and open it in all of its processes or in none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from torch import nn

from lrexport.artifacts import files, run_folder, tensors
from lrexport.artifacts.run_files import DENSE, LOG, SOURCE_ONNX, SVD
from lrexport.artifacts.run_lock import RunLock
from lrexport.config.comparison import EPOCHS
from lrexport.config.compression import TrainConfig, several_need_data
from lrexport.data.images import Splits
from lrexport.data.targets import CLASSIFICATION, FIDELITY
from lrexport.errors import UsageError
from lrexport.events import DataLoaded, Event, ExportChecked, Noted, OnEvent, Warned, Working, ignore_events
from lrexport.formats.rehearsal import rehearse
from lrexport.formats.rewritten import cost_of
from lrexport.formats.verify import check_repeats
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.measure.environment import environment
from lrexport.networks.building import ModelRecipe
from lrexport.networks.onnx_source import content_of, network_of
from lrexport.onnx_network.gradients import unreached, why_unreached
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.runs import log
from lrexport.runs.figures import Result
from lrexport.runs.record import RANDOM, Record
from lrexport.runs.request import Config, RunRequest
from lrexport.runs.resume import Progress, check_folder, check_free, follow, is_stopped, take_up
from lrexport.runs.starting_point import Start, start_of
from lrexport.signature import Signature
from lrexport.tasks.scoring import score
from lrexport.tasks.task import Task
from lrexport.torch_tools.memory import give_back
from lrexport.torch_tools.tracing import noise
from lrexport.training.checkpoints import Checkpoints
from lrexport.training.engine import check_same_images, failing_together, make_fabric, ran_on
from lrexport.training.first_pass import check_trains
from lrexport.training.loggers import Loggers, check_installed
from lrexport.training.stopping import stopping_with_hint


@dataclass(frozen=True)
class OpenRun(Generic[Config]):
    """What all stages of a run share: the request, the loaded network and data, and where training happens.

    ``teacher`` is the network to distil from, by default the dense one; ``task`` what the data is for.
    ``on_event`` also writes the log. Only the ``first`` of several processes writes.
    """

    request: RunRequest[Config]
    recipe: ModelRecipe
    splits: Splits | None
    teacher: nn.Module
    task: Task | None
    fabric: Any
    on_event: OnEvent
    progress: Progress

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.request.run

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        first: bool = self.fabric.is_global_zero
        return first

    def checkpoints(self, stage: str) -> Checkpoints:
        """The checkpoints of one stage of training."""
        return Checkpoints(self.folder, stage, LOG, self.first)

    def store(self, record: Record, name: str, network: nn.Module) -> Record:
        """Save a network's weights in the run; returns the record with their hash, which is not saved yet."""
        if not self.first:
            return record
        record = self.store_bytes(record, name, tensors.pieces(network.state_dict()))
        give_back()
        return record

    def store_bytes(self, record: Record, name: str, content: files.Content) -> Record:
        """:meth:`store` for the content of a file; only for the process that writes."""
        run_folder.write_bytes(self.folder, name, content)
        return record.sealed(self.folder, name)

    def store_source(self, record: Record) -> Record:
        """:meth:`store` for the .onnx file that the network comes from, as it is; nothing for other networks."""
        if self.recipe.file is None or not self.first:
            return record
        if self.recipe.file != self.folder / SOURCE_ONNX:
            content = content_of(self.recipe.file, network_of(self.recipe.file, self.recipe.signature))
            return self.store_bytes(record, SOURCE_ONNX, content)
        return record.sealed(self.folder, SOURCE_ONNX)

    def save(self, record: Record, config: Mapping[str, Any]) -> Record:
        """Write the record, with ``config`` as the choices of the run so far."""
        record = record.model_copy(update={"config": {**config}})
        if self.first:
            record.save(self.folder)
        return record

    def result(self, network: nn.Module, epochs: int) -> Result:
        """Figures of a network, with its score on the held-out and on the test images."""
        result = torch_result(network, self.recipe.signature).model_copy(update={"epochs": epochs})
        if self.splits is None or self.task is None:
            return result
        device = self.fabric.device
        network.to(device)
        heldout = score(network, self.splits.heldout, device, "heldout", fabric=self.fabric, task=self.task)
        accuracy = score(network, self.splits.test, device, "test", fabric=self.fabric, task=self.task)
        return result.model_copy(update={"accuracy": accuracy, "heldout_accuracy": heldout})


@dataclass(frozen=True)
class Trained:
    """The result of training so far: the record, and both networks with their epochs in this run.

    ``config`` has the actual values of options that are settled, above all the number of dense epochs.
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
    """The run, locked inside the block, and its starting point; ``digests`` are those of files read for the request.

    Folder, model, weights and data are checked before any training. If one of several processes finds an error, all end.
    Raises Stopped if a signal ends the block.
    """
    train = request.train
    check_installed(train.log_to)
    fabric = make_fabric(train.device, train.precision, train.devices, train.nodes, trains=train.data is not None)
    with stopping_with_hint(lambda: is_stopped(request.run)), ExitStack() as held:
        yield _open(request, digests or {}, fabric, held)  # no reference is kept here, because networks take memory


def _open(
    request: RunRequest[Config], digests: Mapping[str, str], fabric: Any, held: ExitStack
) -> tuple[OpenRun[Config], Trained]:
    first = fabric.is_global_zero
    with failing_together(fabric, launching=True):
        if first:
            check_folder(request.run, request.train.log_to)
            if not request.in_place:
                check_free(request.run, request.resume)  # and again under the lock, because loading can take long
            request.on_event(Working("loading the network and its data"))
        start = start_of(request)
        if request.command == "train" and start.splits is not None and (start.task is None or start.task.follows_dense):
            raise UsageError(untrained(start.splits), "Use lrexport compress, or give data with targets, or --task.")
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
    run = OpenRun(request, start.recipe, start.splits, start.teacher, start.task, fabric, on_event, progress)
    update = {"environment": environment() | ran_on(fabric), "digests": {**start.record.digests, **digests}}
    return run, _begin(run, replace(start, record=start.record.model_copy(update=update)))


def _begin(run: OpenRun[Config], start: Start) -> Trained:
    """The starting point of a run; networks of another run are stored in this one."""
    begun = Trained(start.record, start.config, start.dense, start.svd)
    if run.request.source is None:
        return begun
    with failing_together(run.fabric):
        record = run.store(run.store_source(start.record), DENSE, start.dense)
        if start.trained:
            record = run.store(record, SVD, start.svd.network)
    dense_epochs, svd_epochs = int(start.config.dense_epochs or 0), start.config.svd_epochs
    return replace(begun, record=record, dense_epochs=dense_epochs, svd_epochs=svd_epochs)


def _logging(request: RunRequest[Any], loggers: Loggers, checked: list[Event]) -> OnEvent:
    """Pass events on to log.jsonl, to logging services and to the caller.

    Events in ``checked`` are written with the first later event, so a refused plan or goal leaves no log.
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
    if start.splits is not None:
        yield loaded(start.splits)
        if start.task is None:
            yield Noted(untrained(start.splits))
        elif start.task.follows_dense:
            unused = start.config.task is None and start.splits.data.default_task == CLASSIFICATION
            why = "has classes, but the network returns no scores of classes: it is" if unused else "is"
            follows = "used without targets: only healing and fine-tuning train, by the dense network's outputs"
            yield Noted(f"{start.splits.data.source} {why} {follows}")
    for text in start.record.notes:
        if text != RANDOM:  # the run that this one starts from has reported it
            yield Noted(text)
    for text in start.splits.data.warnings if start.splits else ():
        yield Warned(text)


def loaded(splits: Splits) -> DataLoaded:
    """The event that tells the user of the data and its preprocessing."""
    done = splits.data.preprocessing
    counts = len(splits.train), len(splits.heldout), len(splits.test)
    return DataLoaded(splits.data.source, *counts, None if done is None else str(done))


def untrained(splits: Splits) -> str:
    """What is left out for data whose task is not known."""
    data = splits.data
    why = "has no targets" if data.default_task == FIDELITY else "has targets for no known task, and --task is not given"
    return f"{data.source} {why}: nothing is trained or scored; its inputs weight and repair the layers"


def _hold(request: RunRequest[Any], start: Start, digests: Mapping[str, str], fabric: Any, held: ExitStack) -> Progress:
    """Lock the folder, in the process that writes, until ``held`` is closed; returns the progress in it."""
    run = request.run
    if fabric.world_size > 1 and (start.splits is None or start.task is None):
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
    """Check now what would otherwise fail after hours: the export, and a training step. Returns the results as events.

    Only the process that writes does so, once for a run. A run that starts from another is not exported again.
    """
    if not fabric.is_global_zero or is_stopped(request.run):
        return []
    events: list[Event] = []
    signature = start.recipe.signature
    if request.source is None and start.config.export_check and start.recipe.file is None:
        request.on_event(Working("exporting the dense network once, to find what would fail later"))
        done = rehearse(start.dense, signature)
        events.append(ExportChecked(round(done.seconds, 3)))
        events += [Warned(note) for note in done.notes]
    asked = request.config.to_record()
    trains = start.splits is not None and start.task is not None and any(asked.get(name, 0) != 0 for name in EPOCHS)
    if isinstance(start.dense, OnnxNetwork):
        check_repeats(start.dense, noise(start.dense, signature))
    if isinstance(start.dense, OnnxNetwork) and start.splits is not None:
        events += _check_gradients(start.dense, trains, start.config.model)
    if trains and start.splits is not None and start.task is not None:
        request.on_event(Working("trying a training step"))
        note = check_trains(start.dense, signature, start.splits, start.task)
        events += [Warned(note)] if note else []
    return events


def _check_gradients(network: OnnxNetwork, trains: bool, file: str) -> list[Event]:
    """Say which layers of a file cannot be trained. Raises UsageError if none can and training is asked for."""
    missed = unreached(network)
    if not missed:
        return []
    why = why_unreached(network)
    if len(missed) == len(network.layers):
        if trains:
            raise UsageError(
                f"gradients reach no layer of {file}: {why}",
                "It cannot be trained. Omit epochs of training: lrexport compress refits its pairs one by one.",
            )
        return [Noted(f"gradients reach no layer of {file}: {why}; pairs are refitted and healed one by one")]
    few = ", ".join(missed[:3]) + (", …" if len(missed) > 3 else "")
    what = f"gradients do not reach {len(missed)} of {len(network.layers)} layers ({few}): {why}"
    return [Noted(f"{what}; their pairs are refitted and healed one by one")]


def torch_result(network: nn.Module, signature: Signature) -> Result:
    """MACs and parameters of a network: of the file that it came from, if it came from one."""
    if isinstance(network, OnnxNetwork):
        cost = cost_of(network)
        return Result(macs=cost.macs, macs_counted_on="onnx", uncounted=cost.uncounted, params=cost.params)
    params = sum(parameter.numel() for parameter in network.parameters())
    counted = count_torch_macs(network, signature)
    return Result(macs=counted.total, macs_counted_on="torch", uncounted=counted.uncounted, params=params)


def with_uncounted(notes: list[str], *results: Result) -> list[str]:
    """``notes``, with one more for each operator whose MACs are not counted in these networks."""
    uncounted = [f"MACs of {operator} are not counted" for result in results for operator in result.uncounted]
    return [*notes, *(note for note in dict.fromkeys(uncounted) if note not in notes)]

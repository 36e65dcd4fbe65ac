"""Events for people, on stderr: on a terminal also a live line with rate and time left."""

from __future__ import annotations

import sys
import time
from functools import singledispatchmethod
from typing import TYPE_CHECKING

from lrexport.cli.heartbeat import Heartbeat
from lrexport.cli.output import note
from lrexport.config.compression import STAGES
from lrexport.events import (
    AlreadyFinished,
    ChoosingRanks,
    DataLoaded,
    DenseTimed,
    EpochDone,
    Event,
    ExportChecked,
    FidelityMeasured,
    FileExported,
    FileQuantised,
    FilesRemoved,
    FormatQuantised,
    FormatWritten,
    HealingPart,
    LayersTimed,
    Measuring,
    Noted,
    OrtWritten,
    PlanChosen,
    RanksCut,
    StepDone,
    Warned,
    Working,
)
from lrexport.metric import heldout_key
from lrexport.report.tables import fidelity_text
from lrexport.text import number_of, plain, plain_line
from lrexport.units import format_bytes, format_count, format_duration, format_ms, format_percent

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from lrexport.plan import PlannedLatency

_REPAIRS = {
    "reconstruction": "reconstructed",
    "bias_correction": "bias-corrected",
    "batchnorm": "with BatchNorm re-estimated",
}


class Progressing:
    """Shows events as they happen: an OnEvent, and the context of the live line.

    ``refreshes``: of that line per second; each takes time from a measurement on this machine.
    """

    def __init__(self, refreshes: float = 10) -> None:
        self._refreshes = refreshes
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._stage: str | None = None
        self._began = time.perf_counter()
        self._beat = Heartbeat()
        self.noted: set[str] = set()
        self._before: int | None = None  # steps of the stage that were done before this process

    def __enter__(self) -> Progressing:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            description = TextColumn("{task.description}", markup=False)  # a target's name may look like markup
            columns = (description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            rate = TextColumn("{task.fields[rate]}", markup=False)
            console, often = Console(stderr=True), self._refreshes
            self._live = Progress(*columns, rate, console=console, transient=True, refresh_per_second=often)
            self._live.start()
        self._beat.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._beat.stop()
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the live one."""
        if self._live is not None:
            # Not wrapped: a continuation line could start with a name.
            self._live.console.print(plain_line(text), highlight=False, markup=False, emoji=False, soft_wrap=True)
        else:
            self._beat.spoke()
            note(text)

    @singledispatchmethod
    def __call__(self, event: Event) -> None:
        """Show the event. Each kind has its handler below."""
        raise TypeError(f"no handler for {type(event).__name__}")

    @__call__.register
    def _(self, event: Noted) -> None:
        self.noted.add(event.text)
        self.say(f"note: {event.text}")

    @__call__.register
    def _(self, event: Warned) -> None:
        self.say(f"warning: {event.text}")

    @__call__.register
    def _(self, event: Working) -> None:
        self._show(event.text, event.text, event.done, event.of)

    @__call__.register
    def _(self, event: AlreadyFinished) -> None:
        self.say(f"{event.run} is already finished; nothing to resume")

    @__call__.register
    def _(self, event: DataLoaded) -> None:
        counts = f"{event.train:,} training, {event.heldout:,} held-out and {event.test:,} test samples"
        self.say(f"data {event.source}: {counts}")
        if event.preprocessing is not None:
            self.say(f"pictures: {event.preprocessing}")

    @__call__.register
    def _(self, event: ExportChecked) -> None:
        self.say(f"the dense network exports to ONNX (checked in {format_duration(event.seconds)})")

    @__call__.register
    def _(self, event: LayersTimed) -> None:
        if self._live is None and event.done == 1:
            self.say(f"timing layers and their pairs on {event.target}")
        self._show("table", f"timing layers on {event.target}", event.done, event.of)

    @__call__.register
    def _(self, event: DenseTimed) -> None:
        table = f"; table in {event.table}" if event.table is not None else ""
        self.say(f"the dense network takes {format_ms(event.dense)} on {event.target}{table}")

    @__call__.register
    def _(self, event: Measuring) -> None:
        self._show("measuring", f"measuring on {event.target}", event.done, event.of)

    @__call__.register
    def _(self, event: StepDone) -> None:
        done = event.epoch * event.steps + event.step + 1
        self._begin(event.stage, STAGES[event.stage])
        if self._before is None:  # the first step since the run was resumed
            self._before = done - 1
        rate = f"{(done - self._before) / (time.perf_counter() - self._began):.1f} steps/s, loss {event.loss:.3f}"
        self._show(event.stage, STAGES[event.stage], done, event.epochs * event.steps, rate)

    @__call__.register
    def _(self, event: EpochDone) -> None:
        # A resumed epoch has only the seconds since it was resumed.
        left = (event.epochs - event.epoch) * max(event.seconds, event.steps * event.step_ms / 1e3)
        remaining = f", {format_duration(left)} left" if left else ""
        over = f", a step {event.step_over_dense:.2f}× a dense one" if event.step_over_dense is not None else ""
        score = f"held-out {event.metric.name} {event.metric.format(event.heldout_score)}"
        self.say(
            f"{STAGES[event.stage]}: epoch {event.epoch}/{event.epochs}  loss {event.loss:.4f}  "
            f"{score}  {event.images_per_second:.0f} images/s"
            f"{over}{remaining}"
        )
        if (steered := event.steered) is not None:
            dropped = f"pruning would drop up to {format_percent(steered.energy_dropped)} of a layer's energy"
            self.say(f"SVD training: λ_s {steered.weakest:.2g} to {steered.strongest:.2g}, {dropped}")

    @__call__.register
    def _(self, event: RanksCut) -> None:
        self.say(f"SVD training: {event.layers} layers cut to {format_percent(event.macs_share)} of the MACs")

    @__call__.register
    def _(self, event: ChoosingRanks) -> None:
        images = f", with {event.images} training images, without labels" if event.images else ""
        self.say(f"choosing ranks{images}")
        self._show("ranks", "choosing ranks", None, None)

    @__call__.register
    def _(self, event: PlanChosen) -> None:
        share = share_text(event.macs, event.dense_macs)
        line = f"plan: {format_count(event.macs)} of {format_count(event.dense_macs)} MACs ({share})"
        if (latency := event.latency) is not None:
            line += f"; {latency_text(latency)}"
        if event.threshold is not None:
            line += f", at most {100 * event.threshold:.3g} % of a layer's energy dropped"
        metric, key = event.metric, heldout_key(event.metric)
        if event.heldout_before is not None:
            line += f"; held-out {metric.name} {metric.format(event.heldout_before)} before"
        if (best := event.scores.get(key)) is not None:
            line += f"; held-out {metric.name} {metric.format(best)} as folded"
            for name, repair in _REPAIRS.items():
                if (after := event.scores.get(f"{key}_after_{name}")) is not None:
                    line += f", {metric.format(after)} {repair}" + (" (not kept)" if metric.is_better(best, after) else "")
                    best = metric.best((best, after))
        self.say(line)

    @__call__.register
    def _(self, event: HealingPart) -> None:
        what = f"the {event.kind_of_part} {event.name}" if event.name else "the whole network"
        if self._live is not None:
            self._show("healing", f"healing {what}", event.done, event.of)
            return
        part = f"{what}, part {event.done + 1} of {event.of}"
        if not event.done:
            self.say(f"healing {part}")
        self._beat.doing("healing", part)

    @__call__.register
    def _(self, event: FidelityMeasured) -> None:
        line = f"fidelity to the network before pruning: {fidelity_text(event.repaired)}"
        if event.healed is not None:
            line += f" repaired, {fidelity_text(event.healed)} healed in {format_duration(event.seconds)}"
            line += f" ({event.kept} of {event.parts} parts better{'' if event.complete else ', out of time'})"
        self.say(line)

    @__call__.register
    def _(self, event: FileExported) -> None:
        rescored = ", accuracy the same" if event.rescored else ""
        before_choice = f" of {' and '.join(event.chosen_from)}" if event.chosen_from else ""
        simplified = "" if event.simplified in (True, None) else " (onnxsim failed; unsimplified graph kept)"
        self.say(
            f"{event.file}: {format_bytes(event.bytes)}, opset {event.opset}, checked; differs from torch by at most "
            f"{event.relative_error:.1e} of the largest output{before_choice}{rescored}{simplified}"
        )
        if shortcuts := event.passes.get("shortcuts"):
            more = f"{format_count(event.added_macs)} MACs more"
            self.say(
                f"{event.file}: {number_of(shortcuts, 'shortcut')} without parameters as constant 1×1 convolutions: {more}"
            )
        if event.chosen_from:
            self.say(
                f"{event.file}: which rows it returns depends on values; of {event.rows:,} rows that it or torch chose from "
                f"the same random values, {event.same_rows:,} were the same"
            )
        if event.free:
            any_size = "of any size" if event.step == 1 else f"in steps of {event.step} from the network's own"
            self.say(f"{event.file}: {' and '.join(event.free)} {any_size}, compared with torch at other sizes too")
        if event.blind:
            proves = "agreement with torch proves little (are the weights random?)"
            self.say(f"warning: {event.file}: its output hardly depends on its input, so {proves}")
        for operator in event.uncounted:
            self.say(f"warning: {event.file}: MACs of {operator} are not counted")

    @__call__.register
    def _(self, event: FileQuantised) -> None:
        share = event.int8_macs / max(1, event.macs)
        self._say_int8(event.file, f"{100 * share:.1f} % of MACs in int8", event)
        if event.in_float:
            self.say(f"note: {event.file} has nodes that stay in float32: {', '.join(event.in_float)}")

    @__call__.register
    def _(self, event: OrtWritten) -> None:
        self.say(
            f"{event.file}: {format_bytes(event.bytes)}, for {event.platform}; differs from {event.source} by at "
            f"most {event.relative_error:.1e} of the largest output"
        )

    @__call__.register
    def _(self, event: FormatWritten) -> None:
        scored = "" if event.score is None else f", {event.metric.name} {event.metric.format(event.score)}"
        if event.relative_error is None:
            verified = f"converted from {event.source}, not run: this machine has no {event.runtime}"
        else:
            verified = (
                f"in {event.runtime} at most {event.relative_error:.1e} of the largest output from {event.source}{scored}"
            )
        self.say(f"{', '.join(event.files)}: {format_bytes(event.bytes)}, {event.precision}; {verified}")
        for words in event.notes or ():
            self.say(f"{event.files[0]}: {words}")

    @__call__.register
    def _(self, event: FormatQuantised) -> None:
        self._say_int8(", ".join(event.files), f"int8 by {event.tool}, in {event.runtime}", event)
        for words in event.notes or ():
            self.say(f"{event.files[0]}: {words}")

    def _say_int8(self, files: str, how: str, event: FileQuantised | FormatQuantised) -> None:
        """What int8 files agree on with their float32 file, and what they cost."""
        line = f"{files}: {format_bytes(event.bytes)}, {how}"
        if event.agreement is not None:
            same = f"same class as {event.source} on {format_percent(event.agreement)}"
            line += f", {same} of {event.images} calibration images"
        if event.sqnr_db:
            names = event.sqnr_db if len(event.sqnr_db) > 1 else [""]
            noise = zip(names, event.sqnr_db.values(), strict=True)
            each = ", ".join(f"{name}{' ' if name else ''}{decibels:.1f} dB" for name, decibels in noise)
            line += f", SQNR to {event.source} on {event.images} calibration inputs {each}"
        if event.score is not None and event.float32_score is not None:
            metric = event.metric
            change = metric.change(event.float32_score, event.score)
            line += f"; {metric.name} {metric.format(event.score)}, {change} to float32"
        self.say(line)
        if event.incomparable:
            others = ", ".join(event.incomparable)
            self.say(f"warning: {files}: the number of values in {others} varies, so int8 was not compared there")

    @__call__.register
    def _(self, event: FilesRemoved) -> None:
        again = "--int8 and --ort, or lrexport export, write new ones"
        self.say(f"removed files of an earlier export: {', '.join(event.files)}; {again}")

    def _begin(self, stage: str, name: str) -> None:
        """Replace the bar of the previous stage."""
        if self._stage == stage:
            return
        if self._live is not None:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._task = self._live.add_task(plain(name), total=None, rate="")
        self._stage = stage
        self._began, self._before = time.perf_counter(), None

    def _show(self, stage: str, name: str, done: int | None, of: int | None, rate: str = "") -> None:
        """Update the live line on a terminal; elsewhere what is said if it takes long."""
        self._begin(stage, name)
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=done, total=of, rate=rate)
        elif self._live is None:
            share = f"{done} of {of}" if done is not None and of is not None else ""
            self._beat.doing(name, ", ".join(part for part in (share, rate) if part))


def share_text(macs: int, dense_macs: int) -> str:
    """``0.303``, the share of the dense network's MACs; a dash if it has none, as a network of BatchNorm only."""
    return f"{macs / dense_macs:.3f}" if dense_macs else "—"


def latency_text(latency: PlannedLatency) -> str:
    """A plan's measured latency, with the predicted one."""
    off = latency.predicted_ms / latency.measured_ms - 1
    return (
        f"{latency.ratio:.3f} of the dense network's latency on {latency.target}, {format_ms(latency.measured_ms)} "
        f"({format_ms(latency.predicted_ms)} predicted, {100 * off:+.1f} %)"
    )

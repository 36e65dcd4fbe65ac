"""What people see: tables on stdout, progress and notes on stderr; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrexport.artifacts import files
from lrexport.cli import output
from lrexport.cli.output import note as note
from lrexport.config.compression import STAGES
from lrexport.report.tables import Table
from lrexport.text import plain, plain_line
from lrexport.units import format_bytes, format_count, format_duration, format_ms, format_percent

if TYPE_CHECKING:
    from rich.progress import Progress

    from lrexport.plan import Entry

_NAME_WIDTH = 28  # of a first column that is longer, when a terminal is too narrow for everything
_REPAIRS = {
    "heldout_top1_after_reconstruction": "reconstructed",
    "heldout_top1_after_bias_correction": "with means corrected",
    "heldout_top1_after_batchnorm": "with BatchNorm re-estimated",
}


def note_dense(plan: Mapping[str, Entry]) -> None:
    """How many layers stay dense for which reason, on stderr."""
    from lrexport.report.plan_tables import dense_reasons

    for reason, count in dense_reasons(plan).items():
        note(f"{count} layer{'s' if count > 1 else ''} left dense: {reason}")


def print_table(table: Table) -> None:
    """A table on stdout: drawn by rich on a terminal, aligned plain text in a pipe.

    No cell is ever cut. A narrow terminal folds the first column, and goes without columns that the table can spare,
    which it then names.
    """
    if not table.rows:
        return
    if sys.stdout.isatty() and "utf" in (sys.stdout.encoding or "").lower():
        _draw(_escaped(table, plain))  # a cell that is folded begins lines anywhere
    else:
        _print_plain(_escaped(table, plain_line))


def _escaped(table: Table, escape: Callable[[str], str]) -> Table:
    """Every text made safe to print before its width is looked at; a caption may have several lines."""
    return Table(
        tuple(map(escape, table.columns)),
        tuple(tuple(map(escape, row)) for row in table.rows),
        "\n".join(map(escape, table.caption.split("\n"))),
        tuple(map(escape, table.words)),
        tuple(map(escape, table.spare)),
    )


def _print_plain(table: Table) -> None:
    widths = _widths(table)
    for row in (table.columns, *table.rows):
        cells = (
            text.ljust(width) if _is_left(table, i) else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        output.say("  ".join(cells).rstrip())
    for line in table.caption.split("\n") if table.caption else ():
        output.say(line)


def _draw(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False)
    shown, left_out = _fitting(table, console.width)
    fits = _needed(table, shown) <= console.width
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for i in shown:
        side: Any = "left" if _is_left(table, i) else "right"
        drawn.add_column(Text(table.columns[i]), justify=side, overflow="fold", no_wrap=fits and i > 0)
    for row in table.rows:
        drawn.add_row(*(Text(row[i]) for i in shown))  # Text: names may hold what rich takes for markup
    with console.capture() as captured:
        console.print(drawn)
        if table.caption:
            console.print(Text(table.caption, style="dim"))
        if left_out:
            console.print(Text(f"Left out for want of width: {', '.join(left_out)}.", style="dim"))
    output.drawn(captured.get())


def _fitting(table: Table, width: int) -> tuple[list[int], list[str]]:
    """The columns that fit in ``width`` when a long first one is folded, and the names of those left out."""
    shown, left_out = list(range(len(table.columns))), []
    for name in table.spare:
        if _needed(table, shown) <= width:
            break
        shown.remove(table.columns.index(name))
        left_out.append(name)
    return shown, left_out


def _needed(table: Table, shown: list[int]) -> int:
    """Characters of a drawn line: three between columns, one at either end, and a fair part for long names, which fold."""
    widths = _widths(table)
    return 2 + min(widths[0], _NAME_WIDTH) + sum(3 + widths[i] for i in shown[1:])


def _widths(table: Table) -> list[int]:
    return [max(len(row[i]) for row in (table.columns, *table.rows)) for i in range(len(table.columns))]


def _is_left(table: Table, index: int) -> bool:
    return index == 0 or table.columns[index] in table.words


def write_json(value: Any, destination: str) -> None:
    """JSON to a file, or to stdout for ``-``."""
    if destination == "-":
        output.print_json(value)
    else:
        files.write_json(Path(destination), value)


def print_result(value: Any, json_to: str | None, *tables: Table) -> None:
    """``value`` as JSON where --json asks for it, and the tables, unless stdout is JSON's."""
    if json_to:
        write_json(value, json_to)
    if json_to != "-":
        for table in tables:
            print_table(table)


class Progressing:
    """Shows a pipeline's events: a live line with rate and time left on a terminal, a line an epoch otherwise.

    ``refreshes`` of that line a second take time that a measurement on this machine may miss.
    """

    def __init__(self, refreshes: float = 10) -> None:
        self._refreshes = refreshes
        self._live: Progress | None = None
        self._task: Any = None
        self._stage: str | None = None
        self._began = time.perf_counter()
        self.noted: set[str] = set()
        self._before: int | None = None  # steps of the stage that were done when it began here

    def __enter__(self) -> Progressing:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            description = TextColumn("{task.description}", markup=False)  # the name of a target may look like markup
            columns = (description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            rate = TextColumn("{task.fields[rate]}", markup=False)
            console, often = Console(stderr=True), self._refreshes
            self._live = Progress(*columns, rate, console=console, transient=True, refresh_per_second=often)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "step":
            self._step(event)
        elif kind == "epoch":
            self._epoch(event)
        elif kind == "table":
            self._table(event)
        elif kind == "measuring":
            self._measuring(event)
        elif kind == "speed":
            table = f"; table in {event['table']}" if event["table"] is not None else ""
            self.say(f"the dense network takes {format_ms(event['dense'])} on {event['target']}{table}")
        elif kind == "export check":
            self.say(f"the dense network can be exported to ONNX ({format_duration(event['seconds'])} to find out)")
        elif kind == "pruning":
            images = f", with {event['images']} training images without their labels" if event["images"] else ""
            self.say(f"choosing ranks{images}")
        elif kind == "finished":
            self.say(f"{event['run']} is finished: there is nothing to resume")
        elif kind == "cut":
            share = format_percent(event["macs_share"])
            self.say(f"SVD training: {event['layers']} layers cut to {share} of the MACs")
        elif kind == "plan":
            self.say(_plan_line(event))
        elif kind == "export":
            self.say(_export_line(event))
            if event["blind"]:
                proves = "agreement with torch proves little (are the weights random?)"
                self.say(f"warning: {event['file']}: its output hardly depends on its input, so {proves}")
            for operator in event["uncounted"]:
                self.say(f"warning: {event['file']}: MACs of {operator} are not counted")
        elif kind == "int8":
            self.say(_int8_line(event))
            if event["in_float"]:
                self.say(f"note: {event['file']} has nodes that stay in float32: {', '.join(event['in_float'])}")
        elif kind == "note":
            self.noted.add(event["text"])
            self.say(f"note: {event['text']}")
        elif kind == "warning":
            self.say(f"warning: {event['text']}")
        elif kind == "ort":
            self.say(_ort_line(event))
        elif kind == "removed":
            self.say(f"removed from an earlier export: {', '.join(event['files'])}; --int8 and --ort make them anew")

    def _table(self, event: dict[str, Any]) -> None:
        if self._live is None:
            if event["done"] == 1:
                note(f"timing layers and their pairs on {event['target']}")
            return
        self._begin("table", f"timing layers on {event['target']}")
        self._live.update(self._task, completed=event["done"], total=event["of"])

    def _measuring(self, event: dict[str, Any]) -> None:
        if self._live is not None:
            self._begin("measuring", f"measuring on {event['target']}")
            self._live.update(self._task, completed=event.get("done"), total=event.get("of"))

    def _begin(self, stage: str, name: str) -> None:
        """A bar of its own for every stage."""
        if self._live is None or self._stage == stage:
            return
        if self._task is not None:
            self._live.remove_task(self._task)
        self._task, self._stage = self._live.add_task(plain(name), total=None, rate=""), stage
        self._began, self._before = time.perf_counter(), None

    def _step(self, event: dict[str, Any]) -> None:
        if self._live is None:
            return
        self._begin(event["stage"], STAGES[event["stage"]])
        steps = event["steps"]
        done = event["epoch"] * steps + event["step"] + 1
        if self._before is None:  # of an earlier life of the run
            self._before = done - 1
        rate = f"{(done - self._before) / (time.perf_counter() - self._began):.1f} steps/s, loss {event['loss']:.3f}"
        self._live.update(self._task, completed=done, total=event["epochs"] * steps, rate=rate)

    def _epoch(self, event: dict[str, Any]) -> None:
        # Of an epoch that was taken up on the way the seconds are those of its rest.
        left = (event["epochs"] - event["epoch"]) * max(event["seconds"], event["steps"] * event["step_ms"] / 1e3)
        remaining = f", {format_duration(left)} left" if left else ""
        over = f", a step {event['step_over_dense']:.2f}× a dense one" if "step_over_dense" in event else ""
        self.say(
            f"{STAGES[event['stage']]}: epoch {event['epoch']}/{event['epochs']}  loss {event['loss']:.4f}  "
            f"held-out top-1 {format_percent(event['heldout_top1'])}  {event['images_per_second']:.0f} images/s"
            f"{over}{remaining}"
        )
        if "steered" in event:
            steered = event["steered"]
            dropped = f"pruning would drop up to {format_percent(steered['energy_dropped'])} of a layer's energy"
            self.say(f"SVD training: λ_s {steered['weakest']:.2g} to {steered['strongest']:.2g}, {dropped}")

    def say(self, text: str) -> None:
        """A line for people, above the live one."""
        if self._live is not None:
            # Not wrapped: a line that rich began could begin with a name.
            self._live.console.print(plain_line(text), highlight=False, markup=False, emoji=False, soft_wrap=True)
        else:
            note(text)


def _plan_line(event: dict[str, Any]) -> str:
    share = share_text(event["macs"], event["dense_macs"])
    line = f"plan: {format_count(event['macs'])} of {format_count(event['dense_macs'])} MACs ({share})"
    if "latency" in event:
        line += f"; {latency_text(event['latency'])}"
    if event["threshold"] is not None:
        line += f", at most {100 * event['threshold']:.3g} % of a layer's energy dropped"
    if "heldout_top1_before" in event:
        line += f"; held-out top-1 {format_percent(event['heldout_top1_before'])} before"
    if "heldout_top1" in event:
        line += f"; held-out top-1 {format_percent(event['heldout_top1'])} as folded"
        best = event["heldout_top1"]
        for key, repair in _REPAIRS.items():
            if key in event:
                line += f", {format_percent(event[key])} {repair}" + (" (not kept)" if event[key] < best else "")
                best = max(best, event[key])
    return line


def share_text(macs: int, dense_macs: int) -> str:
    """``0.303`` of the dense network's; a dash where that has none, as a network of BatchNorm alone."""
    return f"{macs / dense_macs:.3f}" if dense_macs else "—"


def latency_text(found: dict[str, Any]) -> str:
    """What was predicted and measured: a planned latency of the record as a dictionary."""
    off = found["predicted"] / found["measured"] - 1
    return (
        f"{found['ratio']:.3f} of the dense network's latency on {found['target']}, {format_ms(found['measured'])} "
        f"({format_ms(found['predicted'])} predicted, {100 * off:+.1f} %)"
    )


def _export_line(event: dict[str, Any]) -> str:
    rescored = ", accuracy the same" if event["rescored"] else ""
    simplified = "" if event["simplified"] else " (onnxsim gave nothing usable; exported graph kept)"
    return (
        f"{event['file']}: {format_bytes(event['bytes'])}, opset {event['opset']}, checked; differs from torch by at most "
        f"{event['relative_error']:.1e} of the largest output{rescored}{simplified}"
    )


def _ort_line(event: dict[str, Any]) -> str:
    return (
        f"{event['file']}: {format_bytes(event['bytes'])}, for {event['platform']}; differs from {event['source']} by at "
        f"most {event['relative_error']:.1e} of the largest output"
    )


def _int8_line(event: dict[str, Any]) -> str:
    share = event["int8_macs"] / max(1, event["macs"])
    line = (
        f"{event['file']}: {format_bytes(event['bytes'])}, {100 * share:.1f} % of MACs in int8, same class as "
        f"{event['source']} on {format_percent(event['agreement'])} of {event['images']} calibration images"
    )
    if "top1" in event:
        int8, float32 = event["top1"], event["float32_top1"]
        line += f"; top-1 {format_percent(int8)}, {100 * (int8 - float32):+.2f} points to float32"
    return line

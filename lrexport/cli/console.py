"""Results for people and programs: tables and JSON on stdout, notes on stderr; plain text without a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrexport.artifacts import files
from lrexport.cli import output
from lrexport.cli.output import note as note
from lrexport.report.tables import Table
from lrexport.text import number_of, plain, plain_line

if TYPE_CHECKING:
    from lrexport.plan import Entry

_NAME_WIDTH = 28  # of a long first column, when the terminal is too narrow for the table


def note_dense(plan: Mapping[str, Entry]) -> None:
    """Print on stderr how many layers stay dense, by reason."""
    from lrexport.report.plan_tables import dense_reasons

    for reason, count in dense_reasons(plan).items():
        note(f"{number_of(count, 'layer')} left dense: {reason}")


def print_table(table: Table) -> None:
    """Print a table on stdout: drawn by rich on a terminal, aligned plain text in a pipe.

    No cell is truncated. On a narrow terminal the first column folds, and columns that the table can spare are omitted and
    named.
    """
    if not table.rows:
        return
    if sys.stdout.isatty() and "utf" in (sys.stdout.encoding or "").lower():
        _draw(_escaped(table, plain))  # a folded cell may break anywhere
    else:
        _print_plain(_escaped(table, plain_line))


def _escaped(table: Table, escape: Callable[[str], str]) -> Table:
    """The table with every text made safe to print, which may change its width; a caption may have several lines."""
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
        drawn.add_row(*(Text(row[i]) for i in shown))  # Text: names may look like rich markup
    with console.capture() as captured:
        console.print(drawn)
        if table.caption:
            console.print(Text(table.caption, style="dim"))
        if left_out:
            console.print(Text(f"Columns omitted for lack of width: {', '.join(left_out)}.", style="dim"))
    output.drawn(captured.get())


def _fitting(table: Table, width: int) -> tuple[list[int], list[str]]:
    """The columns that fit in ``width`` when a long first one is folded, and the names of the others."""
    shown, left_out = list(range(len(table.columns))), []
    for name in table.spare:
        if _needed(table, shown) <= width:
            break
        shown.remove(table.columns.index(name))
        left_out.append(name)
    return shown, left_out


def _needed(table: Table, shown: list[int]) -> int:
    """Characters of a drawn line: three between columns, one at each end, and a minimum for long names, which fold."""
    widths = _widths(table)
    return 2 + min(widths[0], _NAME_WIDTH) + sum(3 + widths[i] for i in shown[1:])


def _widths(table: Table) -> list[int]:
    return [max(len(row[i]) for row in (table.columns, *table.rows)) for i in range(len(table.columns))]


def _is_left(table: Table, index: int) -> bool:
    return index == 0 or table.columns[index] in table.words


def write_json(value: Any, destination: str) -> None:
    """Write JSON to a file, or to stdout for ``-``."""
    if destination == "-":
        output.print_json(value)
    else:
        files.write_json(Path(destination), value)


def print_result(value: Any, json_to: str | None, *tables: Table) -> None:
    """Write ``value`` as JSON if --json was given, and print the tables unless JSON went to stdout."""
    if json_to:
        write_json(value, json_to)
    if json_to != "-":
        for table in tables:
            print_table(table)

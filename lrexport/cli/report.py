"""``lrexport report``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lrexport.cli.help import OUTPUT, Command, section
from lrexport.cli.options import FILE, check_output
from lrexport.errors import UsageError

if TYPE_CHECKING:
    from lrexport.report.reported_run import ReportedRun

_ENDINGS = {".html": "html", ".htm": "html", ".md": "markdown", ".markdown": "markdown", ".json": "json"}
_PAGE = "report.html"
_GENERATOR, _HEAD_BYTES = b'<meta name="generator" content="lrexport ', 4096  # of the page's template


@click.command("report", cls=Command, short_help="Report on runs: one self-contained HTML page, Markdown or JSON.")
@click.argument("runs", type=FILE, nargs=-1, required=True, metavar="RUN|SWEEP...")
@section(
    OUTPUT,
    click.option(
        "-o",
        "--output",
        metavar="FILE|-",
        callback=check_output,
        help=f"File to write. [default: {_PAGE}; stdout for Markdown and JSON]",
    ),
    click.option(
        "--format",
        "kind",
        type=click.Choice(("html", "markdown", "json")),
        help="Format. [default: by the suffix of -o, else html]",
    ),
    click.option(
        "--examples",
        type=click.IntRange(0),
        metavar="N",
        help="Held-out pictures of each run in the page, at most; 0 for none. [default: all of one run, fewer of several]",
    ),
    click.option("--no-front-matter", is_flag=True, help="Omit the YAML front matter of Markdown, as for a pull request."),
)
def command(
    runs: tuple[Path, ...], output: str | None, kind: str | None, examples: int | None, no_front_matter: bool
) -> None:
    """Report on finished runs, or on the Pareto front of a sweep.

    Shows ratios, a few held-out pictures with the outputs of both networks, singular values and where they are cut, ranks,
    cost and time by layer, training, and the commands that repeat it. Several runs are also compared, with Pareto fronts of
    accuracy against MACs and against latency. The HTML page is a single file and works offline.

    \b
    lrexport report run
    lrexport report run run-0.4 -o runs.html
    lrexport report sweep -o sweep.html
    lrexport report run -o README.md
    lrexport report run --format markdown --no-front-matter -o comment.md
    """
    from lrexport.cli.output import document, page
    from lrexport.report.reported_run import read_subjects

    kind = kind or _kind_of(output)
    if no_front_matter and kind != "markdown":
        raise UsageError(f"--no-front-matter requires Markdown; this report is {kind}", "Add --format markdown.")
    if examples is not None and kind != "html":
        raise UsageError(
            f"--examples requires HTML; this report is {kind}", "Markdown and JSON contain no pictures: omit it."
        )
    if output is None and kind == "html":
        _check_replaceable(Path(_PAGE))
    subjects = read_subjects(runs, with_examples=kind == "html" and examples != 0)
    if kind == "json":
        from lrexport.cli.console import write_json
        from lrexport.report.json_report import runs_to_json

        write_json(runs_to_json(subjects), output or "-")
    elif kind == "markdown":
        from lrexport.report import cards

        _write(cards.render(subjects, not no_front_matter), output or "-", document)
    else:
        from lrexport import __version__
        from lrexport.report.page.render import render

        _write(render(subjects, __version__, examples), output or _PAGE, page)
        _note_pictures(subjects)


def _note_pictures(subjects: Sequence[ReportedRun]) -> None:
    """Tell the user whose pictures are in the page, because reports are passed on."""
    from lrexport.cli.console import note

    sources = dict.fromkeys(one.record.data.source for one in subjects if one.examples is not None and one.record.data)
    if sources:
        note(f"the page contains held-out pictures of {', '.join(sources)}; --examples 0 leaves them out")


def _check_replaceable(page: Path) -> None:
    """Raise UsageError if the default page would overwrite a file that lrexport did not write."""
    from lrexport.artifacts.plain_files import destination, open_input

    if not destination(page).is_file():
        return
    with open_input(page) as stream:
        ours = _GENERATOR in stream.read(_HEAD_BYTES)
    if not ours:
        raise UsageError(
            f"{page} exists and was not written by lrexport", "It was not changed. Choose another file with -o FILE."
        )


def _kind_of(output: str | None) -> str:
    """The format by the output's suffix."""
    if output is None:
        return "html"
    if output == "-":
        raise UsageError("-o - requires --format", "Give --format html, markdown or json.")
    ending = Path(output).suffix.lower()
    if ending not in _ENDINGS:
        raise UsageError(
            f"unknown suffix of -o {output!r}: expected {', '.join(_ENDINGS)}",
            "Use one of these, or add --format html, markdown or json.",
        )
    return _ENDINGS[ending]


def _write(text: str, destination: str, show: Callable[[str], None]) -> None:
    """Write to a file; for ``-`` print with ``show``."""
    from lrexport.artifacts import files
    from lrexport.cli.console import note

    if destination == "-":
        show(text)
        return
    files.write_bytes(Path(destination), text.encode())
    note(f"written: {destination}")

"""``lrexport check``."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from lrexport.cli import output
from lrexport.cli.help import COMPARISON, OUTPUT, Command, section
from lrexport.cli.options import FILE, json_option, output_option
from lrexport.errors import DeviceError, LrexportError, UsageError

if TYPE_CHECKING:
    from lrexport.budget.check_report import Report

_STEP_SUMMARY_BYTES = 1 << 20  # GitHub refuses a step's summary beyond 1 MiB


@click.command("check", cls=Command, short_help="Budgets for CI: size, MACs, latency, accuracy, operators, growth.")
@click.argument("models", nargs=-1, metavar="[RUN|FILE|GLOB]...")
@section(
    COMPARISON,
    click.option(
        "--baseline",
        type=FILE,
        metavar="FILE|RUN",
        help="File or run that growth is relative to. [default: lrexport-baseline.json]",
    ),
    click.option("--update-baseline", is_flag=True, help="Write the baseline from the current models."),
    click.option(
        "--latency",
        "latencies",
        type=FILE,
        multiple=True,
        metavar="FILE",
        help="Output of lrexport bench --json. Repeatable.",
    ),
    click.option("--allow-other-machine", is_flag=True, help="Compare latencies with a baseline of another machine."),
    click.option("--strict", is_flag=True, help="Treat inconclusive limits as failures."),
)
@section(
    OUTPUT,
    json_option(),
    output_option("markdown", "Write Markdown, for a comment on a pull request."),
    output_option("junit", "Write JUnit XML."),
    output_option("history", "Write figures for benchmark dashboards: [{name, unit, value}]."),
    click.option(
        "--comment-id",
        metavar="ID",
        help="Distinguishes the comments of several checks. [default: from --config, --baseline and MODELS]",
    ),
)
def command(
    models: tuple[str, ...],
    baseline: Path | None,
    update_baseline: bool,
    latencies: tuple[Path, ...],
    allow_other_machine: bool,
    strict: bool,
    comment_id: str | None,
    **outputs: str | None,
) -> None:
    """Compare models with their budgets: [tool.lrexport.budget] in pyproject.toml, or [budget] in lrexport.toml.

    Without arguments, the models that the budgets name are checked. Exit code 1: a limit is exceeded; 2: a limit could not
    be checked; 3: a file could not be read. The other models are checked and reported in any case. On GitHub, the step
    summary and annotations are written too.

    \b
    lrexport check
    lrexport check run --json -
    lrexport check 'exports/*.onnx' --junit budgets.xml
    lrexport check --update-baseline
    """
    from lrexport.artifacts.toml_files import read_settings
    from lrexport.check.run_check import CheckOptions, check_settings

    if list(outputs.values()).count("-") > 1:
        raise UsageError("only one output can go to stdout", "Give a file for the others instead of -.")
    context = click.get_current_context()
    if update_baseline and context.get_parameter_source("baseline") is ParameterSource.DEFAULT_MAP:
        raise UsageError(
            f"--update-baseline would write {baseline}, which a configuration file chose",
            "Give --baseline FILE on the command line.",
        )
    config_file = context.find_root().params.get("config_file")
    comment_id = _comment_id(comment_id, [config_file or "", str(baseline or ""), *models])
    try:
        settings = read_settings(config_file)
        choices = CheckOptions(baseline, update_baseline, allow_other_machine, strict, latencies)
        report = check_settings(models, settings, choices)
    except LrexportError as error:
        _tell_failure(error, outputs["markdown_to"], comment_id)
        raise
    if update_baseline:
        from lrexport.check.run_check import baseline_path

        output.note(f"written: {baseline_path(settings, choices)}")
    for text in report.notes:
        output.note(f"note: {text}")
    for reason in report.damage:
        output.problem(reason)
    _write(report, outputs, comment_id)
    context.exit(report.exit_code)


def _comment_id(given: str | None, request: list[str]) -> str:
    """The id that distinguishes a check's comments: the user's, or a digest of what is checked. Raises UsageError."""
    from lrexport.budget.outputs.markdown import COMMENT_ID

    if given is not None and not COMMENT_ID.fullmatch(given):
        raise UsageError(f"invalid --comment-id {given!r}: expected 1 to 64 letters, digits, '.', '_' or '-'")
    return given or (
        hashlib.sha256("\0".join(request).encode(errors="surrogateescape")).hexdigest()[:12] if any(request) else ""
    )


def _write(report: Report, outputs: dict[str, str | None], comment_id: str) -> None:
    """Write every requested output, and tables on stdout unless an output goes there.

    An output that cannot be written does not stop the others. Raises the first DeviceError after all were tried.
    """
    if "-" not in outputs.values():
        _print_tables(report)
    destinations = {name: destination for name, destination in outputs.items() if destination}
    writers = [partial(_WRITERS[name], report, destination, comment_id) for name, destination in destinations.items()]
    failures = []
    for write in (*writers, partial(_tell_github, report, comment_id)):
        try:
            write()
        except DeviceError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _print_tables(report: Report) -> None:
    from lrexport.budget.outputs import text
    from lrexport.cli.console import print_table

    print_table(text.table(report))
    for line in text.details(report):
        output.say(line)


def _write_json(report: Report, destination: str, _comment_id: str) -> None:
    from lrexport.budget.outputs import json
    from lrexport.cli.console import write_json

    write_json(json.check_to_json(report), destination)


def _write_history(report: Report, destination: str, _comment_id: str) -> None:
    from lrexport.budget.outputs import history
    from lrexport.cli.console import write_json

    write_json(history.history_to_json(report), destination)


def _write_markdown(report: Report, destination: str, comment_id: str) -> None:
    from lrexport.budget.outputs import markdown

    _write_text(markdown.render(report, comment_id=comment_id), destination)


def _write_junit(report: Report, destination: str, _comment_id: str) -> None:
    from lrexport.budget.outputs import junit

    _write_text(junit.render(report), destination)


_WRITERS = {"json_to": _write_json, "history_to": _write_history, "markdown_to": _write_markdown, "junit_to": _write_junit}


def _write_text(content: str, destination: str) -> None:
    from lrexport.artifacts import files

    if destination == "-":
        output.document(content)
    else:
        files.write_bytes(Path(destination), content.encode())


def _tell_github(report: Report, comment_id: str) -> None:
    """The summary and annotations of a step of a GitHub workflow; nothing elsewhere."""
    if _in_github():
        from lrexport.budget.outputs import annotations

        root = os.environ.get("GITHUB_WORKSPACE", os.curdir)
        output.ci_commands(annotations.lines(report, Path(os.path.relpath(os.curdir, root)).as_posix()))
    from lrexport.budget.outputs import markdown

    _summarise(lambda room: markdown.render(report, room, comment_id))


def _tell_failure(error: LrexportError, destination: str | None, comment_id: str) -> None:
    """The error in the comment and the step summary, for people who do not see the log."""
    from lrexport.budget.outputs import annotations, markdown

    content = markdown.failure(error, comment_id)
    with contextlib.suppress(DeviceError):  # the error itself matters more
        if destination not in (None, "-"):
            _write_text(content, str(destination))
        _summarise(lambda room: content)
    if _in_github():
        output.ci_commands([annotations.failure(error)])


def _in_github() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


def _summarise(render: Callable[[int], str]) -> None:
    """Append to the summary of a GitHub step; ``render`` gets the bytes that are left."""
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        from lrexport.artifacts import files
        from lrexport.artifacts.plain_files import destination
        from lrexport.budget.outputs import markdown

        written = Path(summary).stat().st_size if Path(summary).is_file() else 0
        room = min(markdown.COMMENT_BYTES, _STEP_SUMMARY_BYTES - written)
        if room >= markdown.LEAST_BYTES:
            files.append_text(destination(Path(summary)), render(room))

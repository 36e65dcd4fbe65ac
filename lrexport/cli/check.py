"""``lrexport check``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from lrexport.cli import output
from lrexport.cli.options import FILE, json_option, output_option
from lrexport.errors import UsageError

if TYPE_CHECKING:
    from lrexport.budget.report import Report

_STEP_SUMMARY_BYTES = 1 << 20  # GitHub refuses a step's summary beyond 1 MiB


@click.command("check", cls=output.Command, short_help="Budgets for CI: size, MACs, latency, accuracy, operators, growth.")
@click.argument("models", nargs=-1, metavar="[RUN|FILE.onnx|GLOB]...")
@click.option("--baseline", type=FILE, metavar="FILE|RUN", help="What growth is measured against [lrexport-baseline.json].")
@click.option("--update-baseline", is_flag=True, help="Write the baseline file from the models as they are.")
@click.option("--latency", "latencies", type=FILE, multiple=True, metavar="FILE", help="What lrexport bench --json wrote.")
@click.option("--allow-other-machine", is_flag=True, help="Compare latencies with a baseline of another machine.")
@click.option("--strict", is_flag=True, help="An inconclusive limit has failed.")
@json_option()
@output_option("markdown", "Write Markdown, as for a comment on a pull request.")
@output_option("junit", "Write JUnit XML.")
@output_option("history", "Write the figures as [{name, unit, value}], as benchmark dashboards take them.")
def command(
    models: tuple[str, ...],
    baseline: Path | None,
    update_baseline: bool,
    latencies: tuple[Path, ...],
    allow_other_machine: bool,
    strict: bool,
    **outputs: str | None,
) -> None:
    """Compare models with their budgets: [tool.lrexport.budget] in pyproject.toml, or [budget] in lrexport.toml.

    Without MODELS those that the budgets name are checked. Exit code 1 when a limit was broken, 2 when one could not be
    checked. On GitHub the step's summary and annotations are written as well.

    \b
    lrexport check
    lrexport check run --json -
    lrexport check 'exports/*.onnx' --junit budgets.xml
    lrexport check --update-baseline
    """
    from lrexport.artifacts.toml_files import read_settings
    from lrexport.checking.flow import Choices, check_settings

    if list(outputs.values()).count("-") > 1:
        raise UsageError("only one output fits on stdout", "Give the others a file instead of -.")
    context = click.get_current_context()
    if update_baseline and context.get_parameter_source("baseline") is ParameterSource.DEFAULT_MAP:
        raise UsageError(
            f"--update-baseline would write {baseline}, which a configuration file names",
            "Give --baseline FILE on the command line.",
        )
    settings = read_settings(context.find_root().params.get("config_file"))
    choices = Choices(baseline, update_baseline, allow_other_machine, strict, latencies)
    report = check_settings(models, settings, choices)
    if update_baseline:
        from lrexport.checking.flow import baseline_path
        from lrexport.cli.console import note

        note(f"written: {baseline_path(settings, choices)}")
    _write(report, outputs)
    _tell_github(report)
    context.exit(report.exit_code)


def _write(report: Report, outputs: dict[str, str | None]) -> None:
    """Tables for people, unless one of the other outputs is to have stdout, and every output that was asked for."""
    from lrexport.cli.console import print_table, write_json

    if "-" not in outputs.values():
        from lrexport.budget.outputs import text
        from lrexport.cli.output import say

        print_table(text.table(report))
        for line in text.details(report):
            say(line)
    if destination := outputs["json_to"]:
        from lrexport.budget.outputs import json

        write_json(json.to_json(report), destination)
    if destination := outputs["history_to"]:
        from lrexport.budget.outputs import history

        write_json(history.to_json(report), destination)
    if destination := outputs["markdown_to"]:
        from lrexport.budget.outputs import markdown

        _write_text(markdown.render(report), destination)
    if destination := outputs["junit_to"]:
        from lrexport.budget.outputs import junit

        _write_text(junit.render(report), destination)


def _write_text(content: str, destination: str) -> None:
    from lrexport.artifacts import files
    from lrexport.cli.output import document

    if destination == "-":
        document(content)
    else:
        files.write_bytes(Path(destination), content.encode())


def _tell_github(report: Report) -> None:
    """The step's summary and annotations, where this is a step of a GitHub workflow."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from lrexport.budget.outputs import annotations
        from lrexport.cli.output import ci_commands

        root = os.environ.get("GITHUB_WORKSPACE", os.curdir)
        ci_commands(annotations.lines(report, Path(os.path.relpath(os.curdir, root)).as_posix()))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        from lrexport.artifacts import files
        from lrexport.artifacts.plain_files import destination
        from lrexport.budget.outputs import markdown

        written = Path(summary).stat().st_size if Path(summary).is_file() else 0
        room = min(markdown.COMMENT_BYTES, _STEP_SUMMARY_BYTES - written)
        if room >= markdown.LEAST_BYTES:
            files.append_text(destination(Path(summary)), markdown.render(report, room))

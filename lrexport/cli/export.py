"""``lrexport export``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lrexport.artifacts.run_files import IN_FORMATS, IN_FORMATS_INT8, ORT
from lrexport.cli.help import EXPORT, MODEL_AND_DATA, OUTPUT, Command, section
from lrexport.cli.option_types import DataType
from lrexport.cli.options import RUN, json_option, trust_option
from lrexport.config.export_options import ExportOptions
from lrexport.errors import UsageError
from lrexport.text import nearest

if TYPE_CHECKING:
    from lrexport.workflow.export_formats import FormatRequest

_SYNTAX = "NAME[?python=PATH]"


class FormatsType(click.ParamType[tuple[tuple[str, str | None], ...]]):
    """``openvino,mnn?python=PATH`` → names of formats, each with the Python that has its runtime, or None."""

    name = "FORMATS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[str, str | None], ...]:
        if isinstance(value, tuple):
            return value
        asked: dict[str, str | None] = {}
        for text in str(value).split(","):
            name, query, option = text.strip().partition("?")
            if name not in IN_FORMATS:
                near = nearest(name, IN_FORMATS)
                hint = f"Did you mean {near[0]}? " if near else ""
                self.fail(f"unknown format {name!r}. {hint}Known: {', '.join(IN_FORMATS)}.", param, ctx)
            if query and (not option.startswith("python=") or option == "python="):
                self.fail(f"invalid format {text!r}: expected {_SYNTAX}", param, ctx)
            if query and name == ORT:
                self.fail(f"invalid format {text!r}: .ort files are written under this Python; omit ?python=", param, ctx)
            asked[name] = option.removeprefix("python=") if query else None
        return tuple(asked.items())

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from lrexport.cli.completion import items

        return items(_continued(incomplete), incomplete)


def _continued(incomplete: str) -> Iterable[str]:
    """What is typed up to the last comma with each format that is not among it."""
    before, comma, _ = incomplete.rpartition(",")
    given = {text.partition("?")[0] for text in before.split(",")}
    return (f"{before}{comma}{name}" for name in IN_FORMATS if name not in given)


@click.command("export", cls=Command, short_help="Write a run's networks for other runtimes: verified, re-scored.")
@click.argument("run", type=RUN)
@section(
    MODEL_AND_DATA,
    click.option(
        "--data", type=DataType(), metavar="DATA", help="Images to compare and score on. [default: those of the run]"
    ),
    trust_option(),
)
@section(
    EXPORT,
    click.option(
        "--to",
        "formats",
        type=FormatsType(),
        metavar="FORMAT,…",
        required=True,
        help=f"One or more of {', '.join(IN_FORMATS)}, with commas; ?python=PATH names the Python that has the runtime.",
    ),
    click.option(
        "--int8",
        is_flag=True,
        help=f"Also write both networks in int8, by the runtime's own quantiser ({', '.join(IN_FORMATS_INT8)}).",
    ),
    click.option(
        "--calibration-images",
        type=click.IntRange(1),
        metavar="N",
        default=ExportOptions().calibration_images,
        show_default=True,
        help="Held-out training images for --int8, at most, without labels.",
    ),
    click.option("--no-rescore", is_flag=True, help="Do not score the files in their runtimes."),
)
@section(OUTPUT, json_option())
def command(
    run: Path,
    data: str | None,
    formats: tuple[tuple[str, str | None], ...],
    int8: bool,
    calibration_images: int,
    no_rescore: bool,
    json_to: str | None,
) -> None:
    """Write RUN's exported networks, dense and compressed, in the formats of other runtimes.

    They are made from RUN/model.onnx and RUN/dense.onnx, and compared with these in their runtime: every output, channel by
    channel, on random and real inputs. Then they are scored on the test images. If anything differs, no files are written.

    With --int8 both are also quantised by the runtime's own quantiser, compared and scored there.

    \b
    lrexport export run --to openvino,ncnn
    lrexport export run --to openvino --int8
    lrexport export run --to 'mnn?python=/opt/mnn/bin/python'
    """
    from lrexport.cli.console import print_result
    from lrexport.cli.preflight import check_export
    from lrexport.cli.progress import Progressing
    from lrexport.report.format_tables import formats_table

    if not run.is_dir():
        raise UsageError(f"the run {run} does not exist", "Make one with lrexport compress MODEL -o RUN.")
    check_export(run, data, int8 or not no_rescore, int8)

    from lrexport.workflow.export_formats import FormatRequest, export_formats

    options = ExportOptions(data=data, rescore=not no_rescore, int8=int8, calibration_images=calibration_images)
    asked: list[FormatRequest] = [FormatRequest(name, python) for name, python in formats]
    with Progressing() as progress:
        record = export_formats(run, asked, options, progress)
    print_result(record.model_dump(mode="json"), json_to, formats_table(record))

"""``lrexport onnx``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lrexport.cli.help import EXPORT, MEASUREMENT, MODEL_AND_DATA, OUTPUT, Command, section
from lrexport.cli.option_types import DataType
from lrexport.cli.options import RUN, json_option, target_option, threads_option, trust_option
from lrexport.config.export_options import BATCH, ExportOptions, check_dynamic
from lrexport.errors import UsageError

_DEFAULT = ExportOptions()


class BatchType(click.ParamType[int]):
    """A number of images, or ``dynamic`` (None)."""

    name = "N|dynamic"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if str(value) == "dynamic":
            return 0
        if str(value).isdigit() and int(value) > 0:
            return int(value)
        self.fail(f"invalid batch {value!r}: expected a number of at least 1, or 'dynamic'", param, ctx)
        return None


class DynamicType(click.ParamType[tuple[str, ...]]):
    """``batch,height,width`` → the names of axes."""

    name = "AXES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        try:
            return check_dynamic(value)
        except UsageError as error:
            self.fail(f"{error.message}", param, ctx)


class RoundsType(click.ParamType[int]):
    """A number of rounds that is enough for percentiles, or 0."""

    name = "N"
    least = 10

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text.isdecimal() and (int(text) == 0 or int(text) >= self.least):
            return int(text)
        self.fail(
            f"invalid number of rounds {text!r}: expected at least {self.least} rounds, or 0 to skip the measurement",
            param,
            ctx,
        )
        return None


@click.command("onnx", cls=Command, short_help="Export a run to ONNX: verified, re-scored, measured.")
@click.argument("run", type=RUN)
@section(
    MODEL_AND_DATA,
    click.option(
        "--data", type=DataType(), metavar="DATA", help="Images to verify and score on. [default: those of the run]"
    ),
    trust_option(),
)
@section(
    EXPORT,
    click.option(
        "--batch",
        type=BatchType(),
        metavar="N|dynamic",
        default=str(_DEFAULT.batch),
        show_default=True,
        help="Batch size of the file.",
    ),
    click.option(
        "--dynamic",
        type=DynamicType(),
        metavar="AXES",
        default=(),
        help="Axes that may have any size: one or more of batch, height, width, length, with commas.",
    ),
    click.option(
        "--opset", type=int, metavar="N", default=_DEFAULT.opset, show_default=True, help="ONNX operator set, 7 or later."
    ),
    click.option(
        "--with-preprocessing",
        is_flag=True,
        help="Put normalisation into the graph: the files take uint8 pictures (batch, height, width, channels).",
    ),
    click.option(
        "--int8", is_flag=True, help="Also write model.int8.onnx and dense.int8.onnx: int8 weights and activations."
    ),
    click.option(
        "--calibration-images",
        type=click.IntRange(1),
        metavar="N",
        default=_DEFAULT.calibration_images,
        show_default=True,
        help="Held-out training images for --int8, at most, without labels.",
    ),
    click.option(
        "--ort", is_flag=True, help="Also write model.ort (x86) and model.arm.ort for small builds of ONNX Runtime."
    ),
    click.option("--no-passes", is_flag=True, help="Leave shortcuts and the like in the form that torch gives them."),
)
@section(
    MEASUREMENT,
    click.option("--no-rescore", is_flag=True, help="Do not score the files in ONNX Runtime."),
    click.option(
        "--rounds",
        type=RoundsType(),
        default=_DEFAULT.rounds,
        show_default=True,
        help="Rounds of latency, at least 10; 0 for none.",
    ),
    threads_option(),
    target_option(),
)
@section(OUTPUT, json_option())
def command(
    run: Path,
    batch: int,
    dynamic: tuple[str, ...],
    no_passes: bool,
    no_rescore: bool,
    json_to: str | None,
    **options: Any,
) -> None:
    """Export RUN to RUN/model.onnx and RUN/dense.onnx.

    Each file is checked, compared with torch on random and real inputs, simplified, compared again, scored on the test
    images and timed on the target, dense and compressed interleaved. If anything differs, no files are written.

    With --int8 both are also quantised (QDQ, one scale per channel), scored and timed beside the others.

    \b
    lrexport onnx run
    lrexport onnx run --int8 --target ssh://pi@raspberrypi.local
    lrexport onnx run --dynamic batch,height,width
    """
    from lrexport.cli.console import note, print_result
    from lrexport.cli.preflight import check_export
    from lrexport.cli.progress import Progressing
    from lrexport.report.int8_tables import int8_notes, int8_table
    from lrexport.report.tables import results_table

    if not run.is_dir():
        raise UsageError(f"the run {run} does not exist", "Make one with lrexport compress MODEL -o RUN.")
    check_export(run, options["data"], options["int8"] or not no_rescore, options["int8"])

    from lrexport.workflow import exporting

    chosen = ExportOptions(**_free_axes(batch, dynamic), passes=not no_passes, rescore=not no_rescore, **options)
    with Progressing() as progress:
        record = exporting.export_run(run, chosen, progress)
    for name in record.files:
        result = record.result_of(name)
        for latency in (result.latency_ms if result else {}).values():
            if latency.warning:
                note(f"warning: latency of {name} {latency.warning}")
    for text in int8_notes(record):
        note(f"warning: {text}")
    print_result(record.model_dump(mode="json"), json_to, results_table(record), int8_table(record))


def _free_axes(batch: int, dynamic: tuple[str, ...]) -> dict[str, Any]:
    """``batch`` and ``dynamic`` of the export. Raises UsageError for a batch that is both a number and dynamic."""
    given = click.get_current_context().get_parameter_source("batch") is not ParameterSource.DEFAULT
    if BATCH in dynamic and batch and given:
        raise UsageError(f"--batch {batch} and --dynamic {','.join(dynamic)}: expected one size of the batch", "Omit one.")
    free = not batch or BATCH in dynamic
    return {"batch": None if free else batch, "dynamic": check_dynamic((*dynamic, *([BATCH] if free else [])))}

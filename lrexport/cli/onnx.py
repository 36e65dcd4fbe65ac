"""``lrexport onnx``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lrexport.cli import output
from lrexport.cli.options import RUN, json_option, target_option, threads_option, trust_option
from lrexport.errors import UsageError


class BatchType(click.ParamType[int]):
    """A number of images, or ``dynamic`` (None)."""

    name = "N|dynamic"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if str(value) == "dynamic":
            return 0
        if str(value).isdigit() and int(value) > 0:
            return int(value)
        self.fail(f"{value!r} is neither a number of images nor 'dynamic'", param, ctx)
        return None


class RoundsType(click.ParamType[int]):
    """0, or a number of rounds that percentiles can be taken of."""

    name = "N"
    least = 10

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text.isdecimal() and (int(text) == 0 or int(text) >= self.least):
            return int(text)
        self.fail(f"{text!r}: give at least {self.least} rounds, or 0 to measure no latency", param, ctx)
        return None


@click.command("onnx", cls=output.Command, short_help="Export a run to ONNX: verified, re-scored, measured.")
@click.argument("run", type=RUN)
@click.option(
    "--batch", type=BatchType(), metavar="N|dynamic", default="1", show_default=True, help="Fixed batch size, or dynamic."
)
@click.option(
    "--opset",
    type=int,
    metavar="N",
    default=18,
    show_default=True,
    help="ONNX operator set, 7 or newer.",
)
@click.option(
    "--rounds", type=RoundsType(), default=100, show_default=True, help="Rounds of latency, at least 10; 0 for none."
)
@threads_option()
@target_option("Where latency is measured.")
@click.option("--data", metavar="DATA", help="Other images than the run's own, or where those are now.")
@click.option("--int8", is_flag=True, help="Also model.int8.onnx and dense.int8.onnx: int8 weights and activations.")
@click.option(
    "--calibration-images",
    type=click.IntRange(1),
    metavar="N",
    default=512,
    show_default=True,
    help="Held-out training images for --int8, at most; labels are not used.",
)
@click.option("--ort", is_flag=True, help="Also model.ort (x86) and model.arm.ort, for small builds of ONNX Runtime.")
@click.option("--no-rescore", is_flag=True, help="Do not score the files in ONNX Runtime.")
@trust_option()
@json_option()
def command(run: Path, batch: int, no_rescore: bool, json_to: str | None, **options: Any) -> None:
    """Write RUN/model.onnx and RUN/dense.onnx.

    Each is checked, compared with torch on random and real inputs, simplified, compared again, scored on the test images
    and timed on the target, dense and compressed interleaved. If anything differs, nothing is written.

    With --int8 both are quantised too (QDQ, a scale per channel), scored, and timed beside the others.
    """
    from lrexport.cli.console import note, print_result
    from lrexport.cli.preflight import check_export
    from lrexport.cli.progress import Progressing
    from lrexport.report.int8_tables import int8_notes, int8_table
    from lrexport.report.tables import results_table

    if not run.is_dir():
        raise UsageError(f"there is no run {run}", "Make one with lrexport compress MODEL -o RUN.")
    check_export(run, options["data"], options["int8"] or not no_rescore, options["int8"])

    from lrexport.workflow import exporting

    chosen = exporting.ExportOptions(batch=batch or None, rescore=not no_rescore, **options)
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

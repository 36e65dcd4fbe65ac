"""``lrexport inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lrexport.artifacts.plain_files import check_input
from lrexport.artifacts.run_files import RECORD
from lrexport.cli.help import INPUTS, OUTPUT, Command, section
from lrexport.cli.input_options import Shapes, input_file_option, input_shapes_option, read_inputs
from lrexport.cli.options import FILE, json_option
from lrexport.errors import UsageError
from lrexport.text import number_of

if TYPE_CHECKING:
    from lrexport.report.graphs import Graph


@dataclass(frozen=True)
class Given:
    """What the user gives for the inputs of an .onnx file: sizes and arrays by name."""

    shapes: Shapes
    values: Mapping[str, Any]


@click.command("inspect", cls=Command, short_help="A run, a plan or an ONNX file layer by layer, or how two differ.")
@click.argument("path", type=FILE, metavar="RUN|FILE")
@click.argument("other", type=FILE, required=False, metavar="[OTHER]")
@section(
    INPUTS,
    input_shapes_option("Shape of an input that an .onnx FILE leaves open: images=1,3,320,320."),
    input_file_option("Arrays for inputs of an .onnx FILE, by input name."),
)
@section(
    OUTPUT,
    click.option("--layers", is_flag=True, help="Also the layers of an .onnx FILE that can be compressed; loads torch."),
    json_option(),
)
def command(
    path: Path, other: Path | None, shapes: Shapes, input_file: Path | None, layers: bool, json_to: str | None
) -> None:
    """Show a RUN, a plan FILE or an .onnx FILE layer by layer; with OTHER, what differs between the two.

    Runs and plans: weight, scheme, rank and full rank, energy kept, MACs, parameters and bytes. ONNX files: the nodes.

    \b
    lrexport inspect run
    lrexport inspect run run-0.4
    lrexport inspect plan.json run
    lrexport inspect run/dense.onnx run/model.onnx
    lrexport inspect detector.onnx --shape images=1,3,640,640 --layers
    lrexport inspect speech.onnx --input sample.npz
    """
    path = _given(path)
    if (shapes or input_file) and not _is_onnx(path):
        option = "--shape" if shapes else "--input"
        raise UsageError(f"{option} requires an .onnx file; {path} is a run or a plan", f"Omit {option}.")
    if layers and (other is not None or not _is_onnx(path)):
        raise UsageError("--layers requires a single .onnx file", "Omit --layers: plans of runs have all their layers.")
    given = Given(shapes, read_inputs(input_file, shapes) if input_file else {})
    if other is not None:
        _compare(path, _given(other), given, json_to)
    elif path.is_dir():
        _inspect_run(path, json_to)
    elif _is_onnx(path):
        _inspect_onnx(path, given, layers, json_to)
    else:
        _inspect_plan(path, json_to)


def _given(path: Path) -> Path:
    """The path if it exists; for a run.json, its run. Raises UsageError."""
    if not path.exists():
        raise UsageError(f"{path} does not exist", "Give a run, a plan file or an .onnx file.")
    return path.parent if path.name == RECORD and path.is_file() else path


def _is_onnx(path: Path) -> bool:
    """Whether a file is ONNX: by its suffix, or else because it does not start like a plan."""
    check_input(path)
    if path.is_dir() or path.suffix in (".json", ".onnx"):
        return path.suffix == ".onnx"
    with open(path, "rb") as stream:
        return not stream.read(64).lstrip().startswith(b"{")


def _inspect_run(run: Path, json_to: str | None) -> None:
    from lrexport.cli.console import note, note_dense, print_result
    from lrexport.report.int8_tables import int8_table
    from lrexport.report.plan_tables import plan_table
    from lrexport.report.tables import results_table
    from lrexport.runs.record import load_record, uncompressed

    record = load_record(run)
    tables = (plan_table(record.plan), results_table(record), int8_table(record))
    print_result(record.model_dump(mode="json"), json_to, *tables)
    if not record.plan:
        why = uncompressed(run)
        note(f"no plan yet: {why.message}. {why.hint}")
    note_dense(record.plan)


def _inspect_plan(path: Path, json_to: str | None) -> None:
    from lrexport.artifacts.plan_file import read_plan
    from lrexport.cli.console import note_dense, print_result
    from lrexport.report.plan_tables import plan_table, plan_to_json

    plan = read_plan(path)
    print_result(plan_to_json(plan), json_to, plan_table(plan.entries, plan.as_written))
    note_dense(plan.entries)


def _inspect_onnx(path: Path, given: Given, layers: bool, json_to: str | None) -> None:
    from lrexport.cli.console import note, print_result
    from lrexport.report.graphs import graph_table, graph_to_json, layer_table

    graph = _read_graph(path, given)
    if not layers:
        print_result(graph_to_json(graph), json_to, graph_table(graph))
        return
    from lrexport.cli.file_layers import layers_of

    sizes = {name: tuple(array.shape) for name, array in given.values.items()} | dict(given.shapes)
    held, remark = layers_of(path, sizes)
    if remark:
        note(f"note: {path}: {remark}")
    value = {**graph_to_json(graph), "layers": [asdict(layer) for layer in held]}
    print_result(value, json_to, graph_table(graph), layer_table(held))


def _read_graph(path: Path, given: Given) -> Graph:
    from lrexport.cli.console import note
    from lrexport.measure.macs.onnx_survey import survey
    from lrexport.report.graphs import Graph, Node

    shapes = given.shapes or ({} if given.values else _shapes_in_run(path))
    surveyed = survey(path, shapes, given.values)
    cost = surveyed.cost
    for operator in cost.uncounted:
        note(f"warning: {path}: MACs of {operator} are not counted")
    for text in surveyed.notes:
        note(f"note: {path}: {text}")
    nodes = [Node(n.name, n.operator, n.weight_shape, n.macs, n.bytes) for n in cost.nodes]
    nodes += [Node(n.name, n.operator, n.weight_shape, None, n.bytes) for n in cost.unknown]
    return Graph(cost.macs, cost.params, surveyed.bytes, cost.uncounted, tuple(nodes), dict(cost.inputs))


def _shapes_in_run(path: Path) -> Shapes:
    """The shapes for which the record beside an exported file counts it; empty if it is not a file of a run."""
    from lrexport.errors import LrexportError
    from lrexport.runs.record import load_record
    from lrexport.runs.sources import exported_shapes

    try:
        record = load_record(path.parent)
        stored = record.files.get(path.name)
        if stored is None or stored.bytes != path.stat().st_size:
            return {}
        return exported_shapes(record.model, record.export)
    except LrexportError:  # the file alone is asked for
        return {}


def _compare(path: Path, other: Path, given: Given, json_to: str | None) -> None:
    if _is_onnx(path) != _is_onnx(other):
        onnx, plan = (path, other) if _is_onnx(path) else (other, path)
        if onnx.suffix != ".onnx":
            _read_graph(onnx, given)  # raises InputError if it is not an ONNX file either
        raise UsageError(
            f"cannot compare {onnx}, an ONNX file, with {plan}, which is not",
            "Give two runs or plan files, or two .onnx files.",
        )
    if _is_onnx(path):
        _compare_graphs(path, other, given, json_to)
    else:
        _compare_plans(path, other, json_to)


def _compare_plans(path: Path, other: Path, json_to: str | None) -> None:
    from lrexport.artifacts.plan_file import read_plan
    from lrexport.cli.console import print_table, write_json
    from lrexport.cli.output import say
    from lrexport.report.diffs import diff_plans, diff_table, diff_to_json

    diff = diff_plans(read_plan(path), read_plan(other))
    if json_to:
        write_json(diff_to_json(diff, str(path), str(other)), json_to)
    if json_to != "-":
        if diff.layers:
            print_table(diff_table(diff, str(path), str(other)))
        else:
            say(f"The plans are identical: {number_of(diff.same, 'layer')}.")


def _compare_graphs(path: Path, other: Path, given: Given, json_to: str | None) -> None:
    from lrexport.cli.console import print_result
    from lrexport.report.graphs import diff_graphs, graph_diff_table, graph_diff_to_json

    diff = diff_graphs(_read_graph(path, given), _read_graph(other, given))
    print_result(graph_diff_to_json(diff, str(path), str(other)), json_to, graph_diff_table(diff, str(path), str(other)))

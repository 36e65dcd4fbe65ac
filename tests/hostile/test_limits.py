"""Files made to cost too much time or memory: docs/faults.md, Weights, Data, ONNX files. Each is ended and named."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import FunctionProto, NodeProto, TensorProto, helper

from lrexport.artifacts import onnx_files
from tests.board import children
from tests.conftest import heed_ctrl_c
from tests.hostile.support import Command, frugally, listing, processes_with
from tests.waiting import until

DOMAIN = "calls"
SIGNALS = [
    pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
    pytest.param(signal.SIGTERM, 143, id="TERM", marks=pytest.mark.slow),
    pytest.param(signal.SIGKILL, -9, id="KILL"),
]


def _save(path: str, nodes: list[NodeProto], functions: tuple[FunctionProto, ...] = ()) -> None:
    """A graph from x to y, both (1, 8)."""
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [given], [result])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10, functions=functions), path)


def _function(name: str, nodes: list[NodeProto]) -> FunctionProto:
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_function(DOMAIN, name, ["a0"], [nodes[-1].output[0]], nodes, imports)


def _calls(operator: str, times: int, domain: str = DOMAIN) -> list[NodeProto]:
    return [helper.make_node(operator, [f"a{place}"], [f"a{place + 1}"], domain=domain) for place in range(times)]


def _laughs(depth: int, times: int) -> list[FunctionProto]:
    """Functions F0, F1, … that call the one before so many times; F0 that many ReLUs."""
    inner = [_function("F0", _calls("Relu", times, domain=""))]
    return [*inner, *(_function(f"F{level}", _calls(f"F{level - 1}", times)) for level in range(1, depth))]


def _doubled_shapes(path: str, times: int = 40) -> None:
    """Shape data that doubles at every Concat: shape inference carries the values along."""
    doubled = [helper.make_node("Concat", [f"s{n}", f"s{n}"], [f"s{n + 1}"], axis=0) for n in range(times)]
    end = [
        helper.make_node("ReduceProd", [f"s{times}"], ["product"], keepdims=0),
        helper.make_node("Cast", ["product"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "number"], ["y"]),
    ]
    _save(path, [helper.make_node("Shape", ["x"], ["s0"]), *doubled, *end])


def _call(function: str) -> list[NodeProto]:
    return [helper.make_node(function, ["x"], ["y"], domain=DOMAIN)]


def _in_branches(depth: int, times: int) -> tuple[FunctionProto, ...]:
    """Functions whose calls stand in the branches of an If."""
    functions = [_function("F0", _calls("Relu", times, domain=""))]
    for level in range(1, depth):
        result = helper.make_tensor_value_info(f"a{times}", TensorProto.FLOAT, [1, 8])
        branch = helper.make_graph(_calls(f"F{level - 1}", times), "branch", [], [result])
        true = helper.make_node("Constant", [], ["true"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
        choice = helper.make_node("If", ["true"], ["chosen"], then_branch=branch, else_branch=branch)
        functions.append(_function(f"F{level}", [true, choice]))
    return tuple(functions)


EXPANDED = {
    "ten functions deep": ("F11", tuple(_laughs(12, 10)), "its functions expand to 1,111,111,111,110 nodes"),
    "a thousand calls three times": ("F2", tuple(_laughs(3, 1000)), "its functions expand to 1,001,001,000 nodes"),
    "calls in branches": ("F6", _in_branches(7, 8), "its functions expand to"),
    "more than can be counted": ("F59", tuple(_laughs(60, 10)), "its functions expand to more than 10^15 nodes"),
    "a function that calls itself": ("R", (_function("R", _calls("R", 1)),), "its function calls.R calls itself"),
    "two that call each other": (
        "A",
        (_function("A", _calls("B", 2)), _function("B", _calls("A", 1))),
        "its function calls.A calls itself",
    ),
}


@pytest.mark.parametrize("what", EXPANDED)
@pytest.mark.parametrize("command", ["inspect", pytest.param("bench", marks=pytest.mark.slow)])
def test_functions_that_stand_for_more_nodes_than_any_exporter_writes_are_refused(
    lrexport: Command, what: str, command: str
) -> None:
    name, functions, message = EXPANDED[what]
    _save("model.onnx", _call(name), functions)
    done = lrexport(command, "model.onnx")
    assert done.code == 3
    assert f"invalid ONNX file model.onnx: {message}" in done.err
    assert done.out == ""


def test_functions_as_exporters_write_them_are_no_trouble(lrexport: Command) -> None:
    _save("model.onnx", _call("F3"), tuple(_laughs(4, 10)))
    assert lrexport("inspect", "model.onnx").code == 0


def _many_nodes(path: Path, count: int = 60_000) -> None:
    """So many ReLUs in a row, which take some seconds to look at."""
    names = ["x", *(f"a{place}" for place in range(count - 1)), "y"]
    _save(str(path), [helper.make_node("Relu", [before], [after]) for before, after in itertools.pairwise(names)])


def test_shape_data_that_doubles_forty_times_is_not_followed(lrexport: Command) -> None:
    _doubled_shapes("model.onnx")
    with frugally(megabytes=100):
        done = lrexport("inspect", "model.onnx")
    assert done.code == 0
    assert "bytes of the file" in done.out


def test_a_file_that_takes_more_memory_than_its_size_explains_ends_at_the_limit(
    lrexport: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "_LEAST_BYTES", 1 << 20)
    monkeypatch.setattr(onnx_files, "_BYTES_A_BYTE", 1)  # nodes take some seventy times their file
    _many_nodes(here / "model.onnx")
    done = lrexport("inspect", "model.onnx")
    assert done.code == 3
    assert "invalid ONNX file model.onnx: needs far more memory than its size explains" in done.err


def test_a_file_that_takes_longer_than_its_size_explains_ends_at_the_limit_on_time(
    lrexport: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "_LEAST_SECONDS", 1)
    monkeypatch.setattr(onnx_files, "_BYTES_A_SECOND", 1 << 40)
    _many_nodes(here / "model.onnx", 200_000)
    done = lrexport("inspect", "model.onnx")
    assert done.code == 3
    assert "cannot read model.onnx: checking it takes more than 1 s" in done.err


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from lrexport.cli.main import main; main()", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("command", ["check", pytest.param("inspect", marks=pytest.mark.slow)])
def test_a_file_that_takes_long_to_look_at_ends_with_the_command_and_leaves_no_process(
    here: Path, command: str, number: signal.Signals, code: int
) -> None:
    path = here / "many.onnx"
    _many_nodes(path)
    (here / "lrexport.toml").write_text('[budget]\nmax_bytes = "1 GB"\n')
    before = listing(here)
    process = _start(command, str(path))
    assert until(lambda: any(children(each) for each in children(process.pid)))
    (server,) = children(process.pid)
    looking = children(server)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert until(lambda: not any(Path(f"/proc/{each}").exists() for each in (server, *looking)), 5)
    assert listing(here) == before


def endless(path: str) -> None:
    """A Loop whose condition stays true and that has no trip count."""
    bool_, float_ = TensorProto.BOOL, TensorProto.FLOAT
    given = [
        helper.make_tensor_value_info(name, kind, sizes)
        for name, kind, sizes in (("i", TensorProto.INT64, []), ("c", bool_, []), ("v", float_, [1, 8]))
    ]
    results = [
        helper.make_tensor_value_info(name, kind, sizes) for name, kind, sizes in (("c2", bool_, []), ("v2", float_, [1, 8]))
    ]
    body = [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Add", ["v", "v"], ["v2"])]
    true = helper.make_node("Constant", [], ["true"], value=helper.make_tensor("t", bool_, [], [True]))
    _save(
        path,
        [true, helper.make_node("Loop", ["", "true", "x"], ["y"], body=helper.make_graph(body, "body", given, results))],
    )


def asking_for(path: str, numbers: int) -> None:
    """A graph of some hundred bytes with a tensor of so many floats in it."""
    size = helper.make_tensor("s", TensorProto.INT64, [1], [numbers])
    _save(
        path,
        [
            helper.make_node("Constant", [], ["size"], value=size),
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
    )


def test_a_file_whose_inference_never_ends_is_given_up_and_named(lrexport: Command) -> None:
    endless("model.onnx")
    done = lrexport("bench", "model.onnx", "--rounds", "10", "--timeout", "1")
    assert done.code == 3
    assert "local cannot measure model.onnx: the first run takes more than 1 s" in done.err
    assert "raise --timeout SECONDS" in done.err
    assert done.out == ""


def test_a_file_that_asks_for_more_memory_than_it_may_have_is_refused_and_named(lrexport: Command) -> None:
    asking_for("model.onnx", 10**9)
    done = lrexport("bench", "model.onnx", "--rounds", "10", "--memory", "500MB")
    assert done.code == 3
    assert "local cannot measure model.onnx: it needs more than its memory limit of 0.5 GB" in done.err
    assert "--memory SIZE" in done.err
    assert done.out == ""


def test_inputs_that_ask_for_more_memory_than_there_may_be_are_refused(lrexport: Command) -> None:
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", [given], [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), "model.onnx")
    done = lrexport("bench", "model.onnx", "--rounds", "10", "--batch", "1000000000", "--memory", "500MB")
    assert done.code == 3
    assert "it needs more than its memory limit of 0.5 GB" in done.err


def _parent(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_measurement_that_never_ends_stops_with_the_command_and_leaves_no_process(
    here: Path, number: signal.Signals, code: int
) -> None:
    path = here / "endless.onnx"
    endless(str(path))
    process = _start("bench", str(path), "--timeout", "1000")
    assert until(lambda: any(b"--cold" in _command(each) for each in processes_with(str(path))))
    (child,) = [each for each in processes_with(str(path)) if b"--cold" in _command(each)]
    runner = _parent(child)
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert until(lambda: not Path(f"/proc/{child}").exists() and not Path(f"/proc/{runner}").exists(), 5)


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""

"""Names in files of others, in arguments, variables and exceptions: harmless on every stream of every command."""

from __future__ import annotations

import importlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import click
import onnx
import pytest
from onnx import TensorProto, helper

from lrexport.artifacts.toml_files import parse
from lrexport.cli.console import print_table
from lrexport.cli.main import COMMANDS, run
from lrexport.cli.progress import Progressing
from lrexport.cli.sweep_progress import SweepProgress
from lrexport.events import LayersTimed, Measuring, Warned
from lrexport.report.sweep_tables import front_table
from lrexport.runs.sweep_record import Figures, Sweep, Trial
from lrexport.sweep.events import TrialsSaved
from tests.forked import Forked
from tests.hostile.support import Command, write_module
from tests.report.runs import write_run

# A title for the terminal, a direction, colours in one byte, commands of GitHub, Azure and TeamCity, markup of rich's.
NAME = (
    "n\x1b]0;t\x07\u202e\x9b31m\n::error::x ##[set-output name=c;]d\r##vso[task.complete]##teamcity[x]\u2028"
    "[red][link=file:///e]l[/link]\U000e0001\udcff"
)
IN_TEXT = NAME.replace("\udcff", "")  # what protobuf and TOML take
IN_PATH = NAME.replace("/", "_")


def harmless(text: str, own_commands: bool = False) -> bool:
    """No character that does more than show itself, and no line that a log of CI takes for a command."""
    assert re.search("[^\n]", text)
    hidden = [char for char in text if not char.isprintable() and char != "\n"]
    lines = [line.strip() for line in text.split("\n")]
    commands = [line for line in lines if line.startswith("::") or re.search(r"##\w*\[", line)]
    if own_commands:
        commands = [line for line in commands if not re.fullmatch(r"::(error|warning) [^:]*::(?!.*##).*", line)]
    assert (hidden, commands) == ([], [])
    return True


@pytest.fixture
def model(here: Path) -> Path:
    """An .onnx file in which everything that can have a name has that one."""
    w = helper.make_tensor(IN_TEXT, TensorProto.FLOAT, [8, 8], [0.5] * 64)
    nodes = [
        helper.make_node("MatMul", ["x", IN_TEXT], ["h"], name=IN_TEXT),
        helper.make_node(IN_TEXT, ["h"], ["y"], name=f"{IN_TEXT}2", domain=f"{IN_TEXT}.d"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, IN_TEXT, ends[:1], ends[1:], [w])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(f"{IN_TEXT}.d", 1)]
    path = Path(f"{IN_PATH}.onnx")
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def test_an_onnx_file_is_inspected_and_compared(lrexport: Command, model: Path) -> None:
    for arguments in ((model,), (model, model)):
        done = lrexport("inspect", *arguments)
        assert done.code == 0
        assert harmless(done.out + done.err)
        assert "[red][link=file:" in done.out
        found = lrexport("inspect", *arguments, "--json", "-")
        assert harmless(found.out)
        assert json.loads(found.out)
    (node, *_) = json.loads(lrexport("inspect", model, "--json", "-").out)["nodes"]
    assert node["name"] == IN_TEXT


def test_an_onnx_file_is_refused_by_bench(lrexport: Command, model: Path) -> None:
    done = lrexport("bench", model, "--rounds", "10")
    assert done.code == 3
    assert harmless(done.out + done.err)


def test_every_output_of_a_check(lrexport: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    budget = {"path": f"*{model.suffix}", "max_bytes": "1 B", "max_latency_ms": "1 ms", "allowed_operators": [IN_TEXT]}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in budget.items() if key != "max_latency_ms")
    key = json.dumps(IN_TEXT.replace("\U000e0001", ""))
    Path("lrexport.toml").write_text(f"[budget.{key}]\n{lines}\n".replace("\\udb40\\udc01", ""))
    done = lrexport("check", "--markdown", "c.md", "--junit", "c.xml", "--history", "c.json", "--json", "all.json")
    assert done.code in (1, 2)
    assert harmless(done.out)
    assert harmless(done.err, own_commands=True)
    for name in ("c.md", "c.xml", "c.json", "all.json", "summary.md"):
        assert harmless(Path(name).read_text())
    ElementTree.parse("c.xml")
    assert IN_PATH.removesuffix("\udcff") in json.loads(Path("all.json").read_text())["models"][0]["model"]
    for output in ("--markdown", "--junit", "--history", "--json"):
        assert harmless(lrexport("check", output, "-").out)


def test_a_plan_and_its_differences(lrexport: Command, here: Path) -> None:
    entry = {"scheme": "spatial", "rank": 2}
    for number, path in enumerate((Path(f"{IN_PATH}.json"), Path("other.json"))):
        path.write_text(json.dumps({NAME: {**entry, "rank": 2 + number}, f"{NAME}2": "dense"}))
    for arguments in ((f"{IN_PATH}.json",), (f"{IN_PATH}.json", "other.json")):
        done = lrexport("inspect", *arguments)
        assert done.code == 0
        assert harmless(done.out)
        found = lrexport("inspect", *arguments, "--json", "-")
        assert harmless(found.out)
        assert json.loads(found.out)
    Path("plan.json").write_text(json.dumps({NAME: {"scheme": NAME, "rank": NAME}}))
    done = lrexport("inspect", "plan.json")
    assert done.code == 3
    assert harmless(done.err)


def _runs() -> Iterator[Path]:
    for number in range(2):
        folder = Path(IN_PATH if number == 0 else "run1")
        machine = {"cpu": NAME, "cores": 4, "isa": [NAME], "system": NAME, "onnxruntime": NAME, IN_TEXT: {IN_TEXT: NAME}}
        record = write_run(folder, (IN_TEXT, f"{IN_TEXT}2"), model=NAME, data=NAME, goal={"plan": NAME}, environment=machine)
        record.notes = [NAME]
        record.digests[IN_TEXT] = NAME
        record.save(folder)
        yield folder


def test_runs_are_inspected_and_reported_in_every_format(lrexport: Command, here: Path) -> None:
    runs = [*_runs()]
    for arguments in (("inspect", runs[0]), ("inspect", *runs), ("report", *runs, "--format", "markdown")):
        done = lrexport(*arguments)
        assert done.code == 0
        assert harmless(done.out + done.err)
    for arguments in (("inspect", runs[0], "--json", "-"), ("report", *runs, "--format", "json", "-o", "-")):
        found = lrexport(*arguments)
        assert harmless(found.out)
        record = json.loads(found.out)
        assert record["model"]["source"] == NAME if "model" in record else IN_TEXT in record["runs"][0]["layers"]
    assert lrexport("report", *runs, "-o", "page.html").code == 0
    page = Path("page.html").read_text()
    assert harmless(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    (figures,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page)
    assert harmless(figures)
    assert harmless((runs[0] / "run.json").read_text())


def test_what_a_run_cannot_do_is_said(lrexport: Command, here: Path) -> None:
    run_folder, _ = _runs()
    for arguments in (
        ("compress", run_folder, "--macs", "0.5", "--dry-run"),
        ("compress", run_folder, "--macs", "0.5", "-o", "out"),
        ("onnx", run_folder, "--rounds", "0"),
        ("onnx", run_folder, "--rounds", "0", "--trust-code"),
        ("bench", run_folder),
        ("sweep", run_folder, "-o", "sweep", "--vary", f"macs={NAME}"),
        ("train", run_folder, "-o", "out"),
        ("check", run_folder),
    ):
        done = lrexport(*arguments)
        assert done.code in (2, 3), arguments
        assert harmless(done.err)
        assert "lrexport: unexpected" not in done.err


def test_a_sweep(capfd: pytest.CaptureFixture[str], here: Path, lrexport: Command) -> None:
    figures = Figures(heldout_score=0.9, test_score=0.9, macs=10, params=10, target=NAME, latency_warning=NAME)
    trials = [Trial(number=0, state="finished", parameters={IN_TEXT: NAME}, figures=figures, run="trials/0000")]
    trials.append(Trial(number=1, state="failed", reason=NAME, host=NAME))
    trials.append(Trial(number=2, state="failed", reason=""))
    sweep = Sweep(study=NAME, objective="macs", made_with={IN_TEXT: NAME}, wanted=2, dense=figures, trials=trials, front=[0])
    print_table(front_table(sweep))
    assert harmless(capfd.readouterr().out)
    SweepProgress(Progressing())(TrialsSaved(sweep))
    told = capfd.readouterr().err
    assert harmless(told)
    assert "trial 2: failed: no reason was noted (3 of 2 done)" in told
    Path("sweep").mkdir()
    sweep.save(Path("sweep"))
    assert harmless(Path("sweep/sweep.json").read_text())
    done = lrexport("report", "sweep")
    assert done.code in (2, 3)
    assert harmless(done.err)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_of_every_command_is_echoed_harmlessly(
    lrexport: Command, here: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prefix in ("COMPRES", name.upper()):
        monkeypatch.setenv(f"LREXPORT_{prefix}_{IN_TEXT.replace('=', '')}", NAME)
    command = importlib.import_module(COMMANDS[name][0]).command
    for arguments in ([NAME], [f"--{NAME}"], [f"--{NAME}={NAME}"], [NAME, NAME, NAME, f"-{NAME}"]):
        done = lrexport(name, *arguments)
        assert done.code == 2
        assert harmless(done.err)
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_flag:
            value = "none" if option.name == "output" else NAME  # any folder may be made
            done = lrexport(name, "unknown.onnx", option.opts[-1], value)
            assert done.code == 2, option.name
            assert harmless(done.err)
            assert "lrexport: unexpected" not in done.err


def test_configuration_files_and_help(lrexport: Command, here: Path) -> None:
    key = json.dumps(NAME.encode("ascii", "ignore").decode())
    for text in (f"{key} = 1", f"[{key}]\na = 1", f"macs = {key}", f"data = {key}\n[compress]\n{key} = {key}"):
        Path("lrexport.toml").write_text(text)
        done = lrexport("compress", "tiny:make", "--dry-run")
        assert done.code == 2
        assert harmless(done.err)
    Path("lrexport.toml").unlink()
    recipe = Path("recipe.toml")
    recipe.write_text(f"macs = 0.5\nkeep = [{key}]\n")
    done = lrexport("compress", "tiny:make", "--recipe", recipe, "--keep", IN_TEXT, "--teacher", IN_TEXT, "--print-config")
    assert done.code == 0
    assert harmless(done.out)
    assert parse(done.out)["keep"] == [IN_TEXT]


def test_what_code_of_the_user_raises(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_module("users", f"def make():\n    raise ValueError({NAME!r})\n")
    for arguments in (["compress"], ["--debug", "compress"]):
        code = run([*arguments, "users:make", "--macs", "0.5", "-o", "out", "--input-shape", "3,8,8"])
        err = capfd.readouterr().err
        assert code == 2
        assert harmless(err)
        assert ("Traceback" in err) == ("--debug" in arguments)


def test_what_code_of_the_user_warns_of(here: Path) -> None:
    write_module(
        "users",
        f"import logging, warnings\nwarnings.warn({IN_TEXT!r})\nlogging.getLogger('x').warning({IN_TEXT!r})\nmake = None\n",
    )
    done = Forked(here, "compress", "users:make", "--macs", "0.5", "-o", "out", separately=True)
    assert done.wait() == 2
    assert "UserWarning: n" in done.errors
    assert "\nn\\x1b" in done.errors
    assert harmless(done.errors)


def test_a_folder_of_images(lrexport: Command, here: Path) -> None:
    for part in ("train", "val"):
        folder = Path(IN_PATH) / part / IN_PATH
        folder.mkdir(parents=True)
        (folder / f"{IN_PATH}.png").write_bytes(b"no picture")
    done = lrexport("compress", "tiny:make", "--data", f"folder:{IN_PATH}", "--macs", "0.5", "-o", "out", "--max-bad", "1")
    assert done.code in (2, 3)
    assert harmless(done.err)


def test_the_next_command_is_one_that_a_shell_takes(lrexport: Command, here: Path) -> None:
    for folder in (f"-{IN_PATH}", "a b$(touch owned)'\"`x`"):
        done = lrexport("compress", "tiny:make", "--macs", "0.6", f"--output={folder}", "--device", "cpu")
        assert done.code == 0
        assert harmless(done.err)
        (following,) = re.findall("next: lrexport (.*)", done.err)
        shell = ["bash", "-c", f"printf '%s\\n' {following}"]
        printed = subprocess.run(shell, capture_output=True, check=True).stdout
        name, path = printed.split(b"\n", 1)
        assert name == b"onnx"
        assert Path(path.decode(errors="surrogateescape")[:-1]) == Path(folder)
        assert harmless((Path(folder) / "run.json").read_text())
        assert harmless((Path(folder) / "log.jsonl").read_text())
        done = lrexport("compress", f"./{folder}", "--macs", "0.5", "--keep", "0", "-o", "x", "--dry-run")
        assert harmless(done.err + done.out)
    assert not Path("owned").exists()


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_sequence_but_those_of_the_drawing(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, terminal)
    (folder, _) = _runs()
    assert run(["inspect", str(folder)]) == 0
    with Progressing() as progress:
        progress(LayersTimed(1, 2, NAME))
        progress(Measuring(NAME))
        progress(Warned(NAME))
    monkeypatch.undo()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", terminal.getvalue())
    assert harmless(text)
    assert "[red]" in text

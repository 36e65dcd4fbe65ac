"""Help, versions and errors of the command line itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lrexport
from lrexport.cli.main import COMMANDS, cli, run


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["compress", "--help"], ["onnx", "--help"], ["check", "--help"]]
)
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    heavy = "{'torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic', 'rich'}"
    code = f"import sys; from lrexport.cli.main import run; run({arguments}); "
    code += f"print({heavy} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    assert done.stdout


def test_every_command_is_listed_with_the_help_line_it_has_itself(capsys: pytest.CaptureFixture) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for name, (_, line) in COMMANDS.items():
        assert name in out
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.short_help == line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compres"], "No such command 'compres'. Did you mean compress?"),
        (["compress", "resnet20", "--macs", "0.5", "-o", "x", "--json", "no/such.json"], "the folder no does not exist"),
        (["compress"], "Missing argument"),
        (["compress", "resnet20", "--mac", "0.5"], "--macs"),
        (
            ["compress", "resnet20", "--macs", "half", "-o", "x"],
            "invalid share 'half': expected a number in (0, 1] or a percentage",
        ),
        (
            ["compress", "resnet20", "-o", "x"],
            "one of --macs 0.5, --params 0.5, --size 500KB, --latency 0.6, --accuracy-drop 1, --energy 1e-2 and --plan FILE",
        ),
        (["compress", "resnet20", "--macs", "0.5", "--energy", "0.1", "-o", "x"], "one goal"),
        (["compress", "resnet20", "--plan", "p.json", "--macs", "0.5", "-o", "x"], "one goal"),
        (["compress", "resnet20", "--macs", "0.5"], "-o RUN"),
        (["train", "resnet20", "-o", "x"], "--data"),
        (["onnx", "nowhere"], "the run nowhere does not exist"),
        (["onnx", "nowhere", "--rounds", "9"], "at least 10 rounds, or 0"),
        (["compress", "resnet20", "--input-shape", "3,0,32", "--macs", "0.5", "-o", "x"], "one to four numbers"),
        (["compress", "resnet20", "--input-shape", "1,2,3,4,5", "--macs", "0.5", "-o", "x"], "one to four numbers"),
    ],
)
def test_a_mistake_is_exit_code_2_and_says_what_to_write(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert not captured.out
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = lrexport.nothing


def test_debug_adds_a_traceback_and_leaves_exit_code_and_message(capsys: pytest.CaptureFixture) -> None:
    arguments = ["compress", "resnet20", "--macs", "0.5"]
    assert run(["--debug", *arguments]) == run(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("Traceback (most recent call last)") == 1
    assert err.count("lrexport: -o RUN is required") == 2


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debug_may_be_asked_for_in_the_environment(
    value: str, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("LREXPORT_DEBUG", value)
    assert run(["compress", "nothing", "--macs", "0.5", "-o", "run"]) == 2
    assert ("Traceback" in capsys.readouterr().err) is shown


def test_debug_leaves_the_exit_code_of_what_nobody_foresaw(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(cli, "main", fail)
    assert run(["--debug", "compress"]) == 4
    assert "Traceback" in capsys.readouterr().err

"""The one way out: harmless text in every encoding, and streams that are full, closed or no longer read."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrexport.cli import output
from lrexport.cli.help import Command
from lrexport.cli.main import COMMANDS
from lrexport.errors import DeviceError

HOSTILE = "a\x1b]0;t\x07\u202e\x9b31m\n::error::x ##[set-output name=c;]d\r##vso[task]\u2028[red]"


def started(*arguments: str, shell: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with a shell's redirections."""
    code = "from lrexport.cli.main import main; main()"
    line = f'"$0" -c "{code}" "$@" {shell}'
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONPATH": str(Path(output.__file__).parents[2]), **variables}
    command = ["bash", "-c", line, sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_a_line_stays_one_line_and_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(f"::{HOSTILE}")
    output.note(f"  ::{HOSTILE}")
    for text in capsys.readouterr():
        assert text.endswith("\n")
        assert text[:-1].isprintable()
        assert not text.strip().startswith("::")
        assert "##[" not in text
        assert "##vso[" not in text


def test_the_rest_of_an_error_is_indented_and_forges_no_error_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    output.problem("no file 'a\nlrexport: all is well\x1b[2J'", "Do this.\nThen that.")
    assert capsys.readouterr().err.splitlines() == [
        "lrexport: no file 'a",
        r"  lrexport: all is well\x1b[2J'",
        "  Do this.",
        "  Then that.",
    ]


def test_json_on_stdout_is_of_the_same_strings(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    value = {HOSTILE: [HOSTILE, "\udcff", "\U000e0001", "×"]}
    output.print_json(value)
    text = capsys.readouterr().out
    assert json.loads(text) == value
    assert text.replace("\n", "").isprintable()
    assert "##[" not in text
    assert "×" in text


def test_a_stream_in_ascii_gets_what_reads_like_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    output.say("12.3M → 4.5M, 0.37×, λ_s … ü")
    output.document("a × b")
    output.print_json("ü λ")
    plain, markup, value = stream.buffer.getvalue().decode("ascii").splitlines()  # type: ignore[attr-defined]
    assert plain == r"12.3M -> 4.5M, 0.37x, lambda_s ... \xfc"
    assert markup == "a &#215; b"
    assert json.loads(value) == "ü λ"


class Broken(io.StringIO):
    """A stream that fails when it is written to."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_what_nobody_reads_any_more_is_dropped_and_what_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError()))
    output.say("text")
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    with pytest.raises(DeviceError, match="cannot write to standard output: No space left on device"):
        output.say("text")
    monkeypatch.setattr(sys, "stderr", Broken(OSError(28, "No space left on device")))
    output.note("text")


def test_every_command_shows_its_help_through_the_one_way_out() -> None:
    for module, _ in COMMANDS.values():
        assert isinstance(importlib.import_module(module).command, Command)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_stdout_is_an_error_of_the_environment() -> None:
    for arguments in (("--help",), ("--version",), ("check", "--help")):
        done = started(*arguments, shell=">/dev/full")
        assert done.returncode == 4
        assert done.stderr.startswith("lrexport: cannot write to standard output: No space left on device\n")
    assert started("--version", shell="2>/dev/full").returncode == 0
    assert started("inspect", "nothing", shell="2>/dev/full").returncode == 2


def test_a_closed_stdout_is_refused_before_any_work_and_a_closed_stderr_changes_nothing(tmp_path: Path) -> None:
    done = started("inspect", "nothing", shell=">&-")
    assert (done.returncode, done.stderr.splitlines()[0]) == (4, "lrexport: standard output is closed")
    assert started("--version", shell="2>&-").returncode == 0
    assert started("inspect", "nothing", shell="2>&-").returncode == 2
    assert started("--version", shell="<&- 2>&-").stdout.startswith("lrexport, version ")


def test_a_reader_that_goes_away_takes_no_exit_code_along() -> None:
    done = started("check", "none*.onnx", shell="2>&1 | true; exit ${PIPESTATUS[0]}")
    assert done.returncode == 2
    assert started("--help", shell="| head -c 1; exit ${PIPESTATUS[0]}").returncode == 0


def test_help_is_shown_in_any_encoding() -> None:
    for variables in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = started("compress", "--help-all", **variables)
        assert (done.returncode, done.stderr) == (0, "")
        assert "lambda_o" in done.stdout
        assert done.stdout.isascii()

"""Help in sections: the common options first, all of them on request, right at every width and harmless in a pipe."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import click
import pytest

from lrexport.cli.help import SECTIONS, place_of
from lrexport.cli.main import COMMANDS, cli, run

LONG = ("compress", "train", "sweep")  # the commands that keep options for --help-all


def command_named(name: str) -> click.Command:
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    return command


def shown(name: str, option: str, capsys: pytest.CaptureFixture) -> str:
    assert run([name, option]) == 0
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_stands_in_one_section(name: str) -> None:
    for option in command_named(name).params:
        assert isinstance(option, click.Argument) or place_of(option) is not None, option.name


@pytest.mark.parametrize("name", LONG)
def test_the_short_help_leaves_rare_options_to_help_all_and_names_it(name: str, capsys: pytest.CaptureFixture) -> None:
    short, everything = shown(name, "--help", capsys), shown(name, "--help-all", capsys)
    options = [option for option in command_named(name).params if isinstance(option, click.Option)]
    rare = [option for option in options if (place := place_of(option)) is not None and place.is_rare]
    for option in options:
        listed = f"  {option.opts[-1]}" if option not in rare else f"\n  {option.opts[-1]} "
        assert (listed in short) is (option not in rare) or option.opts[0] == "-o", option.name
        assert option.opts[-1] in everything
    assert f"{len(rare) + 2} more options: lrexport {name} --help-all" in short or "more options: " in short
    assert "more options" not in everything


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - set(LONG)))
def test_a_short_help_is_whole(name: str, capsys: pytest.CaptureFixture) -> None:
    assert "more options" not in shown(name, "--help", capsys)
    assert run([name, "--help-all"]) == 2


def test_the_help_of_compress_fits_one_tall_terminal(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert shown("compress", "--help", capsys).count("\n") <= 64


def test_sections_follow_each_other_in_one_order(capsys: pytest.CaptureFixture) -> None:
    for name in COMMANDS:
        lines = shown(name, "--help", capsys).splitlines()
        titles = [line[:-1] for line in lines if line.endswith(":") and line[:-1] in SECTIONS]
        assert titles
        assert titles == [title for title in SECTIONS if title in titles]


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_is_wider_than_the_terminal(
    name: str, columns: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = shown(name, "--help", capsys).splitlines()
    assert max(map(len, lines)) <= min(columns, 100)
    starts = [line for line in lines if line.startswith("    ") and "--" in line and "default" not in line]
    assert columns > 60 or all(len(line) - len(line.lstrip()) in (4, 6) for line in starts)


def test_an_example_that_is_broken_is_still_one_command(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = shown("compress", "--help", capsys)
    whole = " ".join(text.replace(" \\\n", " ").split())
    assert "lrexport compress resnet20 --weights w.pt --data cifar10 --macs 0.5 -o run" in whole


def on_terminal(**environment: str) -> str:
    """The help as a terminal gets it."""
    reader, writer = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    command = [sys.executable, "-m", "lrexport", "report", "--help"]
    process = subprocess.Popen(command, stdout=writer, stdin=writer, env={**variables, "TERM": "xterm", **environment})
    os.close(writer)
    parts = []
    try:
        while part := os.read(reader, 4096):
            parts.append(part)
    except OSError:  # Linux's answer once nobody writes any more
        pass
    assert process.wait(60) == 0
    os.close(reader)
    return b"".join(parts).decode()


def test_colours_are_for_terminals_whose_users_want_them() -> None:
    coloured = on_terminal()
    assert "\x1b[1mOutput:" in coloured
    assert "\x1b[36m-o, --output" in coloured
    assert "\x1b" not in on_terminal(NO_COLOR="1")
    assert "\x1b" not in on_terminal(TERM="dumb")
    piped = subprocess.run([sys.executable, "-m", "lrexport", "report", "--help"], capture_output=True, check=True)
    assert b"\x1b" not in piped.stdout


def test_a_default_of_a_configuration_file_cannot_command_the_terminal(
    tmp_path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lrexport.toml").write_text('[report]\noutput = "page\\u001b[31m.html"\n[demo]\nseed = 1\n')
    run(["report", "--help"])
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err

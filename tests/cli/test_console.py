"""Tables on terminals of every width, drawn for real behind a pseudo-terminal."""

from __future__ import annotations

import io
import re
import sys

import pytest

from lrexport.cli.console import print_table
from lrexport.report.tables import Table

TABLE = Table(
    ("layer", "scheme", "MACs", "why dense"),
    (
        ("features.denseblock1.denselayer12.conv1", "spatial", "12.34M → 5.67M", ""),
        ("head", "dense", "640", "its pair would cost more than the layer"),
    ),
    "A caption.",
    words=("scheme", "why dense"),
    spare=("why dense",),
)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def drawn(width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    print_table(TABLE)
    monkeypatch.undo()
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()


def test_a_wide_terminal_shows_every_column_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(120, monkeypatch)
    (line,) = [line for line in text if "features" in line]
    assert line.split() == ["features.denseblock1.denselayer12.conv1", "spatial", "12.34M", "→", "5.67M"]
    (line,) = [line for line in text if "head" in line]
    assert line.startswith(" head  ")
    assert re.search(r"dense +640   its pair would cost more than the layer *$", line)
    assert not any("omitted" in line for line in text)


def test_a_narrow_terminal_goes_without_spare_columns_says_which_and_folds_only_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = drawn(60, monkeypatch)
    assert max(map(len, text)) <= 60
    assert not any("its pair" in line for line in text)
    assert "Columns omitted for lack of width: why dense." in text
    first, last = (next(i for i, line in enumerate(text) if word in line) for word in ("spatial", "head"))
    assert text[first].split()[1:] == ["spatial", "12.34M", "→", "5.67M"]
    assert "".join(line.split()[0] for line in text[first:last]) == "features.denseblock1.denselayer12.conv1"


def test_the_narrowest_terminal_still_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(30, monkeypatch)
    assert max(map(len, text)) <= 45  # "Columns omitted …" may be broken by the terminal itself, never by us
    letters = "".join("".join(text).split())
    assert "12.34M" in letters
    assert "…" not in letters


def test_a_pipe_gets_aligned_plain_lines_with_words_on_the_left(capsys: pytest.CaptureFixture) -> None:
    print_table(TABLE)
    assert capsys.readouterr().out.splitlines() == [
        "layer                                    scheme             MACs  why dense",
        "features.denseblock1.denselayer12.conv1  spatial  12.34M → 5.67M",
        "head                                     dense               640  its pair would cost more than the layer",
        "A caption.",
    ]

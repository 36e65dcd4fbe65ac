"""Reports on runs that are not there, unfinished or damaged, and reports that cannot be written."""

from __future__ import annotations

import builtins
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from lrexport.artifacts.run_files import LOG, RECORD, SPECTRA
from lrexport.runs.record import load_record
from tests.hostile.support import Command, listing
from tests.report.runs import HOSTILE, write_run


@pytest.fixture
def run(here: Path) -> Path:
    """A finished run as the relative folder ``run``."""
    write_run(Path("run"))
    return Path("run")


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing argument 'RUN|SWEEP...'"),
        (["nowhere"], 2, "the run nowhere does not exist"),
        (["run/run.json"], 2, "run/run.json is a file; expected a run"),
        (["."], 3, "invalid run .: it has no run.json"),
        (["run", "nowhere"], 2, "the run nowhere does not exist"),
        (["run", "-o", "report.pdf"], 2, "unknown suffix of -o 'report.pdf': expected .html"),
        (["run", "-o", "report"], 2, "unknown suffix of -o 'report': expected .html"),
        (["run", "-o", "-"], 2, "-o - requires --format"),
        (["run", "--format", "pdf"], 2, "'pdf' is not one of"),
        (["run", "--no-front-matter"], 2, "--no-front-matter requires Markdown"),
        (["run", "-o", "no/such/folder.html"], 2, "the folder no/such does not exist"),
        (["run", "-o", "run", "--format", "html"], 3, "run is a folder; expected a plain file"),
    ],
)
def test_what_cannot_be_reported_says_why_and_leaves_nothing(
    lrexport: Command, arguments: list[str], code: int, message: str
) -> None:
    before = listing(Path())
    done = lrexport("report", *arguments)
    assert done.code == code
    assert message in done.err
    assert listing(Path()) == before


def test_an_unfinished_run_says_what_goes_on_from_it(lrexport: Command, run: Path) -> None:
    record = load_record(run)
    record.results = type(record.results)()
    record.save(run)
    done = lrexport("report", run)
    assert done.code == 3
    assert "run has no compressed network yet" in done.err
    assert "lrexport compress run --macs 0.5" in done.err


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (RECORD, b"", "empty file: run/run.json"),
        (RECORD, b"{", "run/run.json:1: not JSON"),
        (RECORD, b'{"schema_version": 99}', "schema version 99"),
        (RECORD, b'{"schema_version": 1, "model": 3}', "invalid record"),
        (SPECTRA, b"", "empty file: run/spectra.json"),
        (SPECTRA, b"{}", "run/spectra.json is truncated"),
    ],
)
def test_a_damaged_file_is_named(lrexport: Command, run: Path, name: str, damage: bytes, message: str) -> None:
    (run / name).write_bytes(damage)
    done = lrexport("report", run)
    assert done.code == 3
    assert message in done.err
    assert not Path("report.html").exists()


def test_a_flipped_byte_in_the_singular_values_is_found(lrexport: Command, run: Path) -> None:
    content = bytearray((run / SPECTRA).read_bytes())
    content[100] ^= 1
    (run / SPECTRA).write_bytes(content)
    done = lrexport("report", run)
    assert done.code == 3
    assert "run/spectra.json was damaged or changed" in done.err


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b'{"layers": 3}',
        b'{"layers": {"a": {"scheme": "odd", "dense": [], "trained": null}}}',
        b'{"layers": {"a": {"scheme": "spatial", "dense": ["NaN"], "trained": null}}}',
    ],
)
def test_singular_values_that_are_none_are_refused_also_with_the_right_hash(
    lrexport: Command, run: Path, content: bytes
) -> None:
    (run / SPECTRA).write_bytes(content)
    record = load_record(run)
    record = record.sealed(run, SPECTRA)
    record.save(run)
    done = lrexport("report", run)
    assert done.code == 3
    assert "run/spectra.json does not contain singular values" in done.err


def test_a_log_of_rubbish_costs_the_curves_and_nothing_else(lrexport: Command, run: Path) -> None:
    (run / LOG).write_bytes(b"\x00\xff rubbish\n" * 3 + b'{"event": "epoch", "stage": "svd", "epoch": 1e99}\n')
    done = lrexport("report", run, "--format", "json")
    assert done.code == 0
    assert json.loads(done.out)["runs"][0]["training"] == {}
    done = lrexport("report", run)
    assert done.code == 0
    assert "4 lines of log.jsonl cannot be read" in Path("report.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_finished_leaves_the_one_before(
    lrexport: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lrexport("report", run).code == 0
    before = Path("report.html").read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lrexport.artifacts.files.os.fsync", full)
    done = lrexport("report", run)
    assert done.code == 4
    assert "disk full" in done.err
    assert Path("report.html").read_bytes() == before
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


def test_without_the_extra_the_command_that_installs_it_is_said(
    lrexport: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("plotly"):
            raise ImportError("No module named 'plotly'")
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setitem(sys.modules, "plotly", None)
    done = lrexport("report", run)
    assert done.code == 4
    assert "needs plotly, which is not installed" in done.err
    assert "pip install 'lrexport[report]'" in done.err
    assert not Path("report.html").exists()
    assert lrexport("report", run, "-o", "card.md").code == 0


@pytest.mark.parametrize("name", ["a b", "it's $(touch owned)", "new\nline", "-r", "\u202ereversed"])
def test_folders_with_odd_names_are_reported_and_repeated(lrexport: Command, run: Path, name: str) -> None:
    shutil.copytree(run, name)
    done = lrexport("report", "--format", "json", "-o", "out.json", "--", name)
    assert done.code == 0
    (found,) = json.loads(Path("out.json").read_text(encoding="utf-8"))["runs"]
    assert found["run"] == name
    assert found["commands"][0][-1] == (f"./{name}-again" if name.startswith("-") else f"{name}-again")
    for ending in ("html", "md"):
        assert lrexport("report", "-o", f"{name}.{ending}" if name != "-r" else f"./-r.{ending}", "--", name).code == 0
    assert not Path("owned").exists()


@pytest.mark.usefixtures("here")
def test_markdown_of_hostile_names_goes_to_stdout_in_one_piece(lrexport: Command) -> None:
    write_run(Path("run"), HOSTILE, model=HOSTILE[1])
    done = lrexport("report", "run", "--format", "markdown", "--no-front-matter")
    assert done.code == 0
    assert "<img" not in done.out.replace("```", "").split("### Repeat this run")[0].split("## Repeat this run")[0]
    assert done.out.splitlines()[0].startswith("# &#60;img src=x")


def test_a_real_run_is_reported_and_its_command_is_the_one_that_made_it(lrexport: Command, finished: Path) -> None:
    done = lrexport("report", finished, "--format", "json")
    (found,) = json.loads(done.out)["runs"]
    made = f"lrexport compress tiny:make --device cpu --no-export-check --macs 0.6 -o {finished}-again"
    assert found["commands"] == [shlex.split(made)]  # with what a variable of the tests' environment chose
    assert all(layer["spectrum"] for layer in found["layers"].values() if "scheme" in layer)
    assert lrexport("compress", finished, "--macs", "0.7", "-o", "out", "--device", "cpu").code == 0
    done = lrexport("report", "out", "--format", "json")
    assert json.loads(done.out)["runs"][0]["commands"] == [
        *found["commands"],
        shlex.split("lrexport compress run-again --device cpu --no-export-check --macs 0.7 -o out-again"),
    ]

"""Budgets that check nothing, baselines that do not fit, names made to break outputs: docs/faults.md, Budgets."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest

from tests.budget.make_sample import network
from tests.budget.support import budget
from tests.hostile.support import Command, listing

NOTHING: dict[str, tuple[Callable[[], object], tuple[str, ...], str]] = {
    "a glob that matches nothing": (lambda: budget('max_bytes = "1 MB"', "nowhere/*.onnx"), (), "'nowhere/*.onnx' matches"),
    "a path that is not there": (lambda: budget('max_bytes = "1 MB"', "nowhere"), (), "'nowhere' matches no run"),
    "a glob that matches other files only": (lambda: budget('max_bytes = "1 MB"', "py*"), (), "such as pyproject.toml"),
    "an empty glob on the command line": (lambda: None, ("nowhere/**",), "'nowhere/**' matches no run and no .onnx file"),
    "a limit without a unit": (lambda: budget("max_bytes = 6000"), (), "pyproject.toml:3: max_bytes = 6000 has no unit"),
    "a text without a unit": (lambda: budget('max_bytes = "6000"'), (), "invalid size '6000'"),
    "an unknown key": (lambda: budget('max_byts = "6 KB"'), (), "pyproject.toml:3: unknown key 'max_byts'"),
    "a wrong type": (
        lambda: budget("max_bytes = [6]"),
        (),
        "pyproject.toml:3: invalid max_bytes: expected a string, found a list",
    ),
    "a budget without limits": (lambda: budget(""), (), "has no limits"),
    "a budget without a path, nothing given": (
        lambda: Path("pyproject.toml").write_text('[tool.lrexport.budget]\nmax_bytes = "1 MB"\n'),
        (),
        "has no path",
    ),
    "no budget": (lambda: Path("pyproject.toml").write_text("[tool.lrexport]\n"), (), "no budget in pyproject.toml"),
    "no configuration": (lambda: Path("pyproject.toml").unlink(), (), "no budget in pyproject.toml or lrexport.toml"),
    "a model that no budget applies to": (
        lambda: budget('max_bytes = "1 MB"'),
        ("exports/small.onnx",),
        "no budget applies to",
    ),
    "no baseline": (
        lambda: Path("lrexport-baseline.json").unlink(),
        (),
        "the baseline lrexport-baseline.json does not exist",
    ),
    "a baseline that is not there": (lambda: None, ("--baseline", "main.json"), "the baseline main.json does not exist"),
    "a dense network that is not there": (
        lambda: budget('max_bytes_ratio = "1x"\ndense = "nowhere.onnx"'),
        (),
        "'nowhere.onnx' matches no",
    ),
}


@pytest.mark.parametrize("what", NOTHING)
def test_a_budget_that_checks_nothing_is_exit_code_2_and_never_a_pass(check: Command, what: str) -> None:
    make, arguments, words = NOTHING[what]
    make()
    before = listing(Path())
    done = check(*arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert listing(Path()) == before


def test_a_pattern_of_several_that_matches_nothing_is_not_made_up_for_by_the_others(check: Command) -> None:
    Path("pyproject.toml").write_text('[tool.lrexport.budget]\npath = ["run", "gone/*.onnx"]\nmax_bytes = "1 MB"\n')
    assert check().code == 2


def test_a_file_that_is_no_model_is_bad_input(check: Command) -> None:
    Path("folder").mkdir()
    done = check("folder")
    assert done.code == 3
    assert "neither a run nor a file" in done.err


def test_a_missing_baseline_is_told_with_what_writes_it(check: Command) -> None:
    Path("lrexport-baseline.json").unlink()
    assert "--update-baseline" in check().err
    assert check("--update-baseline").code == 0
    assert check().code == 0


def test_latencies_of_another_machine_are_refused_unless_allowed_and_sizes_are_compared_all_the_same(check: Command) -> None:
    baseline = json.loads(Path("lrexport-baseline.json").read_text())
    baseline["models"]["run"]["latency_ms"]["local"]["machine"]["cpu"] = "Another CPU"
    Path("lrexport-baseline.json").write_text(json.dumps(baseline))
    budget('max_latency_growth = "50%"\nmax_bytes_growth = "10%"\nmax_macs_growth = "11%"')
    done = check("--json", "-")
    assert done.code == 2
    verdicts = {verdict["key"]: verdict for verdict in json.loads(done.out)["models"][0]["verdicts"]}
    assert {key: verdict["status"] for key, verdict in verdicts.items()} == {
        "max_latency_growth": "not measured",
        "max_bytes_growth": "passed",
        "max_macs_growth": "passed",
    }
    note = verdicts["max_latency_growth"]["note"]
    assert "another machine (Another CPU, 4 cores) than this model (Sample CPU @ 2 GHz, 4 cores)" in note
    assert "--allow-other-machine" in note
    assert check("--allow-other-machine").code == 0


NAMES = {
    "markdown": "**b** `c` [l](http://e) | x",
    "html": "<img src=x onerror=alert(1)> & <!-- --> </code>",
    "a newline and a workflow command": "a\n::error file=x::owned\r\n##[warning]b",
    "escapes of a terminal": "\x1b[31mred\x1b[0m \x07\u202e",
    "escaped newlines": "a%0A%25::b",
    "a mention": "@someone #1 !2 $x$ :smile:",
    "the end of a CDATA section": "]]> \ufffe\x00",
}


def _rename(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The sample network with its second layer's weight, and an operator, called ``name``."""
    for tensor in model.graph.initializer:
        if tensor.name.startswith("conv2"):
            tensor.name = name.replace("\x00", "")
    for node in model.graph.node:
        node.input[:] = [name.replace("\x00", "") if value.startswith("conv2.weight") else value for value in node.input]
    return model


@pytest.fixture
def named(request: pytest.FixtureRequest, check: Command) -> tuple[str, str]:
    """A model whose folder and layer have a hostile name, too large for its budget; the folder's name, the layer's."""
    name: str = request.param
    folder = name.replace("/", "∕").replace("\x00", "")
    Path(folder).mkdir()
    onnx.save(_rename(network(None), name), f"{folder}/model.onnx")
    budget('max_bytes = "1 KB"\nforbidden_operators = ["Conv"]', "*/model.onnx")
    shutil.rmtree("run")
    return folder, name.replace("\x00", "")


@pytest.mark.parametrize("named", NAMES.values(), ids=NAMES, indirect=True)
def test_hostile_names_come_out_escaped_in_every_output(
    check: Command, named: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, layer = named
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    text = check()
    assert text.code == 1
    for stream in (text.out, text.err):
        assert all(line.isprintable() for line in stream.split("\n"))
        assert "##[" not in stream
    assert not any(line.lstrip().startswith("::") for line in text.out.splitlines())
    assert len(text.err.splitlines()) == 2
    assert all(re.fullmatch(r"::error [^:]*::(?:(?!::).)*", line) for line in text.err.splitlines())

    done = check("--json", "-", "--markdown", "out.md", "--junit", "out.xml", "--history", "history.json")
    (model,) = json.loads(done.out)["models"]
    assert model["model"] == f"{folder}/model.onnx"
    assert layer in model["figures"]["layers"]

    markdown = Path("out.md").read_text()
    assert len(re.findall(r"^\| \*\*failed\*\*(?: \|[^|\n]*){5}\|$", markdown, re.MULTILINE)) == 2
    inside = re.findall(r"<code>(.*?)</code>", markdown.replace("<!-- -->", ""), re.DOTALL)
    assert len(inside) == markdown.count("<code>") == markdown.count("</code>")
    assert not any(re.search(r"[<>`*\[\]|@$\n]|#(?!\d)|://", code) for code in inside)

    suite = ElementTree.fromstring(Path("out.xml").read_text()).find("testsuite")
    assert suite is not None
    assert suite.get("name", "").endswith("/model.onnx")
    assert suite.get("name", "").isprintable()
    assert all(entry["name"].isprintable() for entry in json.loads(Path("history.json").read_text()))


def test_an_error_about_a_hostile_name_is_no_workflow_command(check: Command) -> None:
    Path("a\n::error::owned.onnx").write_bytes(b"no model")
    budget('max_bytes = "1 KB"', "a*")
    done = check()
    assert done.code == 3
    assert "\n::" not in done.err


def test_a_file_name_that_is_no_unicode_is_shown_by_its_bytes(check: Command) -> None:
    shutil.copy("exports/small.onnx", b"exports/\xff\xfe.onnx")
    budget('max_bytes = "1 KB"', "exports/*.onnx")
    done = check("--json", "-", "--markdown", "out.md", "--junit", "out.xml", "--history", "history.json")
    assert done.code == 1
    assert r"exports/\xff\xfe.onnx" in [model["model"] for model in json.loads(done.out)["models"]]


def test_the_summary_of_a_step_stays_below_its_limit_and_is_left_out_where_it_is_full(
    check: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget('max_bytes = "1 KB"')
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    Path("summary.md").write_text("x" * ((1 << 20) - 1_200))
    assert check().code == 1
    size = Path("summary.md").stat().st_size
    assert (1 << 20) - 1_200 < size <= 1 << 20
    Path("summary.md").write_text("x" * ((1 << 20) - 900))
    assert check().code == 1
    assert Path("summary.md").stat().st_size == (1 << 20) - 900


def test_markdown_of_very_many_limits_is_cut_to_what_a_comment_holds_with_the_failed_first(check: Command) -> None:
    text = 'path = "run"\nmax_bytes = "{} KB"\n'
    tables = [f"[tool.lrexport.budget.b{n}]\n{text.format(6 if n < 590 else 1)}" for n in range(600)]
    Path("pyproject.toml").write_text("".join(tables))
    done = check("--markdown", "-")
    assert done.code == 1
    assert len(done.out.encode()) <= 60_000
    assert done.out.count("**failed**") == 10
    assert "truncated" in done.out.splitlines()[-1]

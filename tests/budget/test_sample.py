"""The sample repository: its budgets hold, then fail for each kind of limit, in every output and with every exit code."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lrexport.budget.limits import KEYS
from lrexport.cli.main import run
from tests.budget.support import budget
from tests.cli.test_console import Terminal
from tests.hostile.support import Command

pytestmark = pytest.mark.usefixtures("_looked_into_once")
Pin = Callable[[str, str], None]

# Every kind of limit, at a value that the sample's run is past.
BROKEN = {
    "max_bytes": '"5 KB"',
    "max_macs": '"0.06 MMACs"',
    "max_params": '"1000 params"',
    "max_latency_p50": '"450 us"',
    "max_latency_p90": '"0.5 ms"',
    "min_accuracy": '"95 %"',
    "min_top5_accuracy": '"100%"',
    "max_bytes_ratio": '"0.45×"',
    "max_macs_ratio": '"0.35x"',
    "max_params_ratio": '"40%"',
    "max_latency_ratio": '"0.59x"',
    "max_accuracy_drop": '"0.5 points"',
    "max_top5_accuracy_drop": None,  # the sample's is 0; below it has a worse one
    "max_bytes_growth": '"5%"',
    "max_macs_growth": '"5K"',
    "max_params_growth": '"8%"',
    "max_latency_growth": None,  # the sample's is 0; below it has a worse one
    "max_accuracy_loss": None,
    "max_top5_accuracy_loss": None,
    "allowed_operators": '["Conv", "Relu"]',
    "forbidden_operators": '["Gem?", "Flatten", "Loop"]',
    "max_opset": "17",
    "min_opset": "19",
}
NO_LIMITS = {"path", "exclude", "target", "dense", "shapes", "sum", "severity"}
# Broken against a baseline that was faster and more accurate, or a dense network that was.
BROKEN_AGAINST_BETTER = {
    "max_top5_accuracy_drop": '"0.1 points"',
    "max_latency_growth": '"10%"',
    "max_accuracy_loss": '"0.5 points"',
    "max_top5_accuracy_loss": '"0.1 points"',
}


def _better() -> None:
    """The dense network and the baseline get better figures than the run has."""
    for name, keys in (("run/run.json", ("results", "dense")), ("lrexport-baseline.json", ("models", "run"))):
        value = json.loads(Path(name).read_text())
        figures = value[keys[0]][keys[1]]
        figures["accuracy"] |= {"top1": 0.96, "top5": 1.0}
        figures["latency_ms"]["local"] |= {"p50": 0.4, "p90": 0.45}
        Path(name).write_text(json.dumps(value))


def test_the_budgets_hold(check: Command, pinned: Pin) -> None:
    done = check()
    assert (done.code, done.err) == (0, "")
    pinned("passing.txt", done.out)


def test_every_kind_of_limit_fails_with_its_limit_what_was_found_and_by_how_much(check: Command, pinned: Pin) -> None:
    assert set(BROKEN) | NO_LIMITS | {"max_gzip_bytes", "max_gzip_bytes_growth"} == set(KEYS)
    outputs = []
    for limits in (BROKEN, BROKEN_AGAINST_BETTER):
        if limits is BROKEN_AGAINST_BETTER:
            _better()
        for key, value in limits.items():
            if value is None:
                continue
            budget(f"{key} = {value}")
            done = check()
            assert (key, done.code, done.err) == (key, 1, "")
            outputs.append(f"$ lrexport check  # {key} = {value}\n{done.out}")
    pinned("failing.txt", "\n".join(outputs))


def test_the_size_after_gzip_is_what_gzip_makes_of_it(check: Command) -> None:
    size = len(gzip.compress(Path("run/model.onnx").read_bytes(), 9, mtime=0))
    for limit, code in ((size, 0), (size - 1, 1)):
        budget(f'max_gzip_bytes = "{limit} B"')
        assert check().code == code
    done = check("--json", "-")
    (verdict,) = json.loads(done.out)["models"][0]["verdicts"]
    assert (verdict["value"], verdict["limit"], verdict["unit"]) == (size, size - 1, "bytes")
    assert f"found {size:,} bytes" in check().out  # in full, where it would otherwise read like the limit
    check("--update-baseline")
    budget('max_gzip_bytes_growth = "0%"')
    assert check().code == 0


def _break_several(target: str = "local") -> None:
    budget(
        'max_bytes = "5 KB"\nmax_macs_growth = "5%"\nmax_latency_ratio = "0.62x"\nmin_accuracy = "99%"\n'
        f'max_latency_p50 = "1 ms"\ntarget = "{target}"\nmax_params = "2K"'
    )


def _drawn(width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stdout", terminal)
        assert run(["check"]) == 1
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


@pytest.mark.parametrize(("name", "width"), [("narrow", 60), ("wide", 160)])
def test_terminals_of_every_width_cut_nothing(
    sample: Path, pinned: Pin, monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    _break_several()
    pinned(f"several-{name}.txt", _drawn(width, monkeypatch))


def test_json_markdown_annotations_junit_and_history_say_the_same(
    check: Command, pinned: Pin, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_several()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    done = check("--json", "-", "--markdown", "check.md", "--junit", "check.xml", "--history", "history.json")
    assert done.code == 1
    assert json.loads(done.out)["exit_code"] == 1
    pinned("several.json", done.out)
    pinned("several-annotations.txt", done.err)
    pinned("several.md", Path("check.md").read_text())
    assert Path("summary.md").read_text() == Path("check.md").read_text()
    pinned("several-history.json", Path("history.json").read_text())
    junit = Path("check.xml").read_text()
    pinned("several.xml", junit)
    root = ElementTree.fromstring(junit)
    for element in (root, *root.iter("testsuite")):
        for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(element.get(attribute, "")) == len(list(element.iter(tag)))


def test_annotations_name_the_file_from_the_repository_s_root(check: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    budget('max_bytes = "5 KB"')
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(Path.cwd().parent))
    assert f"::error file={Path.cwd().name}/pyproject.toml,line=3," in check().err


@pytest.mark.parametrize("output", ["json", "markdown", "junit", "history"])
def test_an_output_on_stdout_is_alone_there(check: Command, output: str) -> None:
    done = check(f"--{output}", "-")
    assert done.code == 0
    if output in ("json", "history"):
        json.loads(done.out)
    elif output == "junit":
        ElementTree.fromstring(done.out)
    else:
        assert done.out.startswith("<!-- lrexport check -->")
    assert check(f"--{output}", "out").code == 0
    assert Path("out").read_text() == done.out


def test_two_outputs_on_stdout_are_refused(check: Command) -> None:
    done = check("--json", "-", "--junit", "-")
    assert (done.code, done.out) == (2, "")
    assert "only one output" in done.err


def test_a_latency_whose_interval_holds_the_limit_is_inconclusive_and_fails_only_when_strict(check: Command) -> None:
    budget('max_latency_ratio = "0.62x"')  # the ratio's quartiles are 0.60 and 0.65
    done = check()
    assert done.code == 0
    assert "inconclusive" in done.out
    assert "the limit lies within the interquartile range" in done.out
    assert check("--strict").code == 1


def test_what_was_measured_badly_never_passes(check: Command) -> None:
    record = json.loads(Path("run/run.json").read_text())
    record["results"]["compressed"]["latency_ms"]["local"]["warning"] = (
        "partial: 12 of 100 rounds before the target was lost"
    )
    Path("run/run.json").write_text(json.dumps(record))
    budget('max_latency_p90 = "1 s"\nmax_latency_ratio = "0.5x"')
    done = check("--json", "-")
    statuses = {v["key"]: (v["status"], v["note"]) for v in json.loads(done.out)["models"][0]["verdicts"]}
    partial = "partial: 12 of 100 rounds before the target was lost"
    assert statuses == {"max_latency_p90": ("inconclusive", partial), "max_latency_ratio": ("failed", partial)}


UNMEASURED = {
    "accuracy of a bare file": ('min_accuracy = "90%"', "exports/small.onnx", "check a RUN made with --data"),
    "latency of a bare file": ('max_latency_p50 = "1 s"', "exports/small.onnx", "check a RUN that lrexport onnx has timed"),
    "a ratio of a bare file": ('max_bytes_ratio = "0.5x"', "exports/small.onnx", "name the file with dense ="),
    "latency on another target": (
        'max_latency_p50 = "1 s"\ntarget = "phone"',
        "run",
        "on phone was not measured; measured on",
    ),
    "growth of what the baseline lacks": ('max_bytes_growth = "1%"', "exports/small.onnx", "does not have this model"),
    "size of a run without files": ('max_bytes = "1 GB"', "bare", "lrexport onnx RUN writes it"),
    "operators of a run without files": ('forbidden_operators = ["Loop"]', "bare", "lrexport onnx RUN writes it"),
}


@pytest.mark.parametrize("what", UNMEASURED)
def test_what_was_not_measured_is_no_pass_but_exit_code_2_with_what_would_measure_it(check: Command, what: str) -> None:
    limits, path, words = UNMEASURED[what]
    record = json.loads(Path("run/run.json").read_text())
    record["files"] = {}
    record["results"]["compressed"]["bytes"] = None
    Path("bare").mkdir()
    Path("bare/run.json").write_text(json.dumps(record))
    budget(limits, path)
    done = check()
    assert done.code == 2
    assert "not measured" in done.out
    assert words in done.out
    assert check("--json", "-").code == 2


def test_a_broken_limit_outweighs_one_that_was_not_measured(check: Command) -> None:
    budget('max_bytes = "1 KB"\nmin_accuracy = "90%"', "exports/small.onnx")
    assert check().code == 1


def test_a_file_of_a_run_has_the_accuracy_and_latency_of_its_record(check: Command) -> None:
    budget('min_accuracy = "94%"\nmax_latency_ratio = "0.7x"', "run/model.onnx")
    assert check().code == 0
    budget('min_accuracy = "94.5%"\nmax_latency_p50 = "0.9 ms"', "run/dense.onnx")
    assert check().code == 0


def test_a_damaged_file_is_exit_code_3_and_an_output_that_cannot_be_written_4(check: Command) -> None:
    done = check("--junit", f"{'x' * 250}.xml", "--markdown", "check.md")
    assert done.code == 4
    assert "cannot write xxx" in done.err
    assert "all 27 limits met" in Path("check.md").read_text()  # one output does not keep another from being written
    content = Path("run/model.onnx").read_bytes()
    Path("run/model.onnx").write_bytes(content[:-9])
    done = check()
    assert done.code == 3
    assert "truncated" in done.err
    Path("exports/small.onnx").write_bytes(content[:-9])
    done = check("exports/small.onnx")
    assert done.code == 3
    assert "invalid ONNX file exports/small.onnx" in done.err


def test_models_of_the_command_line_fall_under_the_budgets_that_are_about_them(check: Command) -> None:
    found = json.loads(check("exports/large.onnx", "--json", "-").out)
    assert [(model["model"], {v["budget"] for v in model["verdicts"]}) for model in found["models"]] == [
        ("exports/large.onnx", {"exports"})
    ]
    found = json.loads(check("exports/*.onnx", "run", "--json", "-").out)
    assert [model["model"] for model in found["models"]] == ["exports/large.onnx", "exports/small.onnx", "run"]


def test_latencies_that_bench_wrote_are_taken_for_the_very_files_that_it_measured(check: Command) -> None:
    from lrexport.artifacts.files import sha256
    from tests.budget.make_sample import LATENCIES, MACHINE

    names = {"dense": Path("run/dense.onnx"), "compressed": Path("exports/small.onnx")}
    measured = {
        name: {"path": str(path), "sha256": sha256(path), "latency_ms": LATENCIES[name].model_dump(mode="json")}
        for name, path in names.items()
    }
    bench = {"target": "phone", "environment": MACHINE, "baseline": "dense", "files": measured}
    Path("bench.json").write_text(json.dumps(bench))
    budget('max_latency_ratio = "0.7x"\nmax_latency_p90 = "0.5 ms"\ntarget = "phone"\ndense = "run/dense.onnx"', "exports/*")
    found = json.loads(check("--latency", "bench.json", "--json", "-").out)
    statuses = {model["model"]: [verdict["status"] for verdict in model["verdicts"]] for model in found["models"]}
    assert statuses == {
        "exports/large.onnx": ["not measured", "not measured"],
        "exports/small.onnx": ["passed", "failed"],
    }
    Path("bench.json").write_text("{}")
    assert check("--latency", "bench.json").code == 3


FOREIGN: dict[str, tuple[tuple[str, ...], object]] = {
    "a negative time": (("files", "a", "latency_ms", "p50"), -1.0),
    "no time": (("files", "a", "latency_ms", "p90"), 0.0),
    "a time that is text": (("files", "a", "latency_ms", "p50"), "fast"),
    "an infinite time": (("files", "a", "latency_ms", "p50"), float("inf")),
    "NaN": (("files", "a", "latency_ms", "iqr"), float("nan")),
    "no rounds": (("files", "a", "latency_ms", "rounds"), 0),
    "a negative ratio": (("files", "a", "latency_ms", "ratio"), -0.5),
    "a target that is a list": (("target",), ["phone"]),
    "a baseline that is a list": (("baseline",), ["dense"]),
    "an environment that is a list": (("environment",), []),
    "files that are a list": (("files",), []),
    "a file that is null": (("files", "a"), None),
    "a hash that is a number": (("files", "a", "sha256"), 7),
}


@pytest.mark.parametrize("value", [4, None, "targets", ["targets"], {"targets": 1}])
def test_json_that_is_no_measurement_is_refused(check: Command, value: object) -> None:
    Path("bench.json").write_text(json.dumps(value))
    done = check("--latency", "bench.json")
    assert done.code == 3
    assert "bench.json was not written by lrexport bench --json: " in done.err


@pytest.mark.parametrize("what", FOREIGN)
def test_latencies_that_no_measurement_gives_are_refused(check: Command, what: str) -> None:
    from lrexport.artifacts.files import sha256
    from tests.budget.make_sample import LATENCIES, MACHINE

    path = Path("exports/small.onnx")
    figures = LATENCIES["compressed"].model_dump(mode="json")
    entry = {"path": str(path), "sha256": sha256(path), "latency_ms": figures}
    bench: dict[str, Any] = {"target": "phone", "environment": MACHINE, "baseline": None, "files": {"a": entry}}
    keys, value = FOREIGN[what]
    inner = bench
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    Path("bench.json").write_text(json.dumps(bench))
    budget('max_latency_p90 = "0.5 ms"\ntarget = "phone"', "exports/small.onnx")
    done = check("--latency", "bench.json")
    assert done.code == 3
    other = (
        "bench.json is not JSON: " if "not a number" in done.err else "bench.json was not written by lrexport bench --json: "
    )
    assert other in done.err
    assert done.out == ""

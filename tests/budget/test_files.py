"""Which files a budget is about: exclusions, sums, files of other runtimes, damaged files beside whole ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest

from tests.board import write_model, write_open
from tests.budget.support import budget
from tests.hostile.support import Command

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture(autouse=True)
def _models(sample: Path) -> None:
    """Two files of a kilobyte in a folder of their own."""
    Path("m").mkdir()
    for name in ("a", "b"):
        write_model(Path(f"m/{name}.onnx"))


def _report(check: Command, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and verdicts by model and key."""
    done = check(*arguments, "--json", "report.json")
    models = json.loads(Path("report.json").read_text())["models"]
    return done.code, {model["model"]: {found["key"]: found for found in model["verdicts"]} for model in models}


@pytest.mark.parametrize(
    "lines",
    [
        'exclude = "m/b.onnx"',
        'exclude = ["m/b*"]',
        'path = ["m/*.onnx", "!m/b.onnx"]',
        'exclude = "m/old"\npath = "m/**/a.onnx"',
    ],
)
def test_what_a_budget_excludes_is_not_checked(check: Command, lines: str) -> None:
    Path("m/old").mkdir()
    shutil.copy("m/a.onnx", "m/old/a.onnx")
    path = "" if "path" in lines else 'path = "m/*.onnx"\n'
    Path("pyproject.toml").write_text(f'[tool.lrexport.budget]\n{path}{lines}\nmax_bytes = "1 B"\n')
    code, found = _report(check)
    assert (code, list(found)) == (1, ["m/a.onnx"])
    done = check("m/b.onnx" if "old" not in lines else "m/old/a.onnx")
    assert done.code == 2
    assert "no budget applies to" in done.err


def test_a_budget_that_excludes_all_that_it_names_checks_nothing(check: Command) -> None:
    budget('exclude = "m"\nmax_bytes = "1 MB"', "m/*.onnx")
    done = check()
    assert done.code == 2
    assert "excludes every model that its path matches" in done.err


def test_a_sum_is_over_all_files_of_the_budget_and_grows_as_one(check: Command) -> None:
    sizes = {name: Path(f"m/{name}.onnx").stat().st_size for name in ("a", "b")}
    total = sum(sizes.values())
    budget(f'sum = true\nmax_bytes = "{total} B"\nmax_bytes_growth = "0%"\nmax_macs = "1M"', "m/*.onnx")
    assert check("--update-baseline").code == 0
    code, found = _report(check)
    assert (code, list(found)) == (0, ["sum of budget"])
    assert found["sum of budget"]["max_bytes"]["value"] == total
    assert found["sum of budget"]["max_macs"]["value"] == 2 * 3 * 4 * 9 * 36
    code, found = _report(check, "m/a.onnx")
    assert found["sum of budget"]["max_bytes"]["value"] == total, "part of a sum alone says nothing"
    write_model(Path("m/b.onnx"), 16)
    code, found = _report(check)
    assert code == 1
    assert [verdict["status"] for verdict in found["sum of budget"].values()] == ["failed", "failed", "passed"]
    assert "m/b.onnx" in check("--markdown", "-").out  # in the layers that explain it


def test_external_data_that_two_models_share_counts_once_in_their_sum(check: Command) -> None:
    model = onnx.load("m/a.onnx")
    for name in ("a", "b"):
        onnx.save(model, f"m/{name}.onnx", save_as_external_data=True, location="weights", size_threshold=0)
        model = onnx.load(f"m/{name}.onnx")
    total = sum(path.stat().st_size for path in Path("m").iterdir())
    budget('sum = true\nmax_bytes = "1 MB"\nmax_gzip_bytes = "1 MB"', "m/*.onnx")
    assert _report(check)[1]["sum of budget"]["max_bytes"]["value"] == total


@pytest.mark.parametrize("name", ["net.ort", "net.tflite", "net.param", "net.bin", "net", "net.onnx.data"])
def test_a_file_of_any_kind_has_a_budget_of_bytes(check: Command, name: str) -> None:
    Path(f"m/{name}").write_bytes(b"x" * 1000)
    budget('max_bytes = "1000 B"\nmax_gzip_bytes = "500 B"\nmax_bytes_growth = "0%"', f"m/{name}")
    assert check("--update-baseline").code == 0
    assert check(f"m/{name}").code == 0
    Path(f"m/{name}").write_bytes(b"x" * 1001)
    code, found = _report(check)
    assert code == 1
    assert [verdict["status"] for verdict in found[f"m/{name}"].values()] == ["failed", "passed", "failed"]


def test_a_limit_that_needs_a_graph_is_not_measured_on_a_file_without_one(check: Command) -> None:
    Path("m/net.tflite").write_bytes(b"x")
    budget('max_macs = "1M"\nforbidden_operators = "If"', "m/*.tflite")
    done = check()
    assert done.code == 2
    assert done.out.count("this is a .tflite file: limit its bytes") == 2


def test_a_glob_matches_other_kinds_only_where_it_spells_them_out(check: Command) -> None:
    Path("m/notes.txt").write_text("x")
    budget('max_bytes = "1 MB"', "m/*")
    assert list(_report(check)[1]) == ["m/a.onnx", "m/b.onnx"]
    budget('max_bytes = "1 MB"', "m/*.txt")
    assert list(_report(check)[1]) == ["m/notes.txt"]


def _external(path: Path) -> None:
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="b.weights", size_threshold=0)


def _pointer_in_external_data(path: Path) -> None:
    _external(path)
    Path("m/b.weights").write_text(POINTER)


def _without_external_data(path: Path) -> None:
    _external(path)
    Path("m/b.weights").unlink()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a Git LFS pointer": (lambda path: path.write_text(POINTER), "b.onnx is a Git LFS pointer, not the file itself. Fetch"),
    "a pointer in its external data": (
        _pointer_in_external_data,
        "b.weights is a Git LFS pointer: fetch the file with git lfs pull",
    ),
    "without its external data": (_without_external_data, "missing external data"),
    "empty": (lambda path: path.write_bytes(b""), "empty file: "),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "b.onnx: "),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_file_that_cannot_be_read_ends_neither_the_verdicts_on_others_nor_any_output(
    check: Command, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    damage, words = DAMAGE[what]
    damage(Path("m/b.onnx"))
    budget('max_bytes = "1 B"\nmax_macs_growth = "1%"', "m/*.onnx")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    code, found = _report(check, "--update-baseline", "--junit", "j.xml", "--markdown", "m.md", "--history", "h.json")
    assert code == 3
    assert {verdict["status"] for verdict in found["m/a.onnx"].values()} == {"failed", "passed"}
    (verdict,) = found["m/b.onnx"].values()
    assert verdict["status"] == "bad input"
    assert words in verdict["note"]
    assert ElementTree.parse("j.xml").getroot().get("errors") == "1"
    assert "**bad input**" in Path("m.md").read_text() == Path("summary.md").read_text()
    assert all("b.onnx" not in entry["name"] for entry in json.loads(Path("h.json").read_text()))
    assert "m/b.onnx" not in json.loads(Path("lrexport-baseline.json").read_text())["models"]
    done = check()
    assert words in done.err
    assert "::error file=pyproject.toml,line=1,title=lrexport check%3A m/b.onnx::" in done.err


def test_a_damaged_run_or_dense_network_is_named_beside_the_verdicts_on_others(check: Command) -> None:
    Path("run/run.json").write_text("{")
    text = '[tool.lrexport.budget.{}]\npath = "{}"\nmax_bytes = "1 MB"\n'
    dense = 'max_bytes_ratio = "2x"\ndense = "dense.onnx"\n'
    Path("dense.onnx").write_text(POINTER)
    Path("pyproject.toml").write_text(
        text.format("a", "run") + text.format("b", "m/a.onnx") + text.format("c", "m/b.onnx") + dense
    )
    code, found = _report(check)
    assert code == 3
    assert {name: [verdict["status"] for verdict in verdicts.values()] for name, verdicts in found.items()} == {
        "run": ["bad input"],
        "m/a.onnx": ["passed"],
        "m/b.onnx": ["bad input"],
    }


def test_a_sum_with_a_file_that_cannot_be_read_is_not_judged(check: Command) -> None:
    Path("m/b.onnx").write_text(POINTER)
    budget('sum = true\nmax_bytes = "1 MB"', "m/*.onnx")
    code, found = _report(check)
    assert (code, found["sum of budget"]["path"]["status"]) == (3, "bad input")


def test_a_warning_is_reported_and_never_fails(check: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    budget('severity = "warn"\nmax_bytes = "1 B"\nmin_accuracy = "1%"', "m/a.onnx")
    done = check("--junit", "j.xml")
    assert done.code == 0
    assert "2 of 2 limits only warned" in done.out
    assert [line.partition(" ")[0] for line in done.err.splitlines()] == ["::warning"] * 2
    assert ElementTree.parse("j.xml").getroot().get("skipped") == "2"


def test_sizes_that_a_file_leaves_open_come_from_the_budget(check: Command) -> None:
    for name in ("a", "b"):
        write_open(Path(f"m/{name}.onnx"))
    macs = 8 * 3 * 9 * 30 * 30
    limits = f'max_macs = "{macs} MACs"\nmax_macs_ratio = "1x"\ndense = "m/b.onnx"'
    budget(limits, "m/a.onnx")
    done = check("--history", "-")
    assert done.code == 2
    assert "MACs" not in done.out
    assert "shapes = {" in check().out
    budget(f"{limits}\nshapes = {{x = [1, 3, 32, 32]}}", "m/a.onnx")
    code, found = _report(check)
    assert (code, found["m/a.onnx"]["max_macs"]["value"]) == (0, macs)
    budget(f"{limits}\nshapes = {{x = [1, 3, 33, 32]}}", "m/a.onnx")
    assert check().code == 1


@pytest.mark.parametrize("shapes", ["{y = [1, 3, 8, 8]}", "{x = [1, 4, 8, 8]}", "{x = [1, 3, 8]}"])
def test_shapes_that_do_not_fit_a_file_are_exit_code_2_and_leave_others_their_verdicts(check: Command, shapes: str) -> None:
    write_open(Path("m/b.onnx"))
    text = '[tool.lrexport.budget.{}]\npath = "m/{}.onnx"\nmax_macs = "1G"\n'
    Path("pyproject.toml").write_text(f"{text.format('a', 'a')}{text.format('b', 'b')}shapes = {shapes}\n")
    code, found = _report(check)
    assert code == 2
    assert found["m/a.onnx"]["max_macs"]["status"] == "passed"
    assert found["m/b.onnx"]["path"]["status"] == "not measured"


def test_two_budgets_that_count_one_model_at_different_sizes_are_a_mistake(check: Command) -> None:
    write_open(Path("m/a.onnx"))
    text = '[tool.lrexport.budget.{}]\npath = "m/a.onnx"\nmax_macs = "1G"\nshapes = {{x = [1, 3, {}, 8]}}\n'
    Path("pyproject.toml").write_text(text.format("one", 8) + text.format("two", 9))
    done = check()
    assert done.code == 2
    assert "shapes of 'x' differ for m/a.onnx: [1, 3, 9, 8] in the budget 'two', [1, 3, 8, 8] in 'one'" in done.err


def test_an_unchanged_file_that_is_counted_in_part_does_not_grow_and_a_changed_one_is_not_measured(check: Command) -> None:
    write_open(Path("m/a.onnx"))
    budget('max_macs_growth = "5%"', "m/a.onnx")
    assert check("--update-baseline").code == 0
    baseline = json.loads(Path("lrexport-baseline.json").read_text())["models"]["m/a.onnx"]
    assert "macs" not in baseline
    assert check().code == 0
    model = onnx.load("m/a.onnx")
    weights = model.graph.initializer[0]
    weights.raw_data = bytes(len(weights.raw_data))
    model.producer_name = "another"
    onnx.save(model, "m/a.onnx")
    assert check().code == 0, "trained on, it is the same network"
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("dilations", [2, 2]))
    onnx.save(model, "m/a.onnx")
    done = check()
    assert done.code == 2
    assert "--update-baseline accepts the model as it is" in done.out
    assert "nan" not in done.out
    assert check("--update-baseline").code == 0
    assert check().code == 0


def _bench(check: Command, **changes: Any) -> tuple[int, dict[str, Any]]:
    """A check of a/b with latencies of both from one run of bench, as changed."""
    from lrexport.artifacts.files import sha256
    from tests.budget.make_sample import LATENCIES, MACHINE

    files = {
        name: {
            "path": f"m/{name}.onnx",
            "sha256": sha256(Path(f"m/{name}.onnx")),
            "latency_ms": LATENCIES["dense"].model_dump(mode="json"),
            "samples_ms": [1.0, 2.0, 3.0, 4.0] if name == "a" else [2.0, 4.0, 6.0, 8.0],
            "inputs": {"x": {"shape": [1, 3, 8, 8], "dtype": "float32", "values": "random"}},
            **changes,
        }
        for name in ("a", "b")
    }
    value = {"target": "local", "environment": MACHINE, "baseline": "a", "files": files}
    Path("bench.json").write_text(json.dumps(value))
    code, found = _report(check, "--latency", "bench.json")
    return code, found["m/a.onnx"]["max_latency_ratio"]


def test_the_ratio_to_the_dense_network_is_had_from_the_rounds_whatever_bench_compared_with(check: Command) -> None:
    write_model(Path("m/b.onnx"), 8)
    budget('max_latency_ratio = "0.6x"\ndense = "m/b.onnx"', "m/a.onnx")
    code, verdict = _bench(check)
    assert (code, verdict["status"], verdict["value"]) == (0, "passed", 0.5)
    code, verdict = _bench(check, samples_ms=[])
    assert code == 2
    assert "measure both in one run: lrexport bench --baseline m/b.onnx m/a.onnx --json bench.json" in verdict["note"]
    write_model(Path("dense.onnx"), 9)
    budget('max_latency_ratio = "0.6x"\ndense = "dense.onnx"', "m/a.onnx")
    code, verdict = _bench(check)
    assert code == 2
    assert "bench.json has no latency of the current dense.onnx: measure both" in verdict["note"]


def test_a_latency_at_other_sizes_than_the_budgets_is_not_used(check: Command) -> None:
    write_open(Path("m/a.onnx"))
    budget('max_latency_ratio = "1x"\ndense = "m/a.onnx"\nshapes = {x = [1, 3, 16, 16]}', "m/a.onnx")
    code, verdict = _bench(check)
    assert code == 2
    assert "bench.json measured it at x=1,3,8,8: measure with lrexport bench --shape x=1,3,16,16" in verdict["note"]

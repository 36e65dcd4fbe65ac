"""The baseline file: written, read back, replaced model by model; and other files that take its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrexport.budget.baseline import read_baseline, write_baseline
from lrexport.budget.facts import AccuracyFacts, Facts, LatencyFacts, Layer, ScoreFacts
from tests.budget.make_sample import write_run
from tests.budget.support import budget
from tests.hostile.support import Command

COUNTS = st.integers(0, 2**53)
SHARES = st.floats(0, 1)
FACTS = st.builds(
    Facts,
    bytes=st.none() | COUNTS,
    macs=st.none() | COUNTS,
    opset=st.none() | st.integers(1, 30),
    operators=st.none() | st.lists(st.text(), min_size=1).map(tuple),
    uncounted=st.lists(st.text()).map(tuple),
    accuracy=st.none()
    | st.builds(AccuracyFacts, SHARES, SHARES, COUNTS)
    | st.builds(ScoreFacts, st.text(), st.text(), st.text(), SHARES, COUNTS, st.booleans()),
    latency_ms=st.dictionaries(
        st.text(),
        st.builds(
            LatencyFacts,
            *[st.floats(0, 1e6)] * 3,
            *[st.integers(1, 64)] * 2,
            ratio=st.none() | SHARES,
            ratio_iqr=st.none() | st.tuples(SHARES, SHARES),
            machine=st.dictionaries(st.text(), st.integers(-(2**62), 2**62) | st.text() | st.lists(st.text()), max_size=3),
        ),
        max_size=2,
    ),
    layers=st.dictionaries(st.text(), st.builds(Layer, COUNTS, COUNTS, COUNTS), max_size=3),
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(alphabet=st.characters(exclude_categories=["Cs"])), FACTS, max_size=3))
def test_what_is_written_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Facts]) -> None:
    path = tmp_path_factory.mktemp("baseline") / "baseline.json"
    write_baseline(path, models)
    assert read_baseline(path) == models


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty file"),
        ("{", "not JSON"),
        ("[]", "schema version None, expected 1"),
        ('{"schema_version": 2, "models": {}}', "schema version 2, expected 1"),
        ('{"schema_version": 1}', "is not a valid baseline"),
        ('{"schema_version": 1, "models": {"run": {"bytes": "many"}}}', "models.run.bytes"),
        ('{"schema_version": 1, "models": {"run": {"size": 1}}}', "models.run.size"),
        ('{"schema_version": 1, "models": {"run": [1]}}', "models.run"),
        ('{"schema_version": 1, "models": {"run": {"bytes": -1}}}', "models.run.bytes: expected a number of at least 0"),
        (
            '{"schema_version": 1, "models": {"run": {"accuracy": {"top1": 1e999, "top5": 1, "n": 1}}}}',
            "the number 1e999 is too large",
        ),
    ],
)
def test_a_baseline_that_is_none_is_bad_input(check: Command, content: str, words: str) -> None:
    Path("lrexport-baseline.json").write_text(content)
    done = check("--json", "report.json", "--junit", "check.xml")
    assert done.code == 3
    assert words in done.err
    models = json.loads(Path("report.json").read_text())["models"]
    statuses = {verdict["key"]: verdict["status"] for model in models for verdict in model["verdicts"]}
    assert statuses["max_macs_growth"] == "bad input"
    assert statuses["max_bytes"] == "passed"
    assert Path("check.xml").exists()


def test_an_entry_of_another_model_that_is_not_valid_says_nothing_about_this_one_and_stays_as_it_was(check: Command) -> None:
    content = json.loads(Path("lrexport-baseline.json").read_text())
    content["models"]["other"] = {"bytes": "many"}
    Path("lrexport-baseline.json").write_text(json.dumps(content))
    assert check().code == 0
    assert check("--update-baseline").code == 0
    assert json.loads(Path("lrexport-baseline.json").read_text())["models"]["other"] == {"bytes": "many"}


def test_an_update_does_not_replace_a_baseline_that_cannot_be_read(check: Command) -> None:
    Path("lrexport-baseline.json").write_text("{")
    assert check("--update-baseline").code == 3
    assert Path("lrexport-baseline.json").read_text() == "{"


@pytest.mark.parametrize("number", ["1e400", "NaN", "-1", str(10**400)])
def test_a_number_that_no_figure_has_is_never_divided_by(check: Command, number: str) -> None:
    Path("lrexport-baseline.json").write_text(f'{{"schema_version": 1, "models": {{"run": {{"bytes": {number}}}}}}}')
    budget('max_bytes_growth = "1%"')
    done = check("--json", "report.json")
    assert done.code == 3
    assert "unexpected" not in done.err
    (verdict,) = json.loads(Path("report.json").read_text())["models"][0]["verdicts"]
    assert (verdict["status"], verdict["value"], verdict["found"]) == ("bad input", None, "—")


def test_a_lower_bound_of_macs_is_none_of_the_exact_figures_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(path, {"m": Facts(macs=5, uncounted=("LSTM",))})
    assert json.loads(path.read_text())["models"]["m"] == {"macs_at_least": 5, "uncounted": ["LSTM"]}
    assert read_baseline(path) == {"m": Facts(macs=5, uncounted=("LSTM",))}


def test_growth_is_accepted_by_an_update_which_leaves_other_models_alone(check: Command) -> None:
    budget('max_macs_growth = "1%"')
    assert check().code == 1
    before = json.loads(Path("lrexport-baseline.json").read_text())
    before["models"]["another"] = before["models"]["run"]
    Path("lrexport-baseline.json").write_text(json.dumps(before))
    assert check("--update-baseline").code == 0
    after = json.loads(Path("lrexport-baseline.json").read_text())
    assert after["models"]["another"] == before["models"]["another"]
    assert after["models"]["run"]["macs"] > before["models"]["run"]["macs"]
    assert check().code == 0
    written = Path("lrexport-baseline.json").read_bytes()
    assert check("--update-baseline").code == 0
    assert Path("lrexport-baseline.json").read_bytes() == written


def test_an_update_does_not_make_a_limit_of_another_kind_pass(check: Command) -> None:
    budget('max_macs_growth = "1%"\nmax_macs = "1K"')
    done = check("--update-baseline")
    assert done.code == 1
    assert "written: lrexport-baseline.json" in done.err
    budget('max_macs_growth = "1%"')
    assert check().code == 0


def test_the_first_baseline_may_have_any_name(check: Command) -> None:
    budget('max_bytes_growth = "0%"')
    done = check("--baseline", "main.json", "--update-baseline")
    assert done.code == 0
    assert done.err == "written: main.json\n"
    assert check("--baseline", "main.json").code == 0
    assert check().code == 1  # against the sample's own, an earlier state


def test_a_run_or_a_file_of_one_may_be_the_baseline(check: Command) -> None:
    write_run(Path("before"), rank=4)
    budget('max_macs_growth = "1%"')
    for baseline in ("before", "before/model.onnx"):
        done = check("--baseline", baseline)
        assert done.code == 1
        assert "conv2" in done.out
    shutil.rmtree("before")
    write_run(Path("before"), rank=7)
    assert check("--baseline", "before").code == 0


def test_a_run_is_no_baseline_of_several_models_nor_one_to_update(check: Command) -> None:
    budget('max_macs_growth = "1%"', "exports/*.onnx")
    done = check("--baseline", "run")
    assert done.code == 2
    assert "is a baseline for one model, but 2 are checked" in done.err
    budget('max_macs_growth = "1%"')
    done = check("--baseline", "run", "--update-baseline")
    assert done.code == 2

"""Plan files as people write them: what is read, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lrexport.artifacts.plan_file import read_choices, read_plan
from lrexport.errors import InputError
from lrexport.plan import Dense, Pair, PairChoice, PlannedLatency, choice_of, digest

FULL = {"scheme": "spatial", "rank": 3, "full_rank": 9, "energy_kept": 0.5, "dense_macs": 90, "macs": 30, "dense_params": 9,
        "params": 3, "shape": [1, 1, 3, 3]}  # fmt: skip
DENSE = {"dense": True, "kind": "costly", "reason": "a pair costs more", "dense_macs": 5, "dense_params": 5, "shape": [5, 1]}


def written(folder: Path, value: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_scheme_and_rank_or_the_word_dense_suffice(tmp_path: Path) -> None:
    plan = {"a": {"scheme": "channel", "rank": 4}, "b": "dense", "c": {"dense": True}, "d": {"dense": False, **FULL}}
    choices = {"a": PairChoice("channel", 4), "b": "dense", "c": "dense", "d": PairChoice("spatial", 3)}
    assert read_choices(written(tmp_path, plan)) == choices


def test_the_figures_of_a_file_are_kept_and_may_be_stale_or_unknown(tmp_path: Path) -> None:
    stale = {**FULL, "rank": 7, "mood": "cheerful"}
    found = read_plan(written(tmp_path, {"a": FULL, "b": DENSE, "c": stale})).entries
    assert found["a"] == Pair(**FULL)
    assert found["b"] == Dense(**DENSE)
    assert found["c"] == PairChoice("spatial", 7)
    assert [choice_of(entry) for entry in found.values()] == [PairChoice("spatial", 3), "dense", PairChoice("spatial", 7)]


@pytest.mark.parametrize("name", ["plan", "scheme", "rank", "dense", "digest"])
def test_a_layer_may_be_called_like_a_word_of_the_format(tmp_path: Path, name: str) -> None:
    for layer in ({"scheme": "spatial", "rank": 2}, "dense", {"dense": True}):
        wanted = PairChoice("spatial", 2) if isinstance(layer, dict) and "rank" in layer else "dense"
        assert read_choices(written(tmp_path, {name: layer})) == {name: wanted}
        assert read_choices(written(tmp_path, {"macs": 5, "plan": {name: layer}})) == {name: wanted}


def test_a_file_as_written_is_told_from_one_that_was_edited(tmp_path: Path) -> None:
    entries = {"a": Pair(**FULL), "b": Dense(**DENSE)}
    value = {"digest": digest(entries), "plan": {"a": FULL, "b": DENSE}}
    assert read_plan(written(tmp_path, value)).as_written
    for a, b in (({**FULL, "rank": 2}, DENSE), ({**FULL, "scheme": "channel"}, DENSE), (FULL, FULL), ("dense", DENSE)):
        assert not read_plan(written(tmp_path, {**value, "plan": {"a": a, "b": b}})).as_written
    assert not read_plan(written(tmp_path, {"a": FULL})).as_written


def test_a_runs_folder_is_its_record(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 1, "plan": {"a": FULL}}), encoding="utf-8")
    assert read_plan(tmp_path).as_written
    assert read_choices(tmp_path) == read_choices(tmp_path / "run.json") == {"a": PairChoice("spatial", 3)}


REFUSED = {
    "no JSON": ('{\n  "a": "dense",\n}', r"plan\.json:3: not JSON: .*column 1"),
    "half of it": ('{"a": {"scheme": "spat', r"plan\.json:1: not JSON"),
    "endless brackets": ("[" * 100_000, r"plan\.json is not JSON"),
    "a number of a million digits": (
        '{"a": {"scheme": "spatial", "rank": ' + "9" * 10_000 + "}}",
        r"plan\.json is not JSON",
    ),
    "a list": ([1, 2], r"invalid plan .*plan\.json: it is \[1, 2\]"),
    "a number": (3, r"invalid plan .*plan\.json: it is 3"),
    "nothing in it": ({}, r"plan\.json: the plan is empty"),
    "an empty plan": ({"plan": {}}, r"plan\.json: the plan is empty"),
    "a plan that is a list": ({"plan": [1]}, r"plan\.json: invalid plan \[1\]: expected a mapping of layers"),
    "a layer twice": ('{"a": "dense", "a": "dense"}', r"plan\.json: duplicate name 'a'"),
    "a rank alone": ({"a": 12}, r"layer 'a' is 12; expected \{\"scheme\": \"spatial\", \"rank\": 12\} or \"dense\""),
    "another word": ({"a": "Dense"}, r"layer 'a' is \"Dense\"; expected .*\"dense\""),
    "a long list": ({"a": list(range(99))}, r"layer 'a' is \[0, 1, 2.{40,60}…; "),
    "no scheme": ({"a": {"rank": 2}}, r"layer 'a' has no scheme; "),
    "a misspelt rank": ({"a": {"scheme": "spatial", "rnak": 2}}, r"layer 'a' has no rank; did you mean 'rnak'"),
    "an unknown scheme": ({"a": {"scheme": "spacial", "rank": 2}}, "unknown scheme \"spacial\"\nDid you mean 'spatial'"),
    "a scheme of another type": (
        {"a": {"scheme": ["spatial"], "rank": 2}},
        r"unknown scheme \[\"spatial\"\]",
    ),
    "rank 0": (
        {"a": {"scheme": "spatial", "rank": 0}},
        "layer 'a': invalid rank 0: expected at least 1\nTo keep the layer dense",
    ),
    "a negative rank": ({"a": {"scheme": "spatial", "rank": -2}}, "invalid rank -2: expected at least 1"),
    "half a rank": ({"a": {"scheme": "spatial", "rank": 2.5}}, "invalid rank 2.5: expected a whole number"),
    "a rank in quotes": ({"a": {"scheme": "spatial", "rank": "2"}}, 'invalid rank "2": expected a whole number'),
    "true for a rank": ({"a": {"scheme": "spatial", "rank": True}}, "invalid rank true: expected a whole number"),
    "null for a rank": ({"a": {"scheme": "spatial", "rank": None}}, "invalid rank null: expected a whole number"),
    "NaN for a rank": (
        '{"a": {"scheme": "spatial", "rank": NaN}}',
        r"is not JSON: NaN is not a number",
    ),
    "dense and a rank": (
        {"a": {**DENSE, "scheme": "spatial", "rank": 2}},
        "layer 'a' is dense, but also has a scheme or a rank",
    ),
    "maybe dense": ({"a": {"dense": "yes"}}, "layer 'a': dense is \"yes\"; expected true or false"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_plan_is_refused_with_file_layer_and_what_was_wanted(tmp_path: Path, what: str) -> None:
    value, words = REFUSED[what]
    with pytest.raises(InputError, match=words) as caught:
        read_plan(written(tmp_path, value))
    assert str(tmp_path / "plan.json") in str(caught.value)


def test_a_folder_without_a_run_and_a_run_that_was_only_trained_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"invalid run .*: it has no run\.json"):
        read_plan(tmp_path)
    (tmp_path / "run.json").write_text('{"plan": {}}', encoding="utf-8")
    with pytest.raises(InputError, match="only trained"):
        read_plan(tmp_path)


def test_a_file_that_is_not_there_or_empty_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*plan\.json"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(InputError, match=r"empty file: .*plan\.json"):
        read_plan(written(tmp_path, ""))


def test_a_planned_latency_has_units_in_its_fields_and_the_keys_of_older_files_in_its_json() -> None:
    keys = {
        "target": "local",
        "threads": 1,
        "dense": 4.0,
        "predicted": 2.0,
        "measured": 2.5,
        "ratio": 0.6,
        "ratio_iqr": [0.5, 0.7],
    }
    latency = PlannedLatency.model_validate_json(json.dumps(keys))
    assert (latency.dense_ms, latency.predicted_ms, latency.measured_ms) == (4.0, 2.0, 2.5)
    for written in (latency.model_dump(mode="json"), json.loads(latency.model_dump_json())):
        assert {key: written[key] for key in keys} == keys
        assert not any(key.endswith("_ms") for key in written)
        assert PlannedLatency.model_validate(written) == latency

"""Markdown for model cards and pull requests, and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from markdown_it import MarkdownIt

from lrexport.report.cards import render
from lrexport.report.json_report import runs_to_json
from lrexport.report.reported_run import read_subjects
from tests.report.runs import HOSTILE, NAMES, write_run


def _parts(card: str) -> tuple[dict[str, object], str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_front_matter_is_yaml_with_the_measured_accuracies(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    head, body = _parts(render(read_subjects([tmp_path / "run"])))
    assert head["pipeline_tag"] == "image-classification"
    assert "lrexport" in head["tags"]  # type: ignore[operator]
    (entry,) = head["model-index"]  # type: ignore[misc]
    (result,) = entry["results"]
    assert result["dataset"] == {"type": "digits", "name": "digits", "split": "test"}
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "top-1 accuracy": 0.95,
        "top-5 accuracy": 1.0,
    }
    assert "| MACs | 351.00K | 175.50K | 0.50× |" in body
    assert "counted on the exported graph" in body


def test_without_data_there_is_no_accuracy_in_the_front_matter_and_without_it_no_front_matter(tmp_path: Path) -> None:
    write_run(tmp_path / "run", data=None)
    subjects = read_subjects([tmp_path / "run"])
    head, _ = _parts(render(subjects))
    assert set(head) == {"library_name", "tags"}
    assert render(subjects, with_front_matter=False).startswith("# samples&#58;network, compressed\n")


def test_several_runs_are_compared_with_their_fronts(tmp_path: Path) -> None:
    write_run(tmp_path / "a", share=0.5)
    write_run(tmp_path / "b", share=0.3, top1=0.9)
    head, body = _parts(render(read_subjects([tmp_path / "a", tmp_path / "b"])))
    assert len(head["model-index"]) == 2  # type: ignore[arg-type]
    assert "## Accuracy against MACs" in body
    assert "## Accuracy against latency on local" in body


def test_no_name_becomes_markup(tmp_path: Path) -> None:
    for number, name in enumerate(HOSTILE):
        write_run(tmp_path / f"run{number}", HOSTILE, model=f"{name}\n---\nlicense: mit", data=name, goal={"plan": name})
    subjects = read_subjects(sorted(tmp_path.iterdir()))
    head, body = _parts(render(subjects))
    assert "license" not in head
    assert len(head["model-index"]) == len(HOSTILE)  # type: ignore[arg-type]
    # Raw HTML in the source is what we put there ourselves.
    tokens = [
        child for token in MarkdownIt("commonmark").enable("table").parse(body) for child in (token, *(token.children or ()))
    ]
    raw = {token.content.strip() for token in tokens if token.type in ("html_inline", "html_block")}
    assert raw <= {"<code>", "</code>", "<!-- -->"}
    assert not [token for token in tokens if token.type in ("link_open", "strong_open", "image", "code_inline")]


def test_json_has_figures_as_numbers_and_null_where_nothing_was_measured(tmp_path: Path) -> None:
    write_run(tmp_path / "run", HOSTILE)
    write_run(tmp_path / "bare", data=None, milliseconds=None)
    found = json.loads(json.dumps(runs_to_json(read_subjects([tmp_path / "run", tmp_path / "bare"])), allow_nan=False))
    run, bare = found["runs"]
    assert run["ratios"] == {
        "macs": 0.5,
        "params": 0.5,
        "bytes": 8775 / 17550,
        "latency": {"local": 0.6},
        "top1_change": 0.95 - 0.96,
    }
    assert bare["ratios"] == {"macs": 0.5, "params": 0.5, "bytes": None, "latency": {}, "top1_change": None}
    assert list(run["layers"]) == list(HOSTILE)  # as they are: machines need no escaping
    assert run["layers"][HOSTILE[1]]["dense_ms"] > run["layers"][HOSTILE[1]]["ms"] > 0
    assert bare["layers"][NAMES[1]]["ms"] is None
    assert len(run["training"]["svd"]) == 2
    assert [front["cost"] for front in found["fronts"]] == ["MACs", "latency on local"]
    assert runs_to_json(read_subjects([tmp_path / "run"]))["fronts"] == []

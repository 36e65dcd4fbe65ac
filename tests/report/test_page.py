"""The HTML page as text: complete without JavaScript, nothing from outside, no name is markup. test_browser.py opens it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from lrexport.artifacts.run_files import LOG, SPECTRA
from lrexport.artifacts.toml_files import parse
from lrexport.report.page import render as page
from lrexport.report.reported_run import read_subjects
from tests.report.runs import HOSTILE, NAMES, write_run

ROOT = Path(__file__).parents[2]


class Text(HTMLParser):
    """What a reader without JavaScript sees, and what the elements are."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.words)


@pytest.fixture(autouse=True)
def _small_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plotly's five megabytes have nothing to do with these tests."""
    monkeypatch.setattr(page, "_plotly_js", lambda: "/* plotly */")


def _page(*runs: Path) -> tuple[str, Text]:
    source = page.render(read_subjects(runs), "0.0")
    return source, Text(source)


def test_every_figure_of_every_chart_is_in_a_table(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    _, found = _page(tmp_path / "run")
    for text in ("0.50×", "351.00K → 175.50K, counted on the exported graph", "1.00 ms → 0.600 ms", "−1.00 points",
                 "6/24", "0.200 ms", "held-out top-1", "90.00 %", "Sample CPU @ 2 GHz",
                 "lrexport compress samples:network --data digits", *NAMES):  # fmt: skip
        assert text in found.text, text
    charts = [attributes for _, attributes in found.elements if attributes.get("role") == "img"]
    assert len(charts) == 7  # spectra, ranks, three costs, two of training
    assert all(len(chart["aria-label"] or "") > 20 for chart in charts)


def test_tables_headings_and_regions_are_what_a_screen_reader_needs(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", share=0.4)
    for runs in ((tmp_path / "a",), (tmp_path / "a", tmp_path / "b")):
        _, found = _page(*runs)
        tags = [tag for tag, _ in found.elements]
        assert found.elements[tags.index("html")][1]["lang"] == "en"
        assert tags.count("main") == tags.count("h1") == 1
        levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
        assert all(after <= before + 1 for before, after in pairwise(levels))
        ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        for tag, attributes in found.elements:
            if "scroll" in (attributes.get("class") or "").split():
                assert attributes["tabindex"] == "0"
                assert attributes["aria-label"]
            if tag == "th":
                assert attributes["scope"] in ("row", "col")
            if tag == "a":
                assert (attributes["href"] or "")[1:] in ids


def test_nothing_is_fetched_and_only_scripts_with_a_known_hash_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run", HOSTILE)
    source, found = _page(tmp_path / "run")
    for _, attributes in found.elements:
        assert "src" not in attributes
        assert not (attributes.get("href") or "#").startswith(("http", "//", "javascript"))
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    policy = next(attributes["content"] for _, attributes in found.elements if "http-equiv" in attributes) or ""
    assert "default-src 'none'" in policy
    data, *scripts = found.scripts
    assert set(json.loads(data)) >= {"run1-spectra-chart"}
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert source.count("<script") == 3


def test_hostile_names_are_text(tmp_path: Path) -> None:
    for number, name in enumerate(HOSTILE):
        record = write_run(tmp_path / f"run{number}", HOSTILE, model=name, data=name, goal={"plan": name})
        record.notes = [name]
        record.environment = {name: [name], "cpu": name}
        record.save(tmp_path / f"run{number}")
    source, found = _page(*sorted(tmp_path.iterdir()))
    assert HOSTILE[0] in found.text
    assert HOSTILE[1] in found.text
    assert "\u202e" not in source  # made visible
    assert "\\u202enoitceridni\\x0asecond line: {{ 7 * 7 }} ${7*7} $(touch owned) &lt;i&gt;" in found.text
    assert {tag for tag, _ in found.elements}.isdisjoint({"img", "b", "i", "iframe"})


def test_what_an_old_run_does_not_hold_is_said_with_the_command_that_gets_it(tmp_path: Path) -> None:
    record = write_run(tmp_path / "run", milliseconds=None, data=None, trained=False)
    (tmp_path / "run" / SPECTRA).unlink()
    (tmp_path / "run" / LOG).unlink()
    del record.files[SPECTRA]
    record.save(tmp_path / "run")
    _, found = _page(tmp_path / "run")
    for text in (
                 "did not store them; lrexport compress makes", "Time by layer was not measured: lrexport onnx RUN",
                 "Nothing was trained in this run", "not measured", "lrexport onnx RUN writes it",
                 "counted on the torch network"):  # fmt: skip
        assert text in found.text, text
    assert "0.00 ms" not in found.text


def test_a_warning_stands_with_the_figure_that_it_is_about(tmp_path: Path) -> None:
    write_run(tmp_path / "run", milliseconds=1.2)
    assert "slower than the dense network" in _page(tmp_path / "run")[1].text


def test_a_report_starts_without_torch_and_markdown_without_the_extra(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    code = "import sys; from lrexport.cli.main import run; code = run(['report', sys.argv[1], '-o', sys.argv[2]]); "
    code += "print(code, sorted({'torch', 'onnx', 'onnxruntime', 'plotly', 'jinja2'} & set(sys.modules)))"
    for name, loaded in (("page.html", ["jinja2", "plotly"]), ("card.md", [])):
        command = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == f"0 {loaded}"
        assert (tmp_path / name).stat().st_size > 500


def test_all_files_of_the_page_are_package_data() -> None:
    settings = parse((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = settings["tool"]["setuptools"]["package-data"]
    for file in (ROOT / "lrexport").rglob("*"):
        if file.is_file() and file.suffix not in (".py", ".pyc"):
            package = ".".join(file.parent.relative_to(ROOT).parts)
            assert any(fnmatch(file.name, pattern) for pattern in shipped.get(package, ())), file

"""The pages are true: their Python runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from lrexport.artifacts.toml_files import parse, read_settings
from lrexport.budget.limits import read_budgets
from lrexport.cli.main import cli, run
from lrexport.runs.record import load_record
from tools.run_readme import CONTINUED, commands, configuration

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
}
README, BUDGETS = PAGES["README.md"], PAGES["docs/budgets.md"]
MODELS, PYTHON = PAGES["docs/models.md"], PAGES["docs/python.md"]
# Commands at least, by page that shows any; CONTRIBUTING.md and the benchmarks' show those of other programs.
COMMANDS = {
    "README.md": 12,
    "docs/budgets.md": 5,
    "docs/compress.md": 4,
    "docs/configuration.md": 5,
    "docs/data.md": 1,
    "docs/export.md": 6,
    "docs/models.md": 5,
    "docs/report.md": 5,
    "docs/sweep.md": 3,
    "docs/latency.md": 8,
    "docs/runtimes.md": 8,
    "docs/training.md": 8,
    "docs/ship/android.md": 6,
    "docs/ship/browser.md": 6,
    "docs/ship/ios.md": 3,
    "docs/ship/linux.md": 4,
    "docs/ship/microcontroller.md": 3,
    "docs/ship/raspberry-pi.md": 3,
}


def test_the_training_loop_runs_as_written_with_nothing_supplied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    in_one_call, saved, rebuilt, code, with_images = re.findall(r"```python\n(.*?)```", PYTHON, re.DOTALL)
    names: dict[str, Any] = {}
    for part in (in_one_call + saved + rebuilt, code, with_images):
        exec(part, names)
        assert names["small"](names["images"]).shape == (len(names["images"]), 10)
        if part.endswith(rebuilt):
            torch.testing.assert_close(names["network"](names["images"]), names["small"](names["images"]))
        Path("model.onnx").unlink()


def test_the_page_on_python_lists_every_public_function() -> None:
    import lrexport

    for name in lrexport.__all__:
        assert f"`{name}`" in PYTHON or f"`lrexport.{name}`" in PYTHON, name


@pytest.mark.parametrize("page", COMMANDS)
def test_every_command_parses(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").touch()
    lines = commands(PAGES[page])
    assert len(lines) >= COMMANDS[page]
    for line in lines:
        program, name, *arguments = shlex.split(line)
        assert program == "lrexport"
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, line
        command.make_context(name, arguments)


def test_every_page_that_shows_commands_is_tested_here() -> None:
    pages = {page: text for page, text in PAGES.items() if page.startswith(("README", "docs/"))}
    assert {page for page, text in pages.items() if commands(text)} == set(COMMANDS)
    assert set(CONTINUED) <= set(COMMANDS)
    for page, text in pages.items():
        assert not re.search(r"^(    |\t)lrexport ", text, re.MULTILINE), f"{page}: commands stand in sh blocks"


def test_the_network_of_ones_own_is_compressed_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", MODELS, re.DOTALL)
    (code,) = (block for block in blocks if "mynet" in block.splitlines()[0])
    Path(code.splitlines()[0].removeprefix("# ")).write_text(code, encoding="utf-8")
    weights = importlib.import_module("mynet").make().state_dict()
    average = {name: tensor.clone() for name, tensor in weights.items()}
    torch.save({"state_dict": weights, "state_dict_ema": average, "epoch": 3}, "last.pth")
    own = [shlex.split(line)[1:] for line in commands(MODELS) if "mynet:make" in line]
    assert [run(arguments) for arguments in own] == [0, 0, 0]
    assert load_record(Path("run")).model.kwargs == {"width": 32}
    assert load_record(Path("run-64")).model.input_shape == (3, 64, 64)


@pytest.mark.parametrize("text", [README, BUDGETS], ids=["README", "budgets"])
def test_every_configuration_is_one(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(configuration(text), encoding="utf-8")
    budgets = read_budgets(read_settings(str(path)))
    assert len(budgets) == text.count("[tool.lrexport.budget.")
    assert len(budgets[0].limits) >= 6
    assert all(budget.limits for budget in budgets)


def test_every_link_into_the_project_leads_somewhere() -> None:
    for page, text in PAGES.items():
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
            path = (ROOT / page).parent / target if target else ROOT / page
            assert path.exists(), f"{page}: {target}"
            if anchor:
                assert anchor in set(_anchors(path.read_text(encoding="utf-8"))), f"{page}: {target}#{anchor}"


def _anchors(text: str) -> Iterator[str]:
    """Of every heading, as GitHub makes them: lower case, no punctuation, hyphens for spaces."""
    outside_of_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for heading in re.findall(r"^#+ (.*)$", outside_of_code, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_the_readme_leads_to_every_page() -> None:
    for page in PAGES:
        if page.startswith("docs/ship/") and page != "docs/ship/README.md":
            assert f"]({page.removeprefix('docs/ship/')})" in PAGES["docs/ship/README.md"], page
        elif page.startswith("docs/"):
            assert f"]({page}" in README, page


def test_the_readme_is_short_enough_to_be_read_to_its_end() -> None:
    assert len(README.split()) < 850


def test_the_architecture_page_names_every_room_and_only_files_that_exist() -> None:
    page = PAGES["docs/architecture.md"]
    files = {path.name for path in (ROOT / "lrexport").rglob("*.py")}
    for named in re.findall(r"`([\w/.]+)`", page):
        if named.startswith(("lrexport/", "tests/")):
            assert (ROOT / named).exists(), named
        elif named.endswith(".py"):
            assert named in files, named
    for room in (ROOT / "lrexport").iterdir():
        if not room.name.startswith("__") and (room.suffix == ".py" or any(room.glob("*.py"))):
            assert room.name in page, room.name


def test_the_places_that_the_architecture_page_names_have_what_it_says() -> None:
    places = re.findall(r"`([\w/]+\.py): ([^`]+)`", PAGES["docs/architecture.md"])
    assert len(places) >= 8
    for path, names in places:
        text = "".join(one.read_text(encoding="utf-8") for one in ROOT.glob(path if "/" in path else f"lrexport/**/{path}"))
        for name in re.findall(r"[A-Za-z_]\w*", names.partition("(")[0]):
            assert re.search(rf"\b{name}\b", text), f"{path}: {name}"


def _rows(heading: str) -> list[list[str]]:
    """The table below a heading of the architecture page, cell by cell, without its first two lines."""
    section = PAGES["docs/architecture.md"].split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]


def test_the_rooms_stand_in_the_order_of_the_layers() -> None:
    contracts = parse((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    places: dict[str, tuple[int, ...]] = {}
    for contract in (contract for contract in contracts if contract["type"] == "layers"):
        package = contract["containers"][0]
        for layer, names in enumerate(contract["layers"]):
            for name in re.split(r"[|:]", names):
                places.setdefault(f"{package}.{name.strip()}", (*places.get(package, ()), layer))
    listed = []
    for room, *_ in _rows("The rooms"):
        first, *others = re.findall(r"`([\w/.]+)`", room)
        folder = first.rpartition("/")[0]
        modules = [path.removesuffix(".py").replace("/", ".") for path in (first, *(f"{folder}/{name}" for name in others))]
        for module in modules:
            known = module
            while known not in places:  # measure is not divided by layers
                known = known.rpartition(".")[0]
            listed.append((places[known], module))
    assert [module for _, module in sorted(listed, key=lambda each: each[0])] == [module for _, module in listed]
    rooms = {place.split(".")[1] for place in places if place.startswith("lrexport.")} - {"__main__"}
    assert {module.split(".")[1] for _, module in listed} == rooms


def test_equations_stand_and_are_tested_where_the_architecture_page_says() -> None:
    rows = _rows("Where the paper's equations are")
    assert [number for number, *_ in rows] == ["1", "2", "3", "4", "spatial and channel decomposition"]
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "lrexport" / "lowrank").rglob("*.py")]
    for number, _, where, tested in rows:
        file, *tests = re.findall(r"`([\w/.]+)`", tested)
        text = (ROOT / file).read_text(encoding="utf-8")
        assert all(f"def {name}(" in text for name in tests), tested
        if number.isdigit():
            assert tests
            name = where.split("`")[1]
            (definition,) = [part for text in sources for part in text.split("\ndef ") if part.startswith(f"{name}(")]
            assert f"quation {number}" in definition, name


def test_every_test_that_a_page_names_exists() -> None:
    for page, text in PAGES.items():
        for named in re.findall(r"[\w/]*test_\w+\.py", text):
            assert (ROOT / named).exists() or (ROOT / "tests" / named).exists(), f"{page}: {named}"


def test_the_files_of_the_configuration_page_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings, printed = re.findall(r"```toml\n(.*?)```", PAGES["docs/configuration.md"], re.DOTALL)
    Path("pyproject.toml").write_text(settings, encoding="utf-8")
    Path("printed.toml").write_text(printed, encoding="utf-8")
    assert run(["compress", "resnet20", "--print-config"]) == 0
    shown = capfd.readouterr().out
    assert "threads = 2  # file pyproject.toml:2" in shown
    assert "seed = 3  # file pyproject.toml:5" in shown
    assert run(["compress", "resnet20", "--recipe", "printed.toml", "--print-config"]) == 0
    assert "lr = 0.001  # recipe printed.toml" in capfd.readouterr().out


# Turns of phrase that readers stumble over; each has a plain one: again, reported, overrides, expected, if, separate.
_STUMBLES = r"\b(anew|told|goes before|was wanted|where there is|of (its|their) own|by itself|what (it|they) comes? to)\b"


def test_the_pages_are_in_plain_english() -> None:
    for page, text in PAGES.items():
        if page.startswith(("README", "CONTRIBUTING", "docs/", "benchmarks/paper/")):
            assert re.findall(_STUMBLES, text) == [], page

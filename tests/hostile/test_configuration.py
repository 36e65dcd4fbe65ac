"""A configuration file with a mistake in it: docs/faults.md, Configuration and foreign code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.hostile.support import Command, listing, nothing_made, write_module

COMMAND = ("compress", "tiny:make", "-o", "out", "--device", "cpu")

MISTAKES = {
    "unknown key": ('seed = 1\nmacz = "50%"\n', 2, "unknown key 'macz'", "Did you mean 'macs'?"),
    "unknown key in a command's table": (
        "[compress]\nsvd-epoch = 3\n",
        2,
        "unknown key 'svd-epoch' in [compress]",
        "'svd-epochs'",
    ),
    "unknown table": ("seed = 1\n\n[compres]\nseed = 2\n", 3, "unknown key 'compres'", "Did you mean 'compress'?"),
    "a key of another command": ("[onnx]\nmacs = 0.5\n", 2, "unknown key 'macs' in [onnx]", ""),
    "text for a number": ('seed = 0\n\nbatch-size = "large"\n', 3, "batch-size = 'large'", "integer"),
    "a fraction for a number": ("svd-epochs = 1.5\n", 1, "svd-epochs = 1.5", "integer"),
    "out of range": ("distill = 7\n", 1, "distill = 7", "range"),
    "a boolean for a number": ("batch-size = true\n", 1, "invalid batch-size: expected one value", "integer"),
    "a number for a boolean": ("compile = 1\n", 1, "invalid compile", "expected true or false, not a number"),
    "a table for a number": ("[seed]\na = 1\n", 1, "invalid seed: expected one value", "integer"),
    "a number for a table": ("compress = 3\n", 1, "invalid 'compress'", "expected a table of options, not a number"),
    "no such choice": ('scheme = "spacial"\n', 1, "scheme = 'spacial'", "'spatial'"),
    "no share": ('[compress]\nmacs = "a half"\n', 2, "macs = 'a half'", ""),
    "a size without a unit": ('[compress]\nsize = "500"\n', 2, "size = '500'", "500KB"),
    "a number for patterns": ("keep = [3]\n", 1, "invalid keep [3]", "a list of strings"),
    "a list that is no shape": ("input-shape = [3, -8]\n", 1, "input-shape = [3, -8]", "one to four numbers"),
    "the same key written with an underscore": ('batch_size = "x"\n', 1, "batch_size = 'x'", "integer"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_lrexport_toml_is_told_with_file_line_and_what_was_wanted(lrexport: Command, what: str) -> None:
    text, line, message, hint = MISTAKES[what]
    Path("lrexport.toml").write_text(text)
    done = lrexport(*COMMAND)
    assert done.code == 2
    assert f"lrexport.toml:{line}: " in done.err
    assert message in done.err
    assert hint in done.err
    assert nothing_made()


def test_a_mistake_in_pyproject_is_told_with_its_line_there(lrexport: Command) -> None:
    Path("pyproject.toml").write_text(
        '[project]\nname = "mine"\n\n[tool.lrexport]\nseed = 1\n\n[tool.lrexport.compress]\nmacz = 0.5\n'
    )
    done = lrexport(*COMMAND)
    assert done.code == 2
    assert "pyproject.toml:8: unknown key 'macz' in [compress]" in done.err
    assert "Did you mean 'macs'?" in done.err
    assert nothing_made()


def test_a_wrong_type_in_pyproject_is_told_with_its_line_there(lrexport: Command) -> None:
    Path("pyproject.toml").write_text('[tool.lrexport]\nmacs = 0.6\nbatch-size = "large"\n')
    done = lrexport(*COMMAND)
    assert done.code == 2
    assert "pyproject.toml:3: batch-size = 'large'" in done.err
    assert nothing_made()


def test_the_line_is_that_of_the_mistake_and_not_of_a_namesake_elsewhere(lrexport: Command) -> None:
    Path("pyproject.toml").write_text('[tool.other]\nseed = "mine"\n\n[tool.lrexport]\nseed = "abc"\n')
    done = lrexport(*COMMAND)
    assert done.code == 2
    assert "pyproject.toml:5: seed = 'abc'" in done.err


def test_the_line_is_that_of_the_table_with_the_mistake(lrexport: Command) -> None:
    Path("lrexport.toml").write_text('seed = 1\n[train]\nseed = 2\n[compress]\nseed = "abc"\n')
    done = lrexport(*COMMAND)
    assert done.code == 2
    assert "lrexport.toml:5: seed = 'abc'" in done.err


def test_a_mistake_in_a_table_on_one_line_has_the_line_of_the_table(lrexport: Command) -> None:
    Path("lrexport.toml").write_text("seed = 1\ncompress = { macz = 0.5 }\n")
    done = lrexport(*COMMAND)
    assert done.code == 2
    assert "lrexport.toml:2: unknown key 'macz' in [compress]" in done.err


def test_a_section_that_is_no_table_is_said(lrexport: Command) -> None:
    Path("pyproject.toml").write_text("[tool]\nlrexport = 3\n")
    done = lrexport(*COMMAND)
    assert done.code == 2
    assert "pyproject.toml:2: invalid 'lrexport': expected a table of options, not a number" in done.err


def test_a_file_that_is_no_toml_is_told_with_the_line(lrexport: Command) -> None:
    Path("lrexport.toml").write_text("seed = 1\nmacs = = 0.5\n")
    done = lrexport(*COMMAND)
    assert done.code == 2
    assert "invalid TOML in lrexport.toml" in done.err
    assert "line 2" in done.err
    assert nothing_made()


def test_a_file_that_is_no_text_is_refused(lrexport: Command) -> None:
    Path("lrexport.toml").write_bytes(b"seed = 1\n# \xff\xfe\n")
    done = lrexport(*COMMAND)
    assert done.code == 2
    assert "invalid TOML in lrexport.toml" in done.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("keep = " + "[" * 100_000, "nested too deeply"),
        ("seed = " + "9" * 5000, "digits"),
        ("\n".join(f"[{'a.' * 900}a{number}]" for number in range(9)), "a key of more than 100 parts"),
        ("seed = 1\nseed = 2\n", "line 2"),
        ("a." * 3000 + "a = 1\n", "a key of more than 100 parts"),  # which takes the parser minutes
        ("[" + "'a' . " * 3000 + "a]\n", "a key of more than 100 parts"),
    ],
)
def test_toml_that_is_too_deep_or_too_long_is_a_mistake_in_the_file(lrexport: Command, content: str, words: str) -> None:
    Path("lrexport.toml").write_text(content)
    done = lrexport(*COMMAND)
    assert done.code == 2
    assert "lrexport.toml" in done.err
    assert words in done.err
    assert nothing_made()


def test_many_dots_in_values_are_no_keys(lrexport: Command) -> None:
    Path("pyproject.toml").write_text(f"[tool.other]\na = '{'.' * 500}'\nb = {['x.y.z'] * 200}\n[tool.lrexport]\nseed = 1\n")
    assert lrexport(*COMMAND, "--macs", "0.5", "--dry-run").code == 0


def test_a_configuration_that_is_not_there_is_named(lrexport: Command) -> None:
    done = lrexport("--config", "mine.toml", *COMMAND)
    assert done.code == 2
    assert "the configuration file mine.toml does not exist" in done.err


def test_a_sound_configuration_is_followed_and_the_command_line_goes_before_it(lrexport: Command) -> None:
    Path("lrexport.toml").write_text('seed = 7\nbatch_size = 16\n[compress]\nmacs = "60%"\ninput-shape = [3, 8, 8]\n')
    done = lrexport(*COMMAND, "--seed", "9", "--json", "record.json")
    assert done.code == 0
    assert '"seed": 9' in Path("record.json").read_text()
    assert '"batch_size": 16' in Path("record.json").read_text()
    assert '"macs": 0.6' in Path("record.json").read_text()


@pytest.mark.parametrize("keep", ['"2"', '["2", "6"]'])
def test_patterns_of_layers_to_keep_stand_in_a_file_alone_or_in_a_list(lrexport: Command, keep: str) -> None:
    Path("lrexport.toml").write_text(f"keep = {keep}\n")
    done = lrexport("compress", "tiny:make", "-o", "out", "--device", "cpu", "--macs", "0.95")
    assert done.code == 0, done.err
    plan = json.loads(Path("out/run.json").read_text())["plan"]
    kept = {name for name, layer in plan.items() if layer.get("kind") == "kept"}
    assert kept == set(json.loads(keep))


def test_an_option_without_a_match_names_layers_that_there_are(lrexport: Command) -> None:
    done = lrexport("compress", "tiny:make", "-o", "out", "--macs", "0.9", "--keep", "body.*")
    assert done.code == 2
    assert "invalid keep pattern 'body.*': no layer matches" in done.err
    assert nothing_made()


BAD_RECIPES = {
    "unknown key": ("seed = 1\nmacz = 0.5\n", "mine.toml:2: unknown key 'macz' in the recipe", "Did you mean 'macs'?"),
    "wrong type": ('seed = 1\nbatch-size = "large"\n', "mine.toml:2: batch-size = 'large'", "integer"),
    "a table": ("seed = 1\n[compress]\nmacs = 0.5\n", "mine.toml:2: unknown key 'compress' in the recipe", ""),
    "another recipe": ('recipe = "fast"\n', "mine.toml:1: unknown key 'recipe' in the recipe", ""),
    "an option of one call": ("resume = true\n", "mine.toml:1: 'resume' decides what one call does", "Give --resume"),
    "an output": ('output = "run"\n', "mine.toml:1: 'output' decides where files are written", "Give --output"),
    "an option of another command": ("rounds = 50\n", "mine.toml:1: unknown key 'rounds' in the recipe", ""),
    "two goals": ("macs = 0.5\nenergy = 0.1\n", "expected exactly one goal", ""),
    "no TOML": ("macs = = 0.5\n", "invalid TOML in mine.toml", "line 1"),
}


@pytest.mark.parametrize("what", BAD_RECIPES)
def test_a_mistake_in_a_recipe_is_told_with_file_and_line(lrexport: Command, what: str) -> None:
    text, message, hint = BAD_RECIPES[what]
    Path("mine.toml").write_text(text)
    for more in ((), ("--print-config",)):
        done = lrexport(*COMMAND, "--recipe", "mine.toml", *more)
        assert done.code == 2
        assert message in done.err
        assert hint in done.err
        assert nothing_made()


def test_train_checks_the_keys_of_a_recipe_that_it_skips(lrexport: Command) -> None:
    Path("mine.toml").write_text('seed = 1\nmacs = "half"\n')
    done = lrexport("train", *COMMAND[1:], "--recipe", "mine.toml")
    assert done.code == 2
    assert "mine.toml:2: macs = 'half'" in done.err


def test_a_recipe_that_is_not_there_is_refused_with_the_nearest_name(lrexport: Command) -> None:
    done = lrexport(*COMMAND, "--recipe", "paper-cifar")
    assert done.code == 2
    assert "unknown recipe 'paper-cifar'" in done.err
    assert "Did you mean 'paper-cifar10'?" in done.err


CHOSEN = {
    "inspect": ('json = "../victim"\n', "'json' decides where files are written", "--json"),
    "report": ('output = "../victim"\n', "'output' decides where files are written", "--output"),
    "check": ('junit = "../victim"\n', "'junit' decides where files are written", "--junit"),
    "check --markdown": ('markdown = "../victim"\n', "'markdown' decides where files are written", "--markdown"),
    "check --history": ('history = "../victim"\n', "'history' decides where files are written", "--history"),
    "check --update-baseline": ("update-baseline = true\n", "'update-baseline' decides where", "--update-baseline"),
    "compress": ('output = "../victim"\n', "'output' decides where files are written", "--output"),
    "compress --log-to": ('log-to = ["wandb"]\n', "'log-to' decides where training is logged", "--log-to"),
    "compress --download": ("download = true\n", "'download' decides where files are written", "--download"),
    "compress --data": ('data = "evil:images"\n', "'data' decides which code runs", "--data"),
    "compress --teacher": ('teacher = "evil:net?x=1"\n', "'teacher' decides which code runs", "--teacher"),
    "compress --trust-code": ("trust-code = true\n", "'trust-code' decides which code runs", "--trust-code"),
    "compress --target": ('target = "ssh://evil.example"\n', "'target' decides which machines are reached", "--target"),
    "bench": ('target = "ssh://evil.example"\n', "'target' decides which machines are reached", "--target"),
    "onnx": ('data = "evil:images"\n', "'data' decides which code runs", "--data"),
    "sweep": ('storage = "sqlite:////tmp/victim"\n', "'storage' decides which machines are reached", "--storage"),
    "demo": ('output = "../victim"\n', "'output' decides where files are written", "--output"),
}


@pytest.mark.parametrize("what", CHOSEN)
@pytest.mark.parametrize("place", ["a table", "the top", "--config"])
def test_a_repositorys_configuration_chooses_no_output_no_target_and_no_code(
    lrexport: Command, finished: Path, what: str, place: str
) -> None:
    Path("victim").write_text("precious")
    Path("repository").mkdir()
    finished.rename("repository/run")
    os.chdir("repository")
    write_module("evil", "open('ran', 'w').close()\n")
    (line, message, option), command = CHOSEN[what], what.split()[0]
    if place == "a table":
        Path("pyproject.toml").write_text(f"[project]\n\n[tool.lrexport.{command}]\n{line}")
    else:
        Path("lrexport.toml" if place == "the top" else "mine.toml").write_text(f"# ours\n\n\n{line}")
    before = listing(Path())
    chosen = ("--config", "mine.toml") if place == "--config" else ()
    done = lrexport(*chosen, command, *(() if command == "demo" else ("run",)))
    assert done.code == 2
    file = {"a table": "pyproject.toml", "the top": "lrexport.toml", "--config": "mine.toml"}[place]
    assert f"{file}:4: {message}" in done.err
    assert f"Give {option} on the command line." in done.err
    assert listing(Path()) == before
    assert Path("../victim").read_text() == "precious"


def test_data_and_teachers_without_code_may_stand_in_a_file(lrexport: Command) -> None:
    Path("lrexport.toml").write_text('[compress]\ndata = "folder:pictures"\nteacher = "torchvision:resnet18"\n')
    done = lrexport(*COMMAND, "--macs", "0.5", "--print-config")
    assert done.code == 0, done.err
    assert 'data = "folder:pictures"  # file lrexport.toml:2' in done.out


def test_what_no_file_may_say_is_printed_apart(lrexport: Command) -> None:
    options = ("--data", "users:images", "--target", "local", "--download")
    done = lrexport(*COMMAND, "--macs", "0.5", "--print-config", *options)
    assert done.code == 0, done.err
    for line in ('# data = "users:images"  # option', '# target = "local"  # option', "# download = true  # option"):
        assert line in done.out.splitlines()


def test_the_baseline_that_a_file_names_is_not_written(lrexport: Command, finished: Path) -> None:
    Path("victim").write_text("precious")
    Path("lrexport.toml").write_text('[budget]\nmax_bytes = "1 MB"\n[check]\nbaseline = "victim"\n')
    done = lrexport("check", finished, "--update-baseline")
    assert done.code == 2
    assert "--update-baseline would write victim, which a configuration file chose" in done.err
    assert Path("victim").read_text() == "precious"

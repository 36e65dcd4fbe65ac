"""The GitHub Action, the examples and the hook: they parse, and their commands are ones that lrexport has."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from lrexport.cli.main import cli
from tests.budget.support import sample  # noqa: F401

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def _step(name: str) -> dict[str, Any]:
    return next(step for step in ACTION["runs"]["steps"] if step["name"] == name)


def _parses(line: str) -> None:
    program, name, *arguments = shlex.split(line)
    assert program == "lrexport"
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, arguments)


def test_no_input_of_the_action_is_pasted_into_a_script() -> None:
    for step in ACTION["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]
        subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)
    used = set(re.findall(r"inputs\.(\w+)", json.dumps(ACTION["runs"])))
    assert used == set(ACTION["inputs"])


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("models", "settings", "status"),
    [
        pytest.param("", {}, 0, marks=pytest.mark.slow),
        ("exports/small.onnx\nrun\n", {}, 0),
        ("$(touch owned)", {}, 2),
        ("--help", {}, 2),
        pytest.param("", {"CONFIG": "strict.toml", "BASELINE": "run"}, 0, marks=pytest.mark.slow),
        ("", {"CONFIG": "strict.toml", "STRICT": "true"}, 1),
    ],
)
def test_the_check_of_the_action_runs_and_hands_on_its_exit_code(
    tmp_path: Path, models: str, settings: dict[str, str], status: int
) -> None:
    Path("strict.toml").write_text('[budget]\npath = "run"\nmax_latency_ratio = "0.62x"\n')
    environment = {"MODELS": models, "CONFIG": "", "BASELINE": "", "STRICT": "false", **settings}
    environment |= {"RUNNER_TEMP": str(tmp_path), "GITHUB_OUTPUT": str(tmp_path / "output")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", _step("Check")["run"]]
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)
    outputs = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
    assert outputs["exit-code"] == str(status)
    assert not Path("owned").exists()
    if status < 2:
        assert json.loads(Path(outputs["json"]).read_text())["exit_code"] == status
        assert Path(outputs["markdown"]).read_text().startswith("<!-- lrexport check")
    ended = subprocess.run(["bash", "-c", _step("Verdict")["run"]], env={"STATUS": outputs["exit-code"]}, check=False)
    assert ended.returncode == status


def _evil(*names: str) -> None:
    """Modules of a pull request that say so when they run."""
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f"import pathlib; pathlib.Path({str(Path('ran').resolve())!r}).touch()\n")


def test_no_code_and_no_settings_of_the_workspace_reach_the_install_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workspace").mkdir()
    monkeypatch.chdir(tmp_path / "workspace")
    _evil("pip/__init__.py", "pip/__main__.py", "sitecustomize.py", "usercustomize.py", "site.py", "encodings.py")
    Path("setup.cfg").write_text("[install]\nprefix = elsewhere\n")
    environment = {
        "ACTION": str(tmp_path / "absent"),
        "RUNNER_TEMP": str(tmp_path),
        "PYTHONPATH": f".{os.pathsep}{Path.cwd()}",
    }
    environment |= {"PIP_NO_INDEX": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", _step("Install")["run"]]
    done = subprocess.run(command, env={**os.environ, **environment}, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "absent/constraints.txt" in done.stderr, "the real pip has looked for its constraints"
    assert not Path("ran").exists()
    assert all("python -I -m pip" in line for line in _step("Install")["run"].splitlines() if "pip install" in line)


@pytest.mark.usefixtures("sample")
def test_no_module_of_the_workspace_runs_in_the_check_step(tmp_path: Path) -> None:
    _evil("onnx.py", "numpy.py", "click.py", "sitecustomize.py", "json.py")
    environment = {"MODELS": "exports/small.onnx", "CONFIG": "", "BASELINE": "", "STRICT": "false", "PYTHONPATH": "."}
    environment |= {"RUNNER_TEMP": str(tmp_path), "GITHUB_OUTPUT": str(tmp_path / "output")}
    environment |= {"PYTHONSAFEPATH": _step("Check")["env"]["PYTHONSAFEPATH"]}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", _step("Check")["run"]]
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)
    assert "exit-code=0" in (tmp_path / "output").read_text()
    assert not Path("ran").exists()


GH = """#!{python}
import json, os, sys
path, arguments = os.environ["COMMENTS"], sys.argv[2:]
comments = json.load(open(path)) if os.path.exists(path) else []
body = next((open(word[6:]).read() for word in arguments if word.startswith("body=@")), None)
place = next(word for word in arguments if word.startswith("repos/"))
if body is None:
    print(*(at for at, text in enumerate(comments) if text.startswith(os.environ["marker"])), sep="\\n")
elif "/comments/" in place:
    comments[int(place.split("/")[-1])] = body
else:
    comments.append(body)
json.dump(comments, open(path, "w"))
"""


class Uses:
    """Uses of the Action in one pull request: its steps, one after the other, with a gh that keeps comments in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "gh").write_text(GH.replace("{python}", sys.executable))
        (folder / "bin" / "gh").chmod(0o755)

    @property
    def comments(self) -> list[str]:
        """The body of every comment, without its first line, the marker."""
        return [text.partition("\n")[2] for text in json.loads((self.folder / "comments.json").read_text())]

    def __call__(self, breaks: str = "", **inputs: str) -> None:
        """One use; ``breaks`` is run in place of the check's step."""
        names = ("ID", "MODELS", "CONFIG", "BASELINE")
        environment = {**os.environ, **dict.fromkeys(names, ""), "STRICT": "false", **inputs}
        environment |= {"RUNNER_TEMP": str(self.folder), "GITHUB_OUTPUT": str(self.folder / "output")}
        environment |= {
            "COMMENTS": str(self.folder / "comments.json"),
            "REPOSITORY": "o/r",
            "NUMBER": "7",
            "LOG": "https://log",
        }
        environment["PATH"] = os.pathsep.join([f"{self.folder}/bin", str(Path(sys.executable).parent), os.environ["PATH"]])
        for name in ("Identify", "Check", "Comment"):
            script = breaks if breaks and name == "Check" else _step(name)["run"]
            command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
            (self.folder / "output").touch()
            subprocess.run(command, env=environment, capture_output=True, check=not breaks)
            outputs = dict(line.split("=", 1) for line in (self.folder / "output").read_text().splitlines())
            environment |= {"COMMENT_ID": outputs.get("comment-id", ""), "STATUS": outputs.get("exit-code", "")}
            environment["MARKDOWN"] = outputs.get("markdown", "")
        (self.folder / "output").unlink()


@pytest.fixture
def uses(tmp_path_factory: pytest.TempPathFactory) -> Uses:
    return Uses(tmp_path_factory.mktemp("runner"))


@pytest.mark.slow
@pytest.mark.usefixtures("sample")
def test_two_uses_in_one_pull_request_have_a_comment_each_which_the_next_push_brings_up_to_date(uses: Uses) -> None:
    limit = '[budget]\npath = "exports/small.onnx"\nmax_bytes = "{}"\n'
    Path("a.toml").write_text(limit.format("1 KB"))
    Path("b.toml").write_text(limit.format("1 MB"))
    for _ in range(2):
        uses(CONFIG="a.toml")
        uses(CONFIG="b.toml")
        first, second = uses.comments
        assert "1 of 1 limit failed" in first
        assert "the limit is met" in second
    Path("a.toml").write_text(limit.format("1 MB"))
    uses(CONFIG="a.toml")
    assert ["the limit is met" in comment for comment in uses.comments] == [True, True]
    uses(CONFIG="a.toml", ID="another $(id) -->")
    assert len(uses.comments) == 3


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("a file that is damaged", "1 of 1 limit unreadable"),
        ("a mistake in the configuration", "Exit code 2"),
        pytest.param("a model that is gone", "Exit code 2", marks=pytest.mark.slow),
        pytest.param("a check that crashes", "check: failed", marks=pytest.mark.slow),
        ("a check that never ran", "No limits were checked (exit code unknown): [the log](https://log)"),
        ("an output that cannot be written", "ended unexpectedly (exit code 4)"),
    ],
)
def test_a_use_that_fails_says_so_in_its_comment_and_never_leaves_an_earlier_all_kept(
    uses: Uses, what: str, words: str
) -> None:
    Path("a.toml").write_text('[budget]\npath = "exports/small.onnx"\nmax_bytes = "1 MB"\n')
    uses(CONFIG="a.toml")
    assert "the limit is met" in uses.comments[0]
    breaks = ""
    if what == "a file that is damaged":
        Path("exports/small.onnx").write_bytes(b"\x08\x0a" * 99)
    elif what == "a mistake in the configuration":
        Path("a.toml").write_text('[budget]\npath = "exports/small.onnx"\nmax_byts = "1 MB"\n')
    elif what == "a model that is gone":
        Path("exports/small.onnx").unlink()
    elif what == "a check that crashes":
        breaks = 'echo "exit-code=139" >> "$GITHUB_OUTPUT"'
    elif what == "a check that never ran":
        breaks = "exit 1"
    else:
        breaks = """printf '<!-- lrexport check: %s -->\\nall kept\\n' "$COMMENT_ID" > m.md
            printf "exit-code=4\\nmarkdown=m.md\\n" >> "$GITHUB_OUTPUT" """
    uses(breaks, CONFIG="a.toml")
    (comment,) = uses.comments
    assert words in comment
    assert "limit is met" not in comment


def test_the_comment_step_runs_after_a_step_that_failed() -> None:
    assert _step("Comment")["if"].startswith("(!cancelled())")
    assert ACTION["runs"]["steps"][0]["name"] == "Identify"


def test_the_examples_and_the_hook_parse() -> None:
    workflow = yaml.safe_load((ROOT / "examples" / "ci" / "github-workflow.yml").read_text(encoding="utf-8"))
    (use,) = [step for step in workflow["jobs"]["check"]["steps"] if "lrexport" in step["uses"]]
    assert set(use["with"]) <= set(ACTION["inputs"])
    gitlab = yaml.safe_load((ROOT / "examples" / "ci" / "gitlab-ci.yml").read_text(encoding="utf-8"))
    for line in gitlab["budgets"]["script"]:
        _parses(line)
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    _parses(hook["entry"])
    for name in ("models/a.onnx", "run/run.json", "lrexport-baseline.json", "pyproject.toml", "ci/lrexport.toml", "a.ort"):
        assert re.search(hook["files"], name)
    for name in ("a.onnx.data", "a.data", "weights.bin", "a/weights", "tensors/conv1.weight", "md", "a.py.bin", "a.tflite"):
        assert re.search(hook["files"], name), "external data has any name"
    for name in ("models/onnx.md", "a.py", "docs/a.txt"):
        assert not re.search(hook["files"], name)


def test_a_check_runs_with_the_packages_that_the_action_installs() -> None:
    (line,) = [line for line in _step("Install")["run"].splitlines() if "constraints.txt" in line]
    named = set(line.split('constraints.txt"')[1].split())
    code = "import sys; from lrexport.cli.main import run; run(['check']); print('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests" / "budget" / "sample", capture_output=True, text=True, check=True
    )
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    packages = {module.partition(".")[0] for module in done.stderr.splitlines()} & set(owners)
    imported = {owner.lower() for name in packages for owner in owners[name]}
    brought_by_those = {"pydantic_core", "pydantic-core", "annotated-types", "typing_extensions", "typing-inspection"}
    own = {"lrexport", "setuptools", "distutils-precedence", "coverage"}
    assert imported - brought_by_those - own - named == set()


PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_workflow_runs_make_test_on_every_python_that_is_supported_and_may_only_read() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert "permissions" not in job
    pythons = job["strategy"]["matrix"]["python"]
    assert f'requires-python = ">={pythons[0]}"' in PROJECT
    assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT) == pythons
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test"]
    assert re.search(r"^test:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_slow_tests_run_every_week_and_on_demand_and_may_only_read() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "slow.yml").read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow[True].keys() == {"schedule", "workflow_dispatch"}  # YAML takes the key "on" for a truth value
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1] == {"run": "make test-slow"}


def test_workflow_and_example_use_the_same_versions_of_the_same_actions() -> None:
    workflows = (ROOT / ".github" / "workflows" / name for name in ("test.yml", "slow.yml"))
    texts = [*workflows, ROOT / "examples" / "ci" / "github-workflow.yml"]
    *own, example = (set(re.findall(r"uses: (actions/\S+)", text.read_text(encoding="utf-8"))) for text in texts)
    for actions in own:
        assert actions <= example
        assert all(re.search(r"@v\d+$", action) for action in actions)


def test_the_package_ships_the_marker_of_its_types() -> None:
    assert (ROOT / "lrexport" / "py.typed").is_file()
    assert '"lrexport" = ["py.typed"]' in PROJECT

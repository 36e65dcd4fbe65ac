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
        ("", {}, 0),
        ("exports/small.onnx\nrun\n", {}, 0),
        ("$(touch owned)", {}, 2),
        ("--help", {}, 2),
        ("", {"CONFIG": "strict.toml", "BASELINE": "run"}, 0),
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


def test_the_examples_and_the_hook_parse() -> None:
    workflow = yaml.safe_load((ROOT / "examples" / "ci" / "github-workflow.yml").read_text(encoding="utf-8"))
    (use,) = [step for step in workflow["jobs"]["check"]["steps"] if "lrexport" in step["uses"]]
    assert set(use["with"]) <= set(ACTION["inputs"])
    gitlab = yaml.safe_load((ROOT / "examples" / "ci" / "gitlab-ci.yml").read_text(encoding="utf-8"))
    for line in gitlab["budgets"]["script"]:
        _parses(line)
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    _parses(hook["entry"])
    for name in ("models/a.onnx", "run/run.json", "lrexport-baseline.json", "pyproject.toml"):
        assert re.search(hook["files"], name)
    assert not re.search(hook["files"], "models/onnx.md")


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

"""The README is true: its Python runs, its commands parse, its links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest
import torch

from lrexport.artifacts.toml_files import read_settings
from lrexport.budget.limits import read_budgets
from lrexport.cli.main import cli, run
from lrexport.networks.cifar_resnet import CifarResNet
from lrexport.runs.record import load_record
from tools.run_readme import commands, configuration

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BUDGETS = (ROOT / "docs" / "budgets.md").read_text(encoding="utf-8")
REPORTS = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def test_the_training_loop_runs_as_written_in_under_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, with_images = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    body = [line for line in code.splitlines() if line.strip() and not line.startswith("import")]
    assert len(body) < 10
    model = CifarResNet(20)
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
    # The optimizer comes after decompose, as the README says: give it the network's parameters when they are asked for.
    names = {"model": model, "batches": [(images, labels)] * 2, "optimizer": _Late(model)}
    exec(code, names)
    assert (tmp_path / "model.onnx").is_file()
    plain = names["small"]
    exec(with_images, names)
    for small in (plain, names["small"]):
        assert small(images).shape == (8, 10)  # type: ignore[operator]


class _Late:
    """SGD that takes the network's parameters at its first step."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.sgd = model, None

    def step(self) -> None:
        self.sgd = self.sgd or torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.sgd.step()

    def zero_grad(self) -> None:
        self.model.zero_grad()


@pytest.mark.parametrize(
    ("text", "least"),
    [(README, 8), (BUDGETS, 5), (REPORTS, 5), (TRAINING, 8), (MODELS, 4)],
    ids=["README", "budgets", "reports", "training", "models"],
)
def test_every_command_parses(text: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").touch()
    found = commands(text)
    assert len(found) >= least
    for line in found:
        program, name, *arguments = shlex.split(line)
        assert program == "lrexport"
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, line
        command.make_context(name, arguments)


def test_the_network_of_ones_own_is_compressed_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", MODELS, re.DOTALL)
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
    assert [len(budget.limits) >= 6 for budget in read_budgets(read_settings(str(path)))] == [True]


def test_every_link_into_the_project_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target

"""lrexport keeps its own budget: the demo's network, compressed to the demo's share of MACs, but without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import lrexport
from lrexport.cli.demo import DEFAULT
from lrexport.cli.main import run
from lrexport.networks.cifar_resnet import CifarResNet

ROOT = Path(__file__).parents[1]


def test_the_demo_network_is_within_the_budget_in_pyproject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("pyproject.toml", "lrexport-baseline.json"):
        shutil.copy(ROOT / name, tmp_path)
    DEFAULT.mkdir()
    network = lrexport.decompose(CifarResNet(20), input_shape=(3, 32, 32), scheme="spatial")
    plan = lrexport.select(network, lrexport.Macs(0.5)).plan
    lrexport.export_onnx(lrexport.fold(network, plan), DEFAULT / "model.onnx", input_shape=(3, 32, 32))
    code = run(["check", "--json", "-"])
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert {verdict["key"]: verdict["status"] for verdict in model["verdicts"]} == dict.fromkeys(
        ("max_bytes", "max_macs", "max_macs_growth", "allowed_operators", "max_opset"), "passed"
    )
    assert code == 0

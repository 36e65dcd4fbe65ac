"""Mistakes in options are told before torch is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.budget.support import sample  # noqa: F401

NEW = ("-o", "out", "--macs", "0.5")
# Arguments, exit code, and what is said.
MISTAKES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "an unknown command": (("compres", "resnet20"), 2, "Did you mean compress?"),
    "an unknown option": (("compress", "resnet20", *NEW, "--epochs", "3"), 2, "No such option"),
    "no MODEL": (("compress", *NEW), 2, "Missing argument 'MODEL'"),
    "no folder": (("compress", "resnet20", "--macs", "0.5"), 2, "-o RUN is required"),
    "no goal": (("compress", "resnet20", "-o", "out"), 2, "expected exactly one goal"),
    "two goals": (("compress", "resnet20", *NEW, "--size", "1MB"), 2, "expected exactly one goal"),
    "a goal that cannot be": (("compress", "resnet20", "--macs", "1.5", "-o", "out"), 2, "1.5"),
    "a wrong value": (("compress", "resnet20", *NEW, "--scheme", "spacial"), 2, "spacial"),
    "a wrong type": (("train", "resnet20", "-o", "out", "--data", "digits", "--svd-epochs", "many"), 2, "many"),
    "an unknown MODEL": (("compress", "resnet21", *NEW), 2, "Did you mean resnet32 or resnet20"),
    "one that torchvision has": (("compress", "resnet18", *NEW), 2, "Did you mean torchvision:resnet18"),
    "one that torchvision does not have": (("compress", "torchvision:resnet_18", *NEW), 2, "Close: resnet18"),
    "a folder that is no run": (("compress", "exports", *NEW), 2, "It is a folder, but not a run"),
    "a file": (("compress", "nets.py:make", *NEW), 2, "names a file; expected an import path"),
    "no module": (("compress", "absent.nets:make", *NEW), 2, "no module named 'absent'"),
    "no submodule": (("train", "json.absent:make", "-o", "out", "--data", "digits"), 2, "no module named 'json.absent'"),
    "unknown data": (("compress", "resnet20", *NEW, "--data", "digit"), 2, "Did you mean digits?"),
    "no folder of images": (("compress", "resnet20", *NEW, "--data", "folder:absent"), 3, "folder absent does not exist"),
    "no parts of it": (("compress", "resnet20", *NEW, "--data", "imagenet:exports"), 3, "needs the folders train and val"),
    "no CIFAR": (("compress", "resnet20", *NEW, "--data", "cifar10:absent"), 3, "cannot find cifar10 in absent"),
    "no module of data": (("compress", "resnet20", *NEW, "--data", "absent:images"), 2, "no module named 'absent'"),
    "no weights": (("compress", "resnet20", *NEW, "--weights", "absent.pt"), 3, "cannot read absent.pt"),
    "empty weights": (("compress", "resnet20", *NEW, "--weights", "empty.pt"), 3, "empty file: empty.pt"),
    "an unknown teacher": (("compress", "resnet20", *NEW, "--data", "digits", "--teacher", "resnet65"), 2, "resnet56"),
    "a teacher without weights": (
        ("train", "resnet20", "--data", "digits", "--teacher", "resnet56", "-o", "out"),
        2,
        "the teacher resnet56: it has random weights",
    ),
    "weights without a teacher": (("compress", "resnet20", *NEW, "--teacher-weights", "empty.pt"), 2, "--teacher MODEL"),
    "no plan": (("compress", "resnet20", "--plan", "absent.json", "-o", "out"), 3, "cannot read absent.json"),
    "a wrong plan": (("compress", "resnet20", "--plan", "wrong.json", "-o", "out"), 3, "unknown scheme"),
    "a folder with a run": (("compress", "resnet20", "--macs", "0.5", "-o", "run"), 2, "run already has a run"),
    "several devices and no data": (("compress", "resnet20", *NEW, "--devices", "2"), 2, "several devices require data"),
    "training without data": (("train", "resnet20", "-o", "out"), 2, "lrexport train requires --data"),
    "what training does not know": (
        ("train", "resnet20", "-o", "out", "--data", "digits", "--sparsity-strength", "auto"),
        2,
        "lrexport train has none",
    ),
    "ranks that fall in a run": (
        ("compress", "run", *NEW, "--falling-ranks"),
        2,
        "--falling-ranks needs SVD training, and run has already finished it",
    ),
    "an unknown target": (("bench", "run", "--target", "phone"), 2, "unknown target 'phone'"),
    "a target that is none": (("compress", "resnet20", *NEW, "--target", "ssh://-oProxyCommand=x"), 2, "ssh target"),
    "an absent recipe": (("compress", "resnet20", "-o", "out", "--recipe", "papers"), 2, "unknown recipe 'papers'"),
    "a wrong recipe": (("compress", "resnet20", "-o", "out", "--recipe", "wrong.toml"), 2, "wrong.toml:1: unknown key"),
    "no run to export": (("onnx", "absent"), 2, "the run absent does not exist"),
    "a folder without a run": (("onnx", "exports"), 3, "invalid run exports"),
    "other data that is not there": (("onnx", "run", "--data", "folder:absent"), 3, "folder absent does not exist"),
    "int8 without data": (("onnx", "undata", "--int8"), 2, "--int8 needs samples to calibrate on"),
    "rounds that are too few": (("onnx", "run", "--rounds", "3"), 2, "at least 10 rounds"),
    "a sweep without data": (("sweep", "resnet20", "-o", "out"), 2, "lrexport sweep requires --data"),
    "a space that is none": (("sweep", "resnet20", "-o", "out", "--data", "digits", "--vary", "macs"), 2, "has no values"),
    "a sweep of an unknown MODEL": (("sweep", "resnet21", "-o", "out", "--data", "digits"), 2, "unknown MODEL"),
    "a sweep in a run": (("sweep", "resnet20", "-o", "run", "--data", "digits"), 2, "run holds a run, not a sweep"),
    "no file to measure": (("bench", "absent.onnx"), 2, "absent.onnx does not exist"),
    "no file to inspect": (("inspect", "absent.onnx"), 2, "absent.onnx does not exist"),
    "no run to report": (("report", "absent"), 2, "the run absent does not exist"),
    "code of a record": (("onnx", "foreign"), 3, "foreign/run.json names code that would run as MODEL: os:system()"),
}
PROGRAM = """
import contextlib, io, json, sys
from lrexport.cli.main import run
for what, arguments in json.load(sys.stdin).items():
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = run(arguments)
    print(json.dumps([what, code, said.getvalue(), "torch" in sys.modules or "onnxruntime" in sys.modules]))
"""


@pytest.mark.usefixtures("sample")
def test_mistakes_are_told_before_torch_is_loaded_and_nothing_is_written() -> None:
    record = json.loads(Path("run/run.json").read_text())
    for name, source, data in (("undata", "resnet20", None), ("foreign", "os:system", record["data"])):
        Path(name).mkdir()
        changed = {**record, "data": data, "model": {**record["model"], "source": source, "kwargs": {}}}
        changed["files"]["model.safetensors"] = {"sha256": "0", "bytes": 1}
        Path(name, "run.json").write_text(json.dumps(changed))
    Path("run/run.json").write_text(json.dumps({**changed, "model": record["model"], "data": record["data"]}))
    Path("empty.pt").touch()
    Path("wrong.json").write_text('{"stem": {"scheme": "spacial", "rank": 2}}')
    Path("wrong.toml").write_text("macz = 0.5\n")
    cases = json.dumps({what: arguments for what, (arguments, _, _) in MISTAKES.items()})
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=cases, capture_output=True, text=True, check=True)
    found = {what: (code, said, loaded) for what, code, said, loaded in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == MISTAKES.keys()
    wrong = {
        what: found[what]
        for what, (_, code, message) in MISTAKES.items()
        if (found[what][0], found[what][2]) != (code, False) or message not in " ".join(found[what][1].split())
    }
    assert not wrong
    assert not Path("out").exists()

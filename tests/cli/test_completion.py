"""Shell completion, asked as shells ask: by whole processes, and by bash itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lrexport.cli import completion
from lrexport.measure.runtimes.base import NAMES
from lrexport.networks.names import CIFAR_NAMES

FOLDERS = ("part,imagenet:", "part,folder:", "part,images:", "part,masks:", "part,arrays:")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a run, images, a module; and hosts of ssh."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "sweep/trials/0001", "images/train", "pictures/cats/train"):
        Path(name).mkdir(parents=True)
    for run in ("run", "sweep/trials/0001"):
        Path(run, "run.json").write_text("{}")
    Path("nets.py").write_text("raise SystemExit('must not run')\ndef make(): ...\nclass Net: ...\ndef _hidden(): ...\n")
    Path("broken.py").write_text("def (")
    Path("mine.toml").touch()
    Path("ssh_config").write_text("Host pi jetson\n  HostName 10.0.0.2\nHost *.lab !x bad?\nInclude nothing\nhost=nano\n")
    monkeypatch.setenv("LREXPORT_SSH_CONFIG", str(tmp_path / "ssh_config"))
    return tmp_path


def asked(*words: str, shell: str = "bash") -> list[str]:
    """What a shell gets for a line of words, the last of which is being typed."""
    environment = {
        "_LREXPORT_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "import sys; from lrexport.cli.main import main\ntry: main()\n"
    code += "finally: print({'torch', 'torchvision', 'onnx'} & set(sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "set()"
    return done.stdout.split()


def test_model_is_a_name_a_run_or_the_start_of_a_longer_name() -> None:
    assert asked("lrexport", "compress", "") == [
        *(f"plain,{name}" for name in CIFAR_NAMES),
        "plain,run",
        "part,torchvision:",
        "part,timm:",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["compress", "torchvision", ":", "resnet1"], ["plain,resnet101", "plain,resnet152", "plain,resnet18"]),
        (["compress", "nets", ":"], ["plain,make", "plain,Net"]),
        (["compress", "ne"], ["part,nets:"]),
        (["compress", "broken", ":"], []),
        (["compress", "sw"], ["part,sweep/"]),
        (["compress", "sweep/trials/"], ["plain,sweep/trials/0001"]),
        (["train", "x", "--data", ""], ["plain,digits", "plain,cifar10", "plain,cifar100", *FOLDERS]),
        (["compress", "x", "--data", "folder", ":"], ["plain,images", "part,pictures/", "part,run/", "part,sweep/"]),
        (["onnx", "run", "--data", "folder", ":", "pictures/"], ["plain,pictures/cats"]),
        (["train", "x", "--data", "=", "dig"], ["plain,digits"]),
        (
            ["bench", "--target", ""],
            ["plain,local", "plain,browser", "plain,ssh://pi", "plain,ssh://jetson", "plain,ssh://nano", "part,adb://"],
        ),
        (["bench", "--target", "browser?provider", "=", "web"], ["plain,webgpu"]),
        (["bench", "--target", "adb://?runner", "=", "n"], ["plain,ncnn&program="]),
        (["bench", "--target", "ssh", ":", "//me@j"], ["plain,//me@jetson"]),
        (["bench", "--target", "local?runtime", "=", "n"], ["plain,ncnn"]),
        (["bench", "--target", "local?runtime", "="], [f"plain,{name}" for name in NAMES]),
        (["bench", "--target", "=", "local?runtime", "=", "m"], ["plain,mnn"]),
        (["bench", "--target", "ssh", ":", "//pi?runtime", "=", "o"], ["plain,onnxruntime", "plain,openvino"]),
        (["bench", "--target", "local?"], [f"plain,local?runtime={name}" for name in NAMES]),
        (["compress", "x", "--recipe", "m"], ["plain,mine.toml"]),
        (["compress", "x", "--scheme", "sp"], ["plain,spatial"]),
        (["compress", "x", "--fine"], ["plain,--fine-tune-epochs"]),
        (["comp"], ["plain,compress"]),
    ],
)  # fmt: skip
def test_what_continues_a_word_is_offered(words: list[str], expected: list[str]) -> None:
    assert asked("lrexport", *words) == expected


def test_zsh_and_fish_get_whole_words() -> None:
    assert asked("lrexport", "compress", "torchvision:resnet1", shell="zsh")[:3] == ["plain", "torchvision:resnet101", "_"]


def test_a_name_that_a_terminal_cannot_show_is_left_out() -> None:
    Path("re\x1b[31m\nd").mkdir()
    assert not any("[31m" in item.value for item in completion.items(completion.models("re"), "re"))


def test_without_hosts_the_start_of_an_address_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LREXPORT_SSH_CONFIG", "absent")
    assert list(completion.targets("")) == ["local", "browser", "ssh://", "adb://"]


def test_hosts_of_included_files_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LREXPORT_SSH_CONFIG")
    (tmp_path / ".ssh" / "config.d").mkdir(parents=True)
    (tmp_path / ".ssh" / "config").write_text("Include config.d/*\nInclude config\n")
    (tmp_path / ".ssh" / "config.d" / "boards").write_text('Host "rock" pine\n')
    assert list(completion.targets("")) == ["local", "browser", "ssh://rock", "ssh://pine", "adb://"]


def test_an_unknown_shell_is_a_mistake() -> None:
    command = [sys.executable, "-m", "lrexport"]
    done = subprocess.run(command, env={**os.environ, "_LREXPORT_COMPLETE": "tcsh_source"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected bash_source, zsh_source or fish_source" in done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_behind_the_last_colon(tmp_path: Path) -> None:
    program = tmp_path / "lrexport"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lrexport "$@"\n')
    program.chmod(0o755)
    script = f"""
        PATH="{tmp_path}:$PATH"
        eval "$(_LREXPORT_COMPLETE=bash_source lrexport)"
        compopt() {{ echo "compopt $1 $2"; }}
        COMP_WORDS=(lrexport compress torchvision : resnet5); COMP_CWORD=4
        _lrexport_completion lrexport; echo "${{COMPREPLY[@]}}"
        COMPREPLY=(); COMP_WORDS=(lrexport compress net); COMP_CWORD=2
        _lrexport_completion lrexport; echo "${{COMPREPLY[@]}}"
        COMPREPLY=(); COMP_WORDS=(lrexport compress ""); COMP_CWORD=2
        _lrexport_completion lrexport; echo "${{#COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "resnet50",
        "compopt -o nospace",
        "nets:",
        "compopt -o nospace",
        "compopt -o nospace",
        "8",
    ], done.stderr

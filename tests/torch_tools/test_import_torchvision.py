"""torchvision beside a build of torch that its own library does not load with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USES = "from torchvision.ops import Conv2dNormActivation"
MODULES = {
    "as it is imported": f"{USES}\ndef make():\n    return Conv2dNormActivation(3, 8)\n",
    "as it is called": f"def make():\n    {USES}\n    return Conv2dNormActivation(3, 8)\n",
    "by a package that wraps the error": (
        f"def make():\n    try:\n        {USES}\n    except Exception as error:\n"
        "        raise ModuleNotFoundError('could not import Network') from error\n    return Conv2dNormActivation(3, 8)\n"
    ),
}


@pytest.mark.parametrize(
    "when",
    ["as it is imported", *(pytest.param(when, marks=pytest.mark.slow) for when in [*MODULES][1:])],
)
def test_a_users_module_may_import_torchvision(tmp_path: Path, when: str) -> None:
    (tmp_path / "users.py").write_text(MODULES[when], encoding="utf-8")
    # In a process of its own: in this one torchvision may be there already.
    program = (
        "from lrexport.networks.building import resolve; print(type(resolve('users:make', (3, 8, 8)).build()).__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "Conv2dNormActivation\n", done.stderr

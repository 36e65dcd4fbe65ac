"""What a check imports, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "torchvision", "onnxruntime", "onnx", "numpy"}


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(("model", "light"), [("run", set()), ("exports/small.onnx", {"pydantic", "rich"})])
def test_a_check_imports_nothing_heavy(model: str, light: set[str]) -> None:
    Path("lrexport.toml").write_text('[budget]\nmax_bytes = "1 MB"\nmax_macs = "1M"\nmax_gzip_bytes = "1 MB"\n')
    Path("lrexport-baseline.json").unlink()  # reading one takes pydantic
    code = "import sys; from lrexport.cli.main import run; code = run(['check', sys.argv[1]]); "
    code += "print(code, sorted(set(sys.argv[2:]) & set(sys.modules)), file=sys.stderr)"
    command = [sys.executable, "-c", code, model, *sorted(HEAVY | light)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"
    assert "all 3 limits met" in done.stdout

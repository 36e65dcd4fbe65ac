"""Run every command of the README's `sh` blocks as written, in a fresh folder, then those of pages that continue from there.

It stops at the first command that fails. `make …` and `pip …` lines are skipped: they set up the environment. So are
commands for a board over ssh. The README's `toml` blocks are the folder's pyproject.toml. Takes minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = "README.md"
# Pages whose commands need results of earlier ones, in this order. Lines with files of the reader are skipped.
CONTINUED = ("docs/compress.md", "docs/export.md", "docs/latency.md")
_NOT_HERE = ("ssh://", "detector.onnx", "encoder.onnx")


def commands(page: str) -> list[str]:
    """Lines of all sh blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "make ", "pip "))]


def configuration(page: str) -> str:
    """All toml blocks, one after the other."""
    return "\n".join(re.findall(r"```toml\n(.*?)```", page, re.DOTALL))


def main() -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    pages = {page: (ROOT / page).read_text(encoding="utf-8") for page in (README, *CONTINUED)}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        environment["LREXPORT_CACHE"] = cache  # latencies of layers are measured again
        (Path(folder) / "pyproject.toml").write_text(configuration(pages[README]), encoding="utf-8")
        for page, text in pages.items():
            for command in commands(text):
                if any(name in command for name in _NOT_HERE):
                    continue
                print(f"{page} $ {command}", flush=True)
                subprocess.run(command, shell=True, check=True, cwd=folder, env=environment)


if __name__ == "__main__":
    main()

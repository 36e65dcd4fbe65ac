"""Run every command of the README's `sh` blocks as written, in a fresh folder, and stop at the first that fails.

`make …` and `pip …` lines are left out: they set up what this runs in. The `toml` blocks are its pyproject.toml. Takes a few
minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def commands(readme: str) -> list[str]:
    """Lines of all sh blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "make ", "pip "))]


def configuration(readme: str) -> str:
    """All toml blocks, one after the other."""
    return "\n".join(re.findall(r"```toml\n(.*?)```", readme, re.DOTALL))


def main() -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pyproject.toml").write_text(configuration(readme), encoding="utf-8")
        for command in commands(readme):
            print(f"$ {command}", flush=True)
            subprocess.run(command, shell=True, check=True, cwd=folder, env=environment)


if __name__ == "__main__":
    main()

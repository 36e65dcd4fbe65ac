"""Write constraints.txt: the tested versions for every supported Python, resolved by uv.

Run `pip install uv`, then `python tools/pin_constraints.py`. torch and torchvision belong together and are pinned here.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

PINNED = ("torch==2.13.0", "torchvision==0.28.0")
TESTED = "test"  # the extra with everything that is tested; mlflow and wandb are not, and add dozens of packages
OLDEST_PYTHON = "3.10"
# Parts of torch's CUDA build: constraints on them would only hinder other builds.
SKIPPED = ("nvidia-", "cuda-", "triton")
ROOT = Path(__file__).parent.parent
HEAD = f"""\
# The versions lrexport is tested with. Made by tools/pin_constraints.py; use: pip install -c constraints.txt lrexport
# {" and ".join(PINNED)} belong together.
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        overrides = Path(folder) / "pinned.txt"
        overrides.write_text("\n".join(PINNED), encoding="utf-8")
        command = ["uv", "pip", "compile", "pyproject.toml", "--extra", TESTED, "--universal", "--quiet"]
        command += ["--no-header", "--no-annotate", "--python-version", OLDEST_PYTHON, "--constraint", str(overrides)]
        resolved = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    lines = [line for line in resolved.splitlines() if line and not line.startswith((*SKIPPED, "-"))]
    lines = [line for line in lines if not line.startswith("lrexport")]
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

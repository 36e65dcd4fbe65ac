"""Write constraints.txt: the versions that are tested, for every supported Python, as uv resolves them.

Run `pip install uv`, then `python tools/pin_constraints.py`. torch and torchvision belong together and are pinned here.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

PINNED = ("torch==2.13.0", "torchvision==0.28.0")
TESTED = "test"  # the extra that has all that is tested; mlflow and wandb are not, and bring dozens of packages along
OLDEST_PYTHON = "3.10"
# Parts of the CUDA build of torch: a constraint on them would only get in the way of other builds.
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

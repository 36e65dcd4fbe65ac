"""The names of tasks, known without torch."""

from __future__ import annotations

from lrexport.errors import UsageError
from lrexport.text import nearest

CLASSIFICATION, FIDELITY = "classification", "fidelity"
TASKS = (CLASSIFICATION, "segmentation", "image", "detection", FIDELITY)


def is_own_task(name: str) -> bool:
    """Whether --task is the import path of a user's task."""
    return ":" in name


def check_task(name: str) -> None:
    """Raise UsageError if --task names nothing; the user's code is not loaded."""
    if name in TASKS or is_own_task(name):
        return
    close = nearest(name, TASKS)
    raise UsageError(
        f"invalid task {name!r}: expected {', '.join(TASKS)} or package.module:object",
        f"Did you mean {close[0]!r}?" if close else None,
    )

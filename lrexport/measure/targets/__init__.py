"""Where latency is measured: this machine, or a board over ssh."""

from __future__ import annotations

from lrexport.measure.targets.base import Job, Target
from lrexport.measure.targets.local import Local

__all__ = ["Job", "Target", "parse_target"]


def parse_target(text: str) -> Target:
    """The target that ``text`` names: ``local``. Raises UsageError."""
    return Local()

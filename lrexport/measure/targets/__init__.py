"""Targets, where latency is measured: this machine, or a board over ssh."""

from __future__ import annotations

from lrexport.errors import UsageError
from lrexport.measure.targets.base import MeasuringJob, Target
from lrexport.measure.targets.local import SYNTAX as LOCAL
from lrexport.measure.targets.local import Local, parse_local
from lrexport.measure.targets.ssh import SYNTAX, parse_ssh

__all__ = ["Local", "MeasuringJob", "Target", "parse_target"]


def parse_target(text: str) -> Target:
    """The target named by ``text``: ``local``, or a board as ``ssh://user@host``, with a runtime. Does not connect.

    Raises UsageError.
    """
    if text.partition("?")[0] == "local":
        return parse_local(text)
    if text.startswith("ssh:"):
        return parse_ssh(text)
    if text.startswith("adb:"):
        raise UsageError(f"invalid target {text!r}: phones over adb are not supported yet", f"Known: {LOCAL} and {SYNTAX}.")
    raise UsageError(f"unknown target {text!r}", f"Known: {LOCAL} and {SYNTAX}.")

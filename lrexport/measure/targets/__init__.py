"""Targets, where latency is measured: this machine, a board over ssh, or a phone over adb."""

from __future__ import annotations

from lrexport.errors import UsageError
from lrexport.measure.targets.adb import SYNTAX as ADB
from lrexport.measure.targets.adb import Adb, parse_adb
from lrexport.measure.targets.base import MeasuringJob, Target
from lrexport.measure.targets.local import SYNTAX as LOCAL
from lrexport.measure.targets.local import Local, parse_local
from lrexport.measure.targets.ssh import SYNTAX, parse_ssh

__all__ = ["Local", "MeasuringJob", "Target", "check_times_layers", "parse_target"]


def parse_target(text: str) -> Target:
    """The target named by ``text``: ``local``, or a board as ``ssh://user@host``, with a runtime, or a phone as
    ``adb://serial``. Does not connect.

    Raises UsageError.
    """
    if text.partition("?")[0] == "local":
        return parse_local(text)
    if text.startswith("ssh:"):
        return parse_ssh(text)
    if text.startswith("adb:"):
        return parse_adb(text)
    raise UsageError(f"unknown target {text!r}", f"Known: {LOCAL}, {SYNTAX} and {ADB}.")


def check_times_layers(target: Target) -> None:
    """Raise UsageError unless single layers can be timed on the target."""
    if isinstance(target, Adb):
        target.check_layers()

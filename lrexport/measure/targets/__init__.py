"""Targets, where latency is measured: this machine, a board over ssh, a phone over adb, or a browser."""

from __future__ import annotations

from lrexport.errors import UsageError
from lrexport.events import OnEvent, ignore_events
from lrexport.measure.targets.adb import SYNTAX as ADB
from lrexport.measure.targets.adb import Adb, parse_adb
from lrexport.measure.targets.base import MeasuringJob, Target
from lrexport.measure.targets.browser.target import SYNTAX as BROWSER
from lrexport.measure.targets.browser.target import parse_browser
from lrexport.measure.targets.local import SYNTAX as LOCAL
from lrexport.measure.targets.local import Local, parse_local
from lrexport.measure.targets.ssh import SYNTAX, parse_ssh

__all__ = ["Local", "MeasuringJob", "Target", "check_times_layers", "parse_target"]


def parse_target(text: str, on_event: OnEvent = ignore_events) -> Target:
    """The target named by ``text``: ``local``, a board as ``ssh://user@host``, a phone as ``adb://serial``, or ``browser``.

    Does not connect. ``on_event`` gets what a target has to say while it measures. Raises UsageError.
    """
    if text.partition("?")[0] == "browser":
        return parse_browser(text, on_event)
    if text.partition("?")[0] == "local":
        return parse_local(text)
    if text.startswith("ssh:"):
        return parse_ssh(text)
    if text.startswith("adb:"):
        return parse_adb(text)
    raise UsageError(f"unknown target {text!r}", f"Known: {LOCAL}, {SYNTAX}, {ADB} and {BROWSER}.")


def check_times_layers(target: Target) -> None:
    """Raise UsageError unless single layers can be timed on the target."""
    if isinstance(target, Adb):
        target.check_layers()

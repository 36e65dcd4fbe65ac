"""Errors of a device over ssh, with what to do."""

from __future__ import annotations

import re

from lrexport.errors import DeviceError
from lrexport.measure.targets.base import last_line

# ssh's exit status for its own failures; the shell's for a command that does not exist or cannot be run.
_SSH_FAILED = 255
_NOT_FOUND = (126, 127)
# (ssh's message, its meaning, what to do); the first match counts.
_REASONS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key has changed: it was reinstalled, or someone intercepts the connection",
        "Find out which; if it was reinstalled, remove the old key with ssh-keygen -R, then connect by hand once.",
    ),
    (
        r"No \S+ host key is known|Host key verification failed",
        "its host key is unknown, and unknown keys are not accepted",
        "Connect by hand once and compare the key: {by_hand}",
    ),
    (
        r"Permission denied|Too many authentication failures|no mutual signature",
        "it does not accept this user's key",
        "Copy your key there with ssh-copy-id, or start ssh-agent; then this must work without a prompt: {by_hand}",
    ),
    (
        r"Could not resolve hostname",
        "unknown host",
        "Check the name, or give the address.",
    ),
    (
        r"Connection refused|No route to host|Network is unreachable|Host is down|[Cc]onnect.* timed out",
        "it cannot be reached",
        "Check that it is on, in this network, and that sshd listens on that port. Try: {by_hand}",
    ),
    (
        r"not responding|[Cc]onnection .*closed|[Cc]onnection reset|Broken pipe|[Bb]roken connection",
        "the connection was lost",
        "The device removes what was sent to it. Measure again when it is back.",
    ),
)


def explain(name: str, python: str, status: int, messages: str) -> DeviceError:
    """Why ssh, or the command on the device, ended before the measurement.

    ``status`` is ssh's exit status, ``messages`` the stderr of ssh and the device.
    """
    words = last_line(messages)
    if status == _SSH_FAILED:
        by_hand = f"ssh {name} true"
        for pattern, meaning, hint in _REASONS:
            if re.search(pattern, messages):
                return DeviceError(f"{name}: {meaning} ({words})", hint.format(by_hand=by_hand))
        return DeviceError(f"{name}: ssh failed: {words or 'no message'}", f"Try by hand: {by_hand}")
    if status in _NOT_FOUND or words.startswith("Python is too old"):
        return DeviceError(
            f"{name} cannot use {python}: {words or 'not found'}",
            "Install Python 3.9 or newer there, or give its path: ?python=venv/bin/python",
        )
    if status < 0:
        return DeviceError(f"{name}: ssh was ended by signal {-status}")
    return DeviceError(f"{name} stopped during a measurement: {words or f'exit status {status}'}")

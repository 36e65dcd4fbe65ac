"""What went wrong with a device over ssh, in words that say what to do next."""

from __future__ import annotations

import re

from lrexport.errors import DeviceError
from lrexport.measure.targets.base import last_line

# ssh's own exit status for every failure of its own; the shell's for a command that is not there or cannot be run.
_SSH_FAILED = 255
_NOT_FOUND = (126, 127)
# (what ssh prints, what that means, what to do), the first match counts.
_REASONS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is another one than before: it was installed anew, or somebody stands in between",
        "Find out which; if it was installed anew, forget the old key with ssh-keygen -R, then connect by hand once.",
    ),
    (
        r"No \S+ host key is known|Host key verification failed",
        "its host key is not known here, and none is accepted unseen",
        "Connect by hand once and compare the key: {by_hand}",
    ),
    (
        r"Permission denied|Too many authentication failures|no mutual signature",
        "it does not let this user in by key",
        "Put your key there with ssh-copy-id, or start ssh-agent; then this must work without a question: {by_hand}",
    ),
    (
        r"Could not resolve hostname",
        "there is no host of that name",
        "Look at the name, or give the address.",
    ),
    (
        r"Connection refused|No route to host|Network is unreachable|Host is down|[Cc]onnect.* timed out",
        "it cannot be reached",
        "Is it on, in this network, and does sshd listen at that port? Try: {by_hand}",
    ),
    (
        r"not responding|[Cc]onnection .*closed|[Cc]onnection reset|Broken pipe|[Bb]roken connection",
        "the connection was lost",
        "What was sent there is removed by the device itself. Measure again when it is back.",
    ),
)


def explain(name: str, python: str, status: int, messages: str) -> DeviceError:
    """Why ssh, or the command on the device, ended before the measurement did.

    ``status`` is ssh's exit status, ``messages`` what it and the device wrote on stderr.
    """
    words = last_line(messages)
    if status == _SSH_FAILED:
        by_hand = f"ssh {name} true"
        for pattern, meaning, hint in _REASONS:
            if re.search(pattern, messages):
                return DeviceError(f"{name}: {meaning} ({words})", hint.format(by_hand=by_hand))
        return DeviceError(f"{name}: ssh failed: {words or 'without a word'}", f"Try by hand: {by_hand}")
    if status in _NOT_FOUND or words.startswith("Python is too old"):
        return DeviceError(
            f"{name} cannot use {python}: {words or 'not found'}",
            "Install Python 3.9 or newer there, or say where it is: ?python=venv/bin/python",
        )
    if status < 0:
        return DeviceError(f"{name}: ssh was ended by signal {-status}")
    return DeviceError(f"{name} stopped in the middle of a measurement: {words or f'it ended with {status}'}")

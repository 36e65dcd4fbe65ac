"""Names out of other people's files, made safe to print: on a terminal, in a CI log, in Markdown."""

from __future__ import annotations

import re

# What GitHub's log takes for a command wherever a line begins with the first or holds the second, and how it is broken.
_COMMANDS = _AT_START, _ANYWHERE = ("::", r":\x3a"), ("##[", r"#\x23[")
_LEADING = re.compile(r"^(\s*)::")
# Each has a meaning in CommonMark or in GitHub's and GitLab's own: tables, math, mentions, references, emoji, links, HTML.
_MARKDOWN = re.compile(r"[\\`*_\[\]<>#!|~@:$&]|(?<=www)\.", re.IGNORECASE)
_REFERENCES = "@#!"


def visible(text: str) -> str:
    """One line of visible characters: what is not printable, a newline or a direction mark say, becomes ``\\x0a``."""
    return "".join(char if char.isprintable() else _code(char) for char in text)


def plain(text: str) -> str:
    """:func:`visible`, and commands of CI logs are broken in the same way."""
    shown = visible(text)
    for command, broken in _COMMANDS:
        shown = shown.replace(command, broken)
    return shown


def plain_lines(text: str) -> str:
    """:func:`visible` line by line, for a message of several lines in which no line is a command of a CI log.

    Inside a line ``::`` is none, and stays: names in C++ have it.
    """
    lines = (_LEADING.sub(lambda found: found[1] + _AT_START[1], visible(line)) for line in text.split("\n"))
    return "\n".join(line.replace(*_ANYWHERE) for line in lines)


def markdown(text: str) -> str:
    """Text that stands for itself in Markdown and in a cell of its tables: no markup, link, mention or HTML comes of it.

    Mentions and references are looked for after rendering, so an empty comment stands between their sign and the rest.
    """
    return _MARKDOWN.sub(_entity, plain(text))


def _entity(match: re.Match[str]) -> str:
    return f"&#{ord(match[0])};{'<!-- -->' if match[0] in _REFERENCES else ''}"


def _code(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"

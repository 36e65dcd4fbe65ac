"""Texts: names from foreign files made safe to print, nearest names, first lines of errors, names of options.

Safe on a terminal, in a CI log, in Markdown, in JSON and in a shell.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable
from typing import Any

# What logs of CI take for commands: GitHub "::name::" where a line begins so, and "##[name]" anywhere, as Azure takes
# "##vso[…]" and TeamCity "##teamcity[…]". Broken, they cannot be taken for any.
_AT_START, _BROKEN_START = "::", r":\x3a"
_LEADING = re.compile(r"^(\s*)::")
_ANYWHERE = re.compile(r"##(?=[\w.-]*\[)")
_BROKEN, _BROKEN_IN_JSON = r"#\\x23", r"#\\u0023"
# Each has a meaning in CommonMark or in GitHub's and GitLab's own: tables, math, mentions, references, emoji, links, HTML.
_MARKDOWN = re.compile(r"[\\`*_\[\]<>#!|~@:$&]|(?<=www)\.", re.IGNORECASE)
_REFERENCES = "@#!"


def visible(text: str) -> str:
    """One line of visible characters: what is not printable, a newline or a direction mark say, becomes ``\\x0a``."""
    return "".join(char if char.isprintable() else _code(char) for char in text)


def plain(text: str) -> str:
    """:func:`visible`, and commands of CI logs are broken in the same way, wherever in a line the text will stand."""
    return _ANYWHERE.sub(_BROKEN, visible(text).replace(_AT_START, _BROKEN_START))


def plain_line(text: str) -> str:
    """:func:`visible`, for a whole line, so that a CI log takes it for no command.

    Inside a line ``::`` is none, and stays: names in C++ have it.
    """
    return _ANYWHERE.sub(_BROKEN, _LEADING.sub(lambda leading: leading[1] + _BROKEN_START, visible(text)))


def plain_lines(text: str) -> str:
    """:func:`plain_line` of every line of a text of several."""
    return "\n".join(map(plain_line, text.split("\n")))


def json_text(value: Any, indent: int | None = None, allow_nan: bool = False, ascii_only: bool = False) -> str:
    """JSON that decodes to the same strings and is harmless where it is printed: what is not printable is ``\\u001b``.

    Raises ValueError for NaN and infinity, which JSON does not have, unless they are allowed.
    """
    text = json.dumps(value, indent=indent, allow_nan=allow_nan, ensure_ascii=ascii_only)
    if not text.replace("\n", "").isprintable():  # whatever is not printable is inside a string; newlines are between them
        text = "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
    return _ANYWHERE.sub(_BROKEN_IN_JSON, text)


def toml_text(text: str) -> str:
    """A string of TOML, harmless where it is printed: its escapes are those of JSON, but for characters of four bytes."""
    quoted = json.dumps(text, ensure_ascii=False)
    shown = "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)
    return _ANYWHERE.sub(_BROKEN_IN_JSON, shown)


def shell_word(word: str) -> str:
    """One word of a shell's; what cannot be printed is written as ``$'…'`` has it, which bash, zsh and POSIX 2024 know."""
    if plain(word) == word:
        return shlex.quote(word)
    shown = (char if char.isprintable() and char not in "\\'#:" else _bytes(char) for char in word)
    return f"$'{''.join(shown)}'"


def shell_path(path: str | os.PathLike[str]) -> str:
    """:func:`shell_word` of a path, which is never taken for an option though it begins with ``-``."""
    return shell_word(as_argument(path))


def as_argument(path: str | os.PathLike[str]) -> str:
    """A path as an argument of a command: none that begins with ``-`` is taken for an option."""
    text = os.fspath(path)
    return f"./{text}" if text.startswith("-") else text


def markdown(text: str) -> str:
    """Text that stands for itself in Markdown and in a cell of its tables: no markup, link, mention or HTML comes of it.

    Mentions and references are looked for after rendering, so an empty comment stands between their sign and the rest.
    """
    return _MARKDOWN.sub(_entity, plain(text))


def _entity(match: re.Match[str]) -> str:
    return f"&#{ord(match[0])};{'<!-- -->' if match[0] in _REFERENCES else ''}"


def _bytes(char: str) -> str:
    # A file's name that is no UTF-8 has its bytes as these; any other surrogate came out of JSON.
    is_byte = "\udc80" <= char <= "\udcff"
    return "".join(f"\\x{byte:02x}" for byte in char.encode(errors="surrogateescape" if is_byte else "surrogatepass"))


def _code(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def nearest(name: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Up to ``most`` names of ``known`` that are most like ``name``, best first; ``cutoff`` as in difflib, in [0, 1]."""
    import difflib  # only here: --help must not wait for it

    return difflib.get_close_matches(name, list(known), most, cutoff)


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says anything, or its type where none does."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def option_name(name: str) -> str:
    """A setting's name as its option has it, without the dashes in front."""
    return name.replace("_", "-")

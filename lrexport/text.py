"""Text: names from foreign files made safe to print, nearest names, first lines of errors, names of options.

Safe means safe on a terminal, in a CI log, in Markdown, in JSON and in a shell.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable
from typing import Any

# CI logs interpret some text as commands: GitHub "::name::" at the start of a line and "##[name]" anywhere, Azure
# "##vso[…]", TeamCity "##teamcity[…]". Escaping one character breaks them.
_AT_START, _BROKEN_START = "::", r":\x3a"
_LEADING = re.compile(r"^(\s*)::")
_ANYWHERE = re.compile(r"##(?=[\w.-]*\[)")
_BROKEN, _BROKEN_IN_JSON = r"#\\x23", r"#\\u0023"
# Characters with a meaning in the Markdown of CommonMark, GitHub or GitLab: tables, math, mentions, references, emoji,
# links, HTML.
_MARKDOWN = re.compile(r"[\\`*_\[\]<>#!|~@:$&]|(?<=www)\.", re.IGNORECASE)
_REFERENCES = "@#!"


def is_onnx_name(name: str) -> bool:
    """Whether a MODEL names an .onnx file."""
    return name.lower().endswith(".onnx")


def visible(text: str) -> str:
    """One line of printable characters: others, such as newlines and direction marks, are escaped as in ``\\x0a``."""
    return "".join(char if char.isprintable() else _code(char) for char in text)


def plain(text: str) -> str:
    """:func:`visible`, with commands of CI logs escaped too: safe at any place in a line."""
    return _ANYWHERE.sub(_BROKEN, visible(text).replace(_AT_START, _BROKEN_START))


def plain_line(text: str) -> str:
    """:func:`visible` for a whole line, with commands of CI logs escaped.

    ``::`` is only a command at the start of a line; elsewhere it stays, because C++ names contain it.
    """
    return _ANYWHERE.sub(_BROKEN, _LEADING.sub(lambda leading: leading[1] + _BROKEN_START, visible(text)))


def plain_lines(text: str) -> str:
    """:func:`plain_line` of every line of ``text``."""
    return "\n".join(map(plain_line, text.split("\n")))


def json_text(value: Any, indent: int | None = None, allow_nan: bool = False, ascii_only: bool = False) -> str:
    """JSON that decodes to the same strings and is safe to print: other characters are escaped as in ``\\u001b``.

    Raises ValueError for NaN and infinity, which JSON does not have, unless they are allowed.
    """
    text = json.dumps(value, indent=indent, allow_nan=allow_nan, ensure_ascii=ascii_only)
    if not text.replace("\n", "").isprintable():  # raw newlines only occur between strings, other characters inside them
        text = "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
    return _ANYWHERE.sub(_BROKEN_IN_JSON, text)


def toml_text(text: str) -> str:
    """A TOML string that is safe to print. Its escapes are JSON's, except for characters above U+FFFF."""
    quoted = json.dumps(text, ensure_ascii=False)
    shown = "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)
    return _ANYWHERE.sub(_BROKEN_IN_JSON, shown)


def shell_word(word: str) -> str:
    """One quoted word for a shell; unprintable characters are escaped in ``$'…'`` (bash, zsh, POSIX 2024)."""
    if plain(word) == word:
        return shlex.quote(word)
    shown = (char if char.isprintable() and char not in "\\'#:" else _bytes(char) for char in word)
    return f"$'{''.join(shown)}'"


def shell_path(path: str | os.PathLike[str]) -> str:
    """:func:`shell_word` of a path, which is never mistaken for an option even if it begins with ``-``."""
    return shell_word(as_argument(path))


def as_argument(path: str | os.PathLike[str]) -> str:
    """A path as an argument of a command; one that begins with ``-`` gets ``./`` in front."""
    text = os.fspath(path)
    return f"./{text}" if text.startswith("-") else text


def markdown(text: str) -> str:
    """Text escaped for Markdown and the cells of its tables: it renders literally, without markup, links or mentions.

    Mentions and references are detected after rendering, so an empty comment separates their sign from the name.
    """
    return _MARKDOWN.sub(_entity, plain(text))


def _entity(match: re.Match[str]) -> str:
    return f"&#{ord(match[0])};{'<!-- -->' if match[0] in _REFERENCES else ''}"


def _bytes(char: str) -> str:
    # These surrogates are bytes of a file name that is not UTF-8; all others come from JSON.
    is_byte = "\udc80" <= char <= "\udcff"
    return "".join(f"\\x{byte:02x}" for byte in char.encode(errors="surrogateescape" if is_byte else "surrogatepass"))


def _code(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def nearest(name: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Up to ``most`` names of ``known`` most similar to ``name``, best first; ``cutoff`` in [0, 1] as in difflib."""
    import difflib  # slow to import, and --help does not need it

    return difflib.get_close_matches(name, list(known), most, cutoff)


def number_of(number: int, thing: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text, or its type if the text is empty."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def option_name(name: str) -> str:
    """A setting's name as a command-line option, without the leading dashes."""
    return name.replace("_", "-")

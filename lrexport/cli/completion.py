"""Shell completion of MODEL, --data, --target and --recipe, without loading torch or user code.

click asks an option's type for candidates; the shell calls :func:`answer` at every TAB.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, get_completion_class

from lrexport.artifacts.run_files import RECORD

VARIABLE = "_LREXPORT_COMPLETE"
_PROGRAM = "lrexport"
_MOST_BYTES = 1 << 20  # of a Python file or an ssh_config that is read
_MOST_INCLUDES = 8  # levels
ONNX_SUFFIX = ".onnx"
_WORD_BREAK, _ASSIGNMENT = ":", "="  # bash splits words at them
_QUERY = "?"  # before the options of a target


def models(incomplete: str) -> Iterator[str]:
    """Built-in names, runs, folders, .onnx files, torchvision's and timm's by their prefix, callables of local modules."""
    from lrexport.networks.names import CIFAR_NAMES, ELSEWHERE

    yield from CIFAR_NAMES
    yield from _runs(incomplete)
    for prefix, names in ELSEWHERE.items():
        if incomplete and (prefix.startswith(incomplete) or incomplete.startswith(prefix)):
            yield from (f"{prefix}{name}" for name in sorted(names()))
        else:
            yield prefix
    yield from _callables(incomplete)


def data(incomplete: str) -> Iterator[str]:
    """Names of data sets, folders after a colon, callables of local modules."""
    from lrexport.data.sources import ARRAYS, CIFAR, FOLDERS, PICTURES

    prefix, colon, root = incomplete.partition(":")
    if colon and prefix in (*FOLDERS, *CIFAR):
        yield from (f"{prefix}:{folder}" for folder in _folders(root, last="train"))
        return
    if colon and prefix in PICTURES:
        yield from (f"{prefix}:{folder}" for folder in _entries(root))
        return
    if colon and prefix == ARRAYS:
        yield from (f"{prefix}:{file}" for file in _entries(root, ".npz"))
        return
    yield from ("digits", *CIFAR, *(f"{name}:" for name in (*reversed(FOLDERS), *PICTURES, ARRAYS)))
    yield from _callables(incomplete)


def targets(incomplete: str) -> Iterator[str]:
    """``local``, ``browser``, phones, and the hosts of the user's ssh_config; once ``?`` is typed, what runs there."""
    from lrexport.measure.runtimes.base import NAMES
    from lrexport.measure.targets.browser.target import PROVIDERS
    from lrexport.measure.targets.phone_programs import PROGRAMS
    from lrexport.measure.targets.ssh import CONFIG_VARIABLE

    place, query, _ = incomplete.partition("?")
    if place == "browser" and query:
        yield from (f"browser?provider={name}" for name in PROVIDERS)
        return
    if place.startswith("adb:") and query:
        yield from (f"{place}?runner={name}&program=" for name in PROGRAMS)
        return
    if query:
        yield from (f"{place}?runtime={name}" for name in NAMES)
        return
    yield from ("local", "browser")
    user, at, _ = incomplete.removeprefix("ssh://").partition("@")
    given = os.environ.get(CONFIG_VARIABLE)
    hosts = list(dict.fromkeys(_ssh_hosts(Path(given) if given else Path.home() / ".ssh" / "config")))
    yield from (f"ssh://{user + at if at else ''}{host}" for host in hosts)
    if not hosts:
        yield "ssh://"
    yield "adb://"


def recipes(incomplete: str) -> Iterator[str]:
    """The recipes that come with lrexport, and TOML files."""
    from lrexport.config.recipes import names

    yield from names()
    yield from _entries(incomplete, ".toml")


def items(candidates: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """The printable candidates that start with what was typed."""
    fitting = (text for text in dict.fromkeys(candidates) if text.startswith(incomplete) and text.isprintable())
    return [CompletionItem(text) for text in fitting]


def answer(cli: click.Command, instruction: str) -> str | None:
    """The answer to a shell: its function for ``bash_source``, candidates for ``bash_complete``; None for anything else."""
    shell, _, reply = instruction.partition("_")
    kind = _Bash if shell == _Bash.name else get_completion_class(shell)
    if kind is None or reply not in ("source", "complete"):
        return None
    completion = kind(cli, {}, _PROGRAM, VARIABLE)
    return completion.source() if reply == "source" else completion.complete()


class _Bash(BashComplete):
    """bash, which splits words at colons and replaces only the part after the last one.

    Unfinished candidates, such as ``folder:``, get no trailing space.
    """

    source_template = BashComplete.source_template.replace(
        "        elif [[ $type == 'plain' ]]; then\n",
        "        elif [[ $type == 'part' ]]; then\n            COMPREPLY+=($value)\n            compopt -o nospace\n"
        "        elif [[ $type == 'plain' ]]; then\n",
    )
    _kept = 0  # characters of a candidate that are on the command line already

    def get_completion_args(self) -> tuple[list[str], str]:
        args, last = super().get_completion_args()
        joined: list[str] = []
        for word in (*args, *([last] if last else [])):
            # A target's option, local?runtime=ncnn, is one word; --target=local is two.
            is_option = bool(joined) and _QUERY in joined[-1] and (word == _ASSIGNMENT or joined[-1].endswith(_ASSIGNMENT))
            if joined and (word == _WORD_BREAK or joined[-1].endswith(_WORD_BREAK) or is_option):
                joined[-1] += word
            elif word != _ASSIGNMENT:
                joined.append(word)
        is_value = bool(joined) and joined[-1].endswith(_ASSIGNMENT)
        incomplete = joined.pop() if last and (last != _ASSIGNMENT or is_value) else ""
        self._kept = len(incomplete) if last in (_WORD_BREAK, _ASSIGNMENT) else len(incomplete) - len(last)
        return joined, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        if item.type != "plain":
            return super().format_completion(item)
        value = str(item.value)
        return f"{'part' if value.endswith((':', '/')) else 'plain'},{value[max(self._kept, 0) :]}"


def _runs(incomplete: str) -> Iterator[str]:
    """Runs and .onnx files; once something is typed, other folders too, which may contain such."""
    for entry in _entries(incomplete, ONNX_SUFFIX):
        if Path(entry, RECORD).is_file() or entry.endswith(ONNX_SUFFIX):
            yield entry.rstrip("/")
        elif incomplete:
            yield entry


def _folders(incomplete: str, last: str) -> Iterator[str]:
    """Folders; one that has the folder ``last`` in it is what is looked for."""
    for entry in _entries(incomplete):
        yield entry.rstrip("/") if Path(entry, last).is_dir() else entry


def _entries(incomplete: str, suffix: str = "") -> Iterator[str]:
    """Folders, with a trailing slash, and files with ``suffix``, that match the typed path."""
    head, _, tail = incomplete.rpartition("/")
    folder = f"{head}/" if "/" in incomplete else ""
    try:
        entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
    except (OSError, ValueError):
        return
    for entry in entries:
        if not entry.name.startswith(tail) or (entry.name.startswith(".") and not tail):
            continue
        if entry.is_dir():
            yield f"{folder}{entry.name}/"
        elif suffix and entry.name.endswith(suffix):
            yield f"{folder}{entry.name}"


def _callables(incomplete: str) -> Iterator[str]:
    """``module:`` for Python files of the current folder once something is typed, then their top-level names."""
    module, colon, _ = incomplete.partition(":")
    if colon and re.fullmatch(r"\w+(\.\w+)*", module):
        for name in _defined(Path(*module.split(".")).with_suffix(".py")):
            yield f"{module}:{name}"
    elif incomplete:
        yield from (f"{path.stem}:" for path in sorted(Path().glob("*.py")) if path.stem.isidentifier())


def _defined(path: Path) -> list[str]:
    """Public top-level functions and classes of a Python file, which is parsed, not run."""
    text = _read(path)
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def _ssh_hosts(path: Path, level: int = 0) -> Iterator[str]:
    """The hosts of an ssh_config and of the files that it includes, without patterns."""
    for line in _read(path).splitlines():
        keyword, *values = line.replace("=", " ", 1).replace('"', "").split() or [""]
        if keyword.lower() == "host":
            yield from (value for value in values if re.fullmatch(r"[A-Za-z0-9][\w.-]*", value))
        elif keyword.lower() == "include" and level < _MOST_INCLUDES:
            for value in values:
                pattern = Path.home() / ".ssh" / Path(value).expanduser()
                for included in sorted(pattern.parent.glob(pattern.name)) if pattern.name else ():
                    yield from _ssh_hosts(included, level + 1)


def _read(path: Path) -> str:
    """The text of a regular file of moderate size; else an empty string."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

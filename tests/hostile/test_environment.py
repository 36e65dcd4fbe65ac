"""What surrounds a command is broken: folders, names, encodings, and JSON and TOML of others with values that cannot be."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrexport.artifacts import run_folder
from lrexport.errors import DeviceError
from lrexport.measure.layer_times import cache_folder
from tests.hostile.support import Command, Outcome, nothing_made, write_module
from tests.hostile.test_names import harmless

DEEP = "[" * 200_000
LONG = "x" * 5000


def refused(done: Outcome, code: int, *words: str) -> None:
    """The error family's: the code, the words, nothing forged, no fault of ours."""
    assert done.code == code
    assert done.err.count("lrexport: ") == 1
    assert "lrexport: unexpected" not in done.err
    assert all(word in done.err for word in words), done.err
    assert harmless(done.err)


def test_json_that_is_nested_too_deep_is_refused_wherever_it_is_read(lrexport: Command, finished: Path) -> None:
    for name, text in {
        "plan.json": DEEP,
        "less.json": "[" * 100 + "]" * 100,
        "dicts.json": '{"a":' * 900 + "1" + "}" * 900,
    }.items():
        Path(name).write_text(text)
        refused(lrexport("inspect", name), 3, f"{name} is not JSON: nested more than 64 levels deep")
    refused(lrexport("compress", "tiny:make", "--plan", "plan.json", "-o", "out"), 3, "plan.json is not JSON")
    assert nothing_made()
    Path("lrexport.toml").write_text('[budget]\nmax_macs = "1M"\nmax_bytes_growth = "1%"\n')
    refused(lrexport("check", finished, "--baseline", "plan.json"), 3, "plan.json is not JSON: nested more than 64 levels")
    Path("lrexport.toml").write_text('[budget]\nmax_macs = "1M"\n')
    (finished / "run.json").write_text(DEEP)
    for arguments in (("inspect",), ("report",), ("onnx",), ("bench",), ("check",), ("compress", "--macs", "0.4")):
        refused(lrexport(arguments[0], finished, *arguments[1:]), 3, "run/run.json is not JSON: nested more than 64 levels")
    Path("sweep").mkdir()
    Path("sweep/sweep.json").write_text(DEEP)
    refused(lrexport("report", "sweep"), 3, "sweep/sweep.json is not JSON: nested more than 64 levels deep")


@pytest.mark.parametrize("number", ["9" * 30, "-" + "9" * 10_000, "1e999", "NaN", "-Infinity"])
def test_numbers_that_no_file_of_ours_has_are_refused(lrexport: Command, finished: Path, number: str) -> None:
    text = (finished / "run.json").read_text()
    (finished / "run.json").write_text(text.replace('"batch_size": 128', f'"batch_size": {number}'))
    refused(lrexport("inspect", finished), 3, "run/run.json is not JSON: ")
    Path("plan.json").write_text(f'{{"0": {{"scheme": "spatial", "rank": {number}}}}}')
    refused(lrexport("inspect", "plan.json"), 3, "plan.json is not JSON: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("goal", 5.0),
        ("goal", [{"macs": 0.5}]),
        ("goal", {"macs": "half"}),
        ("goal", {"odd": 1}),
        ("compile", "\ud800"),
        ("keep", "0"),
        ("keep", [1]),
        ("scheme", "odd"),
        ("milestones", {}),
        ("heldout", "much"),
        ("weights", {"a": []}),
        ("lr", True),
    ],
)
def test_a_choice_of_another_type_is_named(lrexport: Command, finished: Path, key: str, value: Any) -> None:
    record = json.loads((finished / "run.json").read_text())
    record["config"][key] = value
    (finished / "run.json").write_text(json.dumps(record))
    before = (finished / "run.json").read_bytes()
    for arguments in (("inspect",), ("report", "--format", "markdown"), ("compress", "--macs", "0.5"), ("onnx",)):
        refused(lrexport(arguments[0], finished, *arguments[1:]), 3, f"invalid record run/run.json: config.{key}")
    assert (finished / "run.json").read_bytes() == before
    record["config"] = {**record["config"], key: None} if key == "goal" else {}
    record["earlier"] = [{"run": None, "config": {key: value}}]
    (finished / "run.json").write_text(json.dumps(record))
    refused(lrexport("inspect", finished), 3, f"config.{key}")


def test_texts_that_are_no_unicode_are_shown_and_as_names_refused(lrexport: Command, finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    record["config"]["keep"] = ["\ud800"]
    record["notes"] = ["\udcff"]
    (finished / "run.json").write_text(json.dumps(record))
    for arguments in (("inspect", "--json", "-"), ("report", "--format", "markdown"), ("report", "--format", "json")):
        done = lrexport(arguments[0], finished, *arguments[1:])
        assert done.code == 0
        assert harmless(done.out)
    assert "--keep $'\\xed\\xa0\\x80'" in lrexport("report", finished, "--format", "markdown").out
    record["environment"]["\ud800"] = 1
    (finished / "run.json").write_text(json.dumps(record))
    refused(lrexport("inspect", finished), 3, r"run/run.json is not JSON: the name '\ud800' is not Unicode")


def test_a_configuration_that_is_nested_too_deep_or_has_endless_numbers_is_refused(lrexport: Command, here: Path) -> None:
    for text in (f"a = {'[' * 5000}", f"a = {'9' * 10_000}", "a = \udcff"):
        Path("lrexport.toml").write_bytes(text.encode(errors="surrogateescape"))
        for command in (("inspect", "tiny.py"), ("check",), ("compress", "tiny:make")):
            refused(lrexport(*command), 2, "invalid TOML in lrexport.toml: ")
    Path("lrexport.toml").unlink()
    Path("recipe.toml").write_text(f"a = {'[' * 5000}")
    refused(
        lrexport("compress", "tiny:make", "--recipe", "recipe.toml"), 2, "invalid TOML in recipe.toml: nested too deeply"
    )


def test_a_holder_in_no_encoding_is_named_all_the_same(lrexport: Command, finished: Path) -> None:
    before = (finished / "run.json").read_bytes()
    for note, shown in ((b"\xffme\x1b[31m\n::error::x", r"run is in use by \xffme\x1b[31m"), (b"", "another process")):
        run_folder.write_bytes(finished, ".holder", note)
        descriptor = os.open(finished, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            done = lrexport("compress", finished, "--macs", "0.5", "--trust-code")
        finally:
            os.close(descriptor)
        assert done.code == 2
        assert shown in done.err
        assert harmless(done.err)
    assert (finished / "run.json").read_bytes() == before


def test_paths_that_cannot_be_are_refused(lrexport: Command, here: Path) -> None:
    for arguments in (
        ("inspect", LONG),
        ("report", LONG),
        ("bench", f"{LONG}.onnx"),
        ("check", f"{LONG}.onnx"),
        ("onnx", LONG),
        ("train", "tiny:make", "-o", LONG),
        ("compress", "tiny:make", "--macs", "0.5", "-o", LONG),
        ("compress", LONG, "--macs", "0.5", "-o", "out"),
        ("compress", "tiny:make", "--macs", "0.5", "-o", "out", "--json", f"{LONG}/x"),
        ("compress", "tiny:make", "--macs", "0.5", "-o", "out", "--weights", LONG),
        ("compress", "tiny:make", "--macs", "0.5", "-o", "out", "--data", f"folder:{LONG}"),
        ("compress", "tiny:make", "--macs", "0.5", "-o", "out", "--recipe", LONG),
        ("inspect", "a\0b"),
        ("bench", "a\0b.onnx"),
        ("compress", "a\0b", "--macs", "0.5", "-o", "out"),
        ("compress", "tiny:make", "--macs", "0.5", "-o", "a\0b"),
        ("compress", "tiny:make", "--macs", "0.5", "-o", "out", "--data", "folder:a\0b"),
    ):
        done = lrexport(*arguments)
        assert done.code in (2, 3), (arguments[0], arguments[-1][:20], done.err[:300])
        assert "unexpected" not in done.err.replace("unexpected extra", "")
        assert harmless(done.err)
    assert nothing_made()


def test_a_current_folder_that_is_gone_is_said(lrexport: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = here / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for arguments in (("inspect", "run"), ("check",), ("compress", "tiny:make", "--macs", "0.5", "-o", "out")):
        refused(lrexport(*arguments), 4, "the current folder no longer exists: No such file or directory")
    assert lrexport("--help").code == 0
    monkeypatch.chdir(here)


def test_without_a_temporary_folder_that_can_be_written_it_is_said(
    lrexport: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object, **__: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkdtemp", none)
        done = lrexport("compress", "tiny:make", "--size", "5KB", "--dry-run")
    refused(done, 4, "the system refused: No usable temporary directory found in ['/tmp']")


def test_folders_that_cannot_be_written_are_said(lrexport: Command, finished: Path) -> None:
    for arguments in (
        ("compress", "tiny:make", "--macs", "0.5", "-o", "/proc/run"),
        ("compress", "tiny:make", "--macs", "0.5", "-o", "tiny.py/run"),
        ("report", finished, "-o", "/proc/report.html"),
        ("inspect", finished, "--json", "/proc/run.json"),
    ):
        done = lrexport(*arguments)
        assert done.code in (2, 3, 4)
        assert "lrexport: unexpected" not in done.err


def test_nobody_s_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("LREXPORT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(nobody))
    with pytest.raises(DeviceError, match="no home folder") as caught:
        cache_folder()
    assert "LREXPORT_CACHE" in str(caught.value)
    monkeypatch.setenv("LREXPORT_CACHE", "here")
    assert cache_folder() == Path("here")


def test_code_of_the_user_that_ends_the_program_is_said_to(lrexport: Command, here: Path) -> None:
    write_module(
        "users",
        """
        import sys
        from torch import nn

        class Leaving(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Conv2d(3, 8, 3)

            def forward(self, x):
                sys.exit(0)

        Leaving.input_shape = (3, 8, 8)

        def raising():
            raise SystemExit(143)

        raising.input_shape = (3, 8, 8)
        """,
    )
    done = lrexport("compress", "users:Leaving", "--macs", "0.5", "-o", "out")
    refused(done, 3, "called sys.exit(0)")
    # As SIGTERM does, which must not be taken for a fault of the module's.
    assert lrexport("compress", "users:raising", "--macs", "0.5", "-o", "out").code == 143
    assert nothing_made()


def _places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in inner for place in ((*before, key), *_places(one, (*before, key)))]


_LEAVES = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
_LEAVES |= st.text(st.characters(), max_size=8) | st.sampled_from(
    ["\ud800", "spatial", "auto", "../x", "\x1b[31m\n::error::x"]
)
VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_in_a_record_is_a_fault_of_ours(lrexport: Command, finished: Path, data: st.DataObject) -> None:
    kept = Path("kept")
    if not kept.exists():
        shutil.copytree(finished, kept)
    record = copy.deepcopy(json.loads((kept / "run.json").read_text()))
    place = data.draw(st.sampled_from(_places(record)))
    owner = record
    for key in place[:-1]:
        owner = owner[key]
    if data.draw(st.integers(0, 9)):
        owner[place[-1]] = data.draw(VALUES)
    else:
        del owner[place[-1]]
    commands: list[tuple[str, ...]] = [
        ("inspect", "run"),
        ("inspect", "run", "kept"),
        ("report", "run", "--format", "markdown"),
        ("report", "run", "--format", "json"),
        ("report", "run", "-o", "page.html"),
        ("check", "run"),
        ("compress", "run", "--macs", "0.5", "--dry-run", "--trust-code"),
    ]
    if data.draw(st.integers(0, 9)) == 0:  # which takes longer
        commands.append(("onnx", "run", "--rounds", "0", "--trust-code"))
    for arguments in commands:
        shutil.rmtree("run")
        shutil.copytree(kept, "run")
        Path("run/run.json").write_text(json.dumps(record))
        done = lrexport(*arguments)
        assert done.code in (0, 1, 2, 3), done.err
        assert "lrexport: unexpected" not in done.err
        for text in (done.out, done.err):
            assert not text or harmless(text)

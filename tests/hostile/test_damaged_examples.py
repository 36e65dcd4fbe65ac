"""examples.npz of a run that came from elsewhere: too large, damaged, of other pixels, or with markup in its texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrexport.artifacts.arrays import npz_bytes
from lrexport.artifacts.run_files import EXAMPLES
from lrexport.cli.main import run as cli
from lrexport.runs.record import load_record
from tests.report.runs import write_run

PHOTO = np.zeros((8, 8, 3), np.uint8)
EXAMPLE = {"number": 0, "why": "random", "form": "values"}


def _packed(examples: Any = (EXAMPLE,), about: Any = None, **arrays: Any) -> bytes:
    text = json.dumps(about if about is not None else {"considered": 1, "examples": list(examples)})
    return npz_bytes(
        {"about": np.array(text), **{name.replace("_", "."): each for name, each in arrays.items()}}, compress=True
    )


def _bomb() -> bytes:
    """Few bytes that unpack to far more than lrexport writes."""
    return _packed(_0_picture=PHOTO, **{"0_picture": np.zeros((6000, 6000, 3), np.uint8)})


CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a bomb": (_bomb, "unpacks to"),
    "no archive": (lambda: b"PK\3\4" + bytes(100), "invalid .npz file"),
    "cut": (lambda: _packed(**{"0_picture": PHOTO})[:-60], "invalid .npz file"),
    "no text": (lambda: npz_bytes({"0.picture": PHOTO}), "it has no array 'about'"),
    "no JSON": (lambda: npz_bytes({"about": np.array("{")}), "does not contain examples"),
    "deep JSON": (lambda: npz_bytes({"about": np.array("[" * 5000 + "]" * 5000)}), "levels deep"),
    "another form": (lambda: _packed([{**EXAMPLE, "form": "<script>"}], **{"0_picture": PHOTO}), "form"),
    "a share above one": (
        lambda: _packed([{**EXAMPLE, "dense": {"guesses": [{"label": 1, "share": 1e9}]}}], **{"0_picture": PHOTO}),
        "share",
    ),
    "too many": (lambda: _packed([EXAMPLE] * 17, **{f"{n}_picture": PHOTO for n in range(17)}), "examples"),
    "no picture": (lambda: _packed(), "it has no array '0.picture'"),
    "no outputs": (lambda: _packed([{**EXAMPLE, "form": "masks"}], **{"0_picture": PHOTO}), "it has no array '0.dense'"),
    "a large picture": (lambda: _packed(**{"0_picture": np.zeros((257, 8, 3), np.uint8)}), "at most 256 pixels"),
    "an empty picture": (lambda: _packed(**{"0_picture": np.zeros((0, 8, 3), np.uint8)}), "at most 256 pixels"),
    "a picture of floats": (lambda: _packed(**{"0_picture": np.zeros((8, 8, 3), np.float32)}), "expected uint8"),
    "further arrays": (lambda: _packed(**{"0_picture": PHOTO, "more": PHOTO}), "unexpected array 'more'"),
    "objects": (lambda: npz_bytes({"about": np.array("{}")}).replace(b"<U2", b"|O2"), "invalid .npz file"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_report_refuses_examples_that_lrexport_would_not_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    content, message = CASES[case]
    run, page = tmp_path / "run", tmp_path / "page.html"
    write_run(run)
    (run / EXAMPLES).write_bytes(content())
    load_record(run).sealed(run, EXAMPLES).save(run)
    assert cli(["report", str(run), "-o", str(page)]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert not page.exists()
    # Without the pictures the rest of the run can still be shown.
    assert cli(["report", str(run), "-o", str(page), "--examples", "0"]) == 0
    assert cli(["report", str(run), "--format", "markdown"]) == 0


def test_a_file_that_the_record_says_to_be_huge_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    write_run(run)
    with open(run / EXAMPLES, "wb") as stream:
        stream.truncate(1 << 30)
    record = load_record(run)
    files = {**record.files, EXAMPLES: record.files["spectra.json"].model_copy(update={"bytes": 1 << 30})}
    record.model_copy(update={"files": files}).save(run)
    assert cli(["report", str(run), "-o", str(tmp_path / "page.html")]) == 3
    assert "expected at most" in capsys.readouterr().err


def test_examples_that_were_changed_after_the_record_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    write_run(run)
    (run / EXAMPLES).write_bytes(_packed(**{"0_picture": PHOTO}))
    load_record(run).sealed(run, EXAMPLES).save(run)
    (run / EXAMPLES).write_bytes(_packed(**{"0_picture": PHOTO + 1}))
    assert cli(["report", str(run), "-o", str(tmp_path / "page.html")]) == 3
    assert "changed" in capsys.readouterr().err

"""Example pictures in the page: what stands beside them, for every form of outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrexport.artifacts.run_files import EXAMPLES
from lrexport.cli.main import run as cli
from lrexport.report.example_views import example_views
from lrexport.report.page.render import render
from lrexport.report.reported_run import read_subjects
from lrexport.runs.examples import NOT_COUNTED, About, Box, Example, Examples, Guess, RecordedMetric, Said
from lrexport.runs.record import load_record
from tests.report.browser import visit
from tests.report.runs import HOSTILE, write_run

NAMES = ("background", "cat", "dog")
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def _with_examples(run: Path, made: Examples, names: tuple[str, ...] = NAMES) -> Path:
    """Add examples and names of classes to a run."""
    record = load_record(run)
    (run / EXAMPLES).write_bytes(made.packed())
    assert record.data is not None
    data = record.data.model_copy(update={"class_names": names})
    record.model_copy(update={"data": data}).sealed(run, EXAMPLES).save(run)
    return run


def _of(example: Example, metric: RecordedMetric | None = None, **pixels: Any) -> Examples:
    about = About(considered=100, metric=metric, examples=(example,))
    return Examples(about, {f"0.{name}": each for name, each in {"picture": PHOTO, **pixels}.items()})


def _classified(why: str = "random") -> Examples:
    dense = Said(guesses=(Guess(label=1, share=0.9), Guess(label=2, share=0.1)))
    small = Said(guesses=(Guess(label=2, share=0.6), Guess(label=1, share=0.4)))
    facts: dict[str, Any] = {"dense": dense, "compressed": small, "sqnr_db": {"output": 4.0}}
    example = Example(number=6, why=why, form="classes", label=1, dense_score=1, score=0, **facts)
    return _of(example, RecordedMetric(name="top-1", unit="%"))


def _masked() -> Examples:
    mask = np.zeros((40, 60), np.uint16)
    mask[:20] = 1
    other = mask.copy()
    other[:, :15] = 2
    target = mask.copy()
    target[0] = NOT_COUNTED
    example = Example(number=0, why="worst", form="masks", dense_score=0.8, score=0.5)
    return _of(example, RecordedMetric(name="mIoU", unit="%"), dense=mask, compressed=other, target=target)


def _boxed() -> Examples:
    one = Box(corners=(0.1, 0.1, 0.5, 0.9), label=1, score=0.91)
    said = {
        "dense": Said(boxes=(one,), more=2),
        "compressed": Said(),
        "target": Said(boxes=(Box(corners=(0, 0, 1, 1), label=2),)),
    }
    return _of(Example(number=3, why="random", form="boxes", **said))


def _pictured() -> Examples:
    changed = PHOTO.copy()
    changed[0, 0, 0] ^= 4
    metric = RecordedMetric(name="PSNR", unit="dB")
    return _of(
        Example(number=1, why="worst", form="pictures", dense_score=30, score=29.5), metric, dense=PHOTO, compressed=changed
    )


ALL = {"classes": _classified, "masks": _masked, "boxes": _boxed, "pictures": _pictured}


def _view(examples: Examples) -> Any:
    (view,) = example_views(examples, NAMES, "x", 16)
    return view


def test_classes_stand_beside_the_picture_with_the_true_one_marked() -> None:
    view = _view(_classified())
    first, dense, compressed = view.panels
    assert view.title == "Held-out picture 7, drawn at random"
    assert view.text == "dense right, compressed wrong; SQNR 4.0 dB"
    assert first.text == "true class: cat"
    assert [(line.name, line.value, line.is_true) for line in compressed.lines] == [
        ("dog", "60.00 %", False),
        ("cat", "40.00 %", True),
    ]
    assert [line.is_true for line in dense.lines] == [True, False]


def test_masks_say_which_pixels_are_right_and_leave_out_background_and_pixels_that_do_not_count() -> None:
    view = _view(_masked())
    assert [panel.title for panel in view.panels] == ["Input", "Target", "Dense", "Compressed"]
    assert [name for _, name in view.legend] == ["cat", "dog", "background: no colour"]
    assert "mIoU 80.00 % → 50.00 %" in view.text
    assert [panel.text for panel in view.panels[1:]] == [
        "",
        "100.0% of the pixels right",
        "75.0% of the pixels right",
    ]
    assert "cat 50%" in view.panels[2].alt


def test_boxes_have_class_and_score_and_name_how_many_were_left_out() -> None:
    view = _view(_boxed())
    assert [panel.title for panel in view.panels] == ["Input", "Target", "Dense", "Compressed"]
    assert [frame.text for frame in view.panels[2].frames] == ["cat 0.91"]
    assert view.panels[2].text == "3 boxes, 1 shown: cat 0.91"
    assert view.panels[3].alt == "Compressed: no boxes"


def test_the_difference_of_pictures_is_multiplied_and_says_by_how_much() -> None:
    panel = _view(_pictured()).panels[-1]
    assert (panel.title, panel.text) == ("Difference × 32", "at most 4 of 255")


def test_half_of_the_pictures_that_are_shown_are_the_worst() -> None:
    examples = tuple(
        Example(number=number, why="worst" if number > 3 else "random", form="values", sqnr_db={"output": 1.0})
        for number in range(8)
    )
    made = Examples(About(considered=8, examples=examples), {f"{place}.picture": PHOTO for place in range(8)})
    titles = [view.title for view in example_views(made, (), "x", 3)]
    assert [title.partition(", ")[2] for title in titles] == ["drawn at random", "drawn at random", "one of the worst"]


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 390])
def test_a_browser_shows_every_form_at_every_width_without_fetching(
    tmp_path: Path, chromium: Any, form: str, width: int
) -> None:
    write_run(tmp_path / "run")
    _with_examples(tmp_path / "run", ALL[form](), (*HOSTILE[:2], HOSTILE[-1]))
    page = tmp_path / "page.html"
    page.write_text(render(read_subjects([tmp_path / "run"]), "0.0"), encoding="utf-8")
    seen = visit(chromium, page, viewport={"width": width, "height": 844})
    assert seen.said == []
    assert [url for url in seen.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert seen.page.evaluate("window.owned") is None
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    pictures = seen.page.locator(".panel svg")
    assert pictures.count() == len([panel for panel in _view(ALL[form]()).panels if panel.width])
    assert all(pictures.nth(place).get_attribute("aria-label") for place in range(pictures.count()))


def test_a_page_without_examples_contains_none_and_names_whose_pictures_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run")
    _with_examples(tmp_path / "run", _classified())
    page = tmp_path / "page.html"
    assert cli(["report", str(tmp_path / "run"), "-o", str(page)]) == 0
    assert "held-out pictures of digits; --examples 0" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "data:image/" in page.read_text().partition("<script")[0]
    assert cli(["report", str(tmp_path / "run"), "-o", str(page), "--examples", "0"]) == 0
    assert "data:image/" not in page.read_text().partition("<script")[0]
    assert "held-out pictures" not in capsys.readouterr().err
    assert cli(["report", str(tmp_path / "run"), "--format", "json", "--examples", "3"]) == 2
    assert "--examples requires HTML" in capsys.readouterr().err

"""The page as a browser shows it: charts are drawn, nothing is fetched, no name is run, and it serves every reader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lrexport.report.page.render import render
from lrexport.report.reported_run import read_subjects
from tests.report.browser import Visit, visit, wait_until_drawn
from tests.report.runs import HOSTILE, NAMES, write_run

TEXTS = ("ink", "muted", "compressed")
MARKS = ("dense", "compressed", "tuned", "baseline", "cut")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    write_run(folder / "run")
    write_run(folder / "other", share=0.3, top1=0.9, milliseconds=0.4)
    write_run(folder / "deep", [f"layer{number}.conv" for number in range(110)])
    for number, name in enumerate(HOSTILE):
        write_run(folder / f"hostile{number}", HOSTILE, model=name, goal={"plan": name})
    several = {"one": ["run"], "two": ["run", "other"], "deep": ["deep"]}
    several["hostile"] = [f"hostile{number}" for number in range(len(HOSTILE))]
    for name, runs in several.items():
        (folder / f"{name}.html").write_text(render(read_subjects([folder / run for run in runs]), "0.0"), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in several}


def _quiet(found: Visit) -> None:
    assert found.said == []
    assert [url for url in found.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in found.asked if url.startswith("file:")]) == 1  # the page itself


def _drawn(page: Any) -> int:
    """How many charts can be seen, with lines or bars in them."""
    return int(page.locator(".js-plotly-plot:visible").filter(has=page.locator(".trace")).count())


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (390, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(390, "light", marks=pytest.mark.slow),
    ],
)
def test_every_chart_is_drawn_without_an_error_or_a_request(
    chromium: Any, pages: dict[str, Path], scheme: str, width: int
) -> None:
    found = visit(chromium, pages["one"], color_scheme=scheme, viewport={"width": width, "height": 844})
    assert _drawn(found.page) == 4
    for choice in ("Bytes", "Time", "Loss"):
        found.page.get_by_text(choice, exact=True).click()
        wait_until_drawn(found.page)
        assert _drawn(found.page) == 4
    # Nothing is wider than the screen but what scrolls by itself.
    assert found.page.evaluate("document.documentElement.scrollWidth") == width
    _quiet(found)
    found.page.close()


def test_several_runs_show_their_fronts_and_each_run_when_it_is_opened(chromium: Any, pages: dict[str, Path]) -> None:
    found = visit(chromium, pages["two"])
    assert _drawn(found.page) == 2
    found.page.locator("#run2 > summary").click()
    wait_until_drawn(found.page)
    assert _drawn(found.page) == 6
    _quiet(found)
    found.page.close()


def test_colours_follow_the_scheme_while_the_page_is_open(chromium: Any, pages: dict[str, Path]) -> None:
    found = visit(chromium, pages["one"], color_scheme="light")

    def colours() -> tuple[str, str]:
        paper = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        line = found.page.locator("#run1-spectra-chart .js-line").last.evaluate("line => getComputedStyle(line).stroke")
        return paper, line

    light = colours()
    found.page.emulate_media(color_scheme="dark")
    found.page.wait_for_function("() => getComputedStyle(document.body).backgroundColor != 'rgb(255, 255, 255)'")
    dark = colours()
    assert light[0] == "rgb(255, 255, 255)"
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    found.page.close()


def test_hostile_names_are_shown_and_nothing_of_them_runs(chromium: Any, pages: dict[str, Path]) -> None:
    found = visit(chromium, pages["hostile"])
    for summary in found.page.locator("details.run > summary").all():
        summary.click()
    wait_until_drawn(found.page)
    assert _drawn(found.page) == 2 + 4 * len(HOSTILE)
    assert found.page.evaluate("window.owned") is None
    assert found.page.locator("main a[href^='javascript'], main svg a, main img, main iframe").count() == 0
    shown = found.page.locator("#run1-ranks-chart .yaxislayer-above text, #run1-ranks-chart .ytick text").all_text_contents()
    assert [HOSTILE[1].endswith(text.lstrip("…")) for text in shown].count(True) == 1
    assert any(text.endswith("</a>%{y}") for text in shown)
    assert any(text.endswith("$(touch owned) &lt;i&gt;") for text in shown)
    assert HOSTILE[0] in found.page.locator("#run1 tbody th").all_text_contents()
    _quiet(found)
    found.page.close()


def test_it_is_complete_without_javascript(chromium: Any, pages: dict[str, Path]) -> None:
    found = visit(chromium, pages["one"], java_script_enabled=False)
    assert found.page.get_by_text("Charts need JavaScript").is_visible()
    assert found.page.locator(".frame:visible").count() == 0
    for summary in found.page.locator("summary").all():
        summary.click()
    for name in NAMES:
        assert found.page.get_by_role("rowheader", name=name, exact=True).count() == 3  # spectra, ranks, costs
    found.page.close()


def test_it_is_worked_by_keyboard(chromium: Any, pages: dict[str, Path]) -> None:
    found = visit(chromium, pages["deep"])
    page = found.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    select = page.get_by_label("Layers shown")
    first = page.locator("#run1-spectra-chart .annotation-text").first.text_content()
    select.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function(
        "before => document.querySelector('#run1-spectra-chart .annotation-text').textContent != before", arg=first
    )
    assert "layers 26 to 50 of 110" in (select.locator("option:checked").text_content() or "")
    page.get_by_label("Previous layers").press("Enter")
    assert select.input_value() == "0"
    assert page.get_by_label("Previous layers").is_disabled()
    page.get_by_role("radio", name="MACs").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("radio", name="Bytes").is_checked()
    assert page.locator("#run1-costs-bytes").is_visible()
    assert not page.locator("#run1-costs-macs").is_visible()
    scrolled = page.locator("[data-frame=run1-costs-bytes]")
    assert scrolled.evaluate("frame => [frame.tabIndex, frame.scrollHeight > frame.clientHeight]") == [0, True]
    scrolled.focus()
    page.keyboard.press("End")
    page.wait_for_function("() => document.querySelector('[data-frame=run1-costs-bytes]').scrollTop > 500")
    _quiet(found)
    page.close()


def test_charts_have_names_and_colours_enough_contrast(chromium: Any, pages: dict[str, Path]) -> None:
    for scheme in ("light", "dark"):
        found = visit(chromium, pages["one"], color_scheme=scheme)
        roles = found.page.evaluate(
            """names => Object.fromEntries(names.map(
               name => [name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()]))""",
            [*TEXTS, *MARKS, "paper", "raised"],
        )
        for role in TEXTS:
            assert _contrast(roles[role], roles["paper"]) >= 4.5, (scheme, role)
            assert _contrast(roles[role], roles["raised"]) >= 4.5, (scheme, role)
        for role in MARKS:
            assert _contrast(roles[role], roles["paper"]) >= 3, (scheme, role)
        for chart in found.page.locator(".chart[role=img]").all():
            assert len(chart.get_attribute("aria-label")) > 20
        found.page.close()


def _contrast(first: str, second: str) -> float:
    """WCAG 2's contrast ratio of two colours #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(part, 16) / 255 for part in re.findall("..", colour[1:])]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)

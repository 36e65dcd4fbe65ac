"""Headless Chromium for the tests that open a page: the system's own, driven by playwright; one for the whole session."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


@dataclass
class Visit:
    """A page that is open, and what it said and asked for since."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser. Skips where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium (or Google Chrome), and these tests run")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
    with sync_api.sync_playwright() as driver:
        # No sandbox: tests of a page of ours may run as root, in a container that has no namespaces.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(browser: Any, path: Path, **options: Any) -> Visit:
    """Open a page from disk and wait until it has drawn."""
    found = Visit(browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options}))
    found.page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
    found.page.on("pageerror", lambda error: found.said.append(f"error: {error}"))
    found.page.on("dialog", lambda dialog: found.said.append(f"dialog: {dialog.message}"))
    found.page.on("request", lambda request: found.asked.append(request.url))
    found.page.goto(path.as_uri())
    if options.get("java_script_enabled", True):
        wait_until_drawn(found.page)
    return found


def wait_until_drawn(page: Any) -> None:
    """Every chart that can be seen has its lines or bars. A function, not an expression: the page allows no eval."""
    page.wait_for_function(
        "() => [...document.querySelectorAll('.chart')].every(chart => !chart.clientWidth || chart.querySelector('.trace'))"
    )

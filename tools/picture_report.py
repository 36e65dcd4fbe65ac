"""Take the pictures of a report for docs/report.md: docs/report-light.png and docs/report-dark.png.

Run `lrexport demo`, then `python tools/picture_report.py`; it needs the extra `test` and Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from lrexport import __version__
from lrexport.report.page.render import render
from lrexport.report.reported_run import read_subjects

ROOT = Path(__file__).parent.parent
WIDTH = 1280


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "lrexport-demo")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = Path(folder) / "report.html"
        page.write_text(render(read_subjects([run]), __version__), encoding="utf-8")
        # No sandbox: the page is trusted, and containers have none.
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            shown = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme=scheme)
            shown.goto(page.as_uri())
            shown.wait_for_function("() => document.querySelectorAll('.js-plotly-plot').length > 0")
            end = shown.locator("#run1-spectra .frame").bounding_box()
            height = round(end["y"] + end["height"] + 12)
            shown.screenshot(
                path=ROOT / "docs" / f"report-{scheme}.png",
                full_page=True,
                clip={"x": 0, "y": 0, "width": WIDTH, "height": height},
            )


if __name__ == "__main__":
    main()

"""The browser of browser.py."""

from tests.report.browser import chromium  # noqa: F401

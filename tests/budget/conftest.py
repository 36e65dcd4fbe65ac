"""The fixtures of support.py, which tests/hostile uses too."""

from tests.budget.support import _looked_into_once, check, pinned, sample  # noqa: F401

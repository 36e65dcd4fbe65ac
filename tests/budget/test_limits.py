"""Budgets out of TOML: units, mistakes with their place, and which keys there are."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrexport import units
from lrexport.artifacts.toml_files import read_settings
from lrexport.budget.limits import KEYS, Bound, Operators, make_budget, read_budgets
from lrexport.errors import UsageError

ROOT = Path(__file__).parents[2]


def _bound(key: str, text: str | int) -> float:
    (limit,) = make_budget("test", {key: text}, lambda name: "here").limits
    assert isinstance(limit, Bound)
    return limit.value


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("max_bytes", "1.5 MB", 1_500_000),
        ("max_gzip_bytes", "64 KiB", 65_536),
        ("max_macs", "1.2 GMACs", 1_200_000_000),
        ("max_params", "270000 params", 270_000),
        ("max_latency_p50", "800 us", 0.8),
        ("max_latency_p90", "0.2 s", 200.0),
        ("min_accuracy", "91.5 %", 0.915),
        ("max_bytes_ratio", "50%", 0.5),
        ("max_latency_ratio", "1.05×", 1.05),
        ("max_accuracy_drop", "1 point", 0.01),
        ("max_macs_growth", "0%", 0.0),
        ("max_macs_growth", "200K", 200_000),
        ("max_latency_growth", "5%", 0.05),
        ("max_opset", 20, 20),
    ],
)
def test_a_limit_is_read_in_its_unit(key: str, text: str | int, value: float) -> None:
    assert _bound(key, text) == pytest.approx(value)


def test_hyphens_do_for_underscores() -> None:
    assert make_budget("test", {"max-bytes": "1 KB"}, lambda name: "here").limits[0].key == "max_bytes"


@settings(deadline=None)
@given(st.integers(1, 10**15))
def test_a_size_in_bytes_and_a_count_in_words_are_exact(number: int) -> None:
    assert _bound("max_bytes", f"{number} B") == number
    assert _bound("max_macs", f"{number} MACs") == number


@settings(deadline=None)
@given(st.decimals(0, 1000, places=2), st.sampled_from(["", " ", "  "]))
def test_shares_and_points_are_hundredths(number: Decimal, space: str) -> None:
    assert _bound("min_accuracy", f"{number}{space}%") == float(number / 100)
    assert _bound("max_accuracy_drop", f"{number} points") == float(number / 100)


@settings(deadline=None)
@given(st.text(alphabet="0123456789. KMGBbyteskmacsparum%x×µ-+", max_size=12), st.sampled_from(sorted(KEYS)))
def test_any_text_is_a_limit_above_or_at_nothing_or_a_mistake_that_says_where(text: str, key: str) -> None:
    if key in ("path", "exclude", "target", "dense", "shapes", "sum", "severity") or key.endswith("operators"):
        return
    try:
        value: float | str = _bound(key, text)
    except UsageError as error:
        value = error.message
    if isinstance(value, str):
        assert value.startswith("here: ")
    else:
        assert 0 <= value < float("inf")
        assert re.search(r"[^\d. ]", text), "a number without a unit was taken"


MISTAKES = {
    "a number without a unit": ("max_bytes = 500000", 2, "max_bytes = 500000 has no unit", '"500 KB"'),
    "a text without a unit": ('max_macs = "20000000"', 2, "invalid count '20000000'", '"20M"'),
    "a unit of something else": ('max_latency_p50 = "5 KB"', 2, "invalid time '5 KB'", '"5 ms"'),
    "points without a unit": ("max_accuracy_drop = 0.5", 2, "max_accuracy_drop = 0.5 has no unit", '"0.5 points"'),
    "decibels without a number": ('min_accuracy = "much dB"', 2, "invalid score 'much dB'", "31 dB"),
    "a score in a unit of time": ('max_accuracy_drop = "5 ms"', 2, "invalid score '5 ms'", ""),
    "a ratio without a unit": ('max_macs_ratio = "0.5"', 2, "invalid ratio '0.5'", '"0.5x" or "50%"'),
    "an unknown key": ('max_byte = "1 KB"', 2, "unknown key 'max_byte' in the budget 'budget'", "Did you mean 'max_bytes'?"),
    "an unknown key in a budget of its own": (
        '[tool.lrexport.budget.small]\nmax_bits = "1 KB"', 3, "unknown key 'max_bits' in the budget 'small'", "'max_bytes'?",
    ),
    "a list for a text": ('max_bytes = ["1 KB"]', 2, "invalid max_bytes: expected a string, found a list", ""),
    "a table for a text": ('max_bytes = {of = "1 KB"}', 2, "invalid max_bytes: expected a string, found a table", ""),
    "a boolean for a text": ("max_bytes = true", 2, "invalid max_bytes: expected a string, found a boolean", ""),
    "a text for a number": ('max_opset = "18"', 2, "invalid max_opset '18': expected a whole number", ""),
    "an empty list": ("forbidden_operators = []", 2, "invalid forbidden_operators []: expected a string or a list", ""),
    "a list of numbers": ("path = [3]", 2, "invalid path [3]: expected a string or a list", ""),
    "no limit at all": ('path = "run"', 1, "the budget 'budget' has no limits", "Add one"),
    "a path that only excludes": ('path = ["!a.onnx"]\nmax_bytes = "1 KB"', 2, "path only has exclusions", "Add what to"),
    "a severity that does not exist": ('severity = "info"', 2, "invalid severity 'info': expected 'error' or 'warn'", ""),
    "a severity that is a list": ('severity = ["warn"]', 2, "invalid severity ['warn']", ""),
    "a sum that is a text": ('sum = "yes"', 2, "invalid sum 'yes': expected true or false", ""),
    "shapes that are a list": ("shapes = [1, 3]", 2, "expected a table of inputs, found a list", "by its name"),
    "no shapes": ("shapes = {}", 2, "invalid shapes", "shapes = {images"),
    "a shape that is a text": ('shapes = {x = "1,3"}', 2, "invalid shape '1,3' of 'x': expected a list of numbers", ""),
    "a size of 0": ("shapes = {x = [1, 0]}", 2, "invalid shape [1, 0] of 'x'", ""),
    "a size that is true": ("shapes = {x = [true]}", 2, "invalid shape [True] of 'x'", ""),
    "an accuracy of a sum": ('sum = true\nmin_accuracy = "1%"', 3, "min_accuracy does not apply to a sum", "bytes"),
    "a ratio of a sum": ('sum = true\nmax_bytes_ratio = "1x"', 3, "max_bytes_ratio does not apply to a sum", ""),
    "operators of a sum": ('forbidden_operators = "If"\nsum = true', 2, "forbidden_operators does not apply to a sum", ""),
    "a dense network of a sum": (
        'sum = true\nmax_bytes = "1 KB"\ndense = "a.onnx"', 4, "dense applies to a single model", "Remove one of the two.",
    ),
    "a size below a byte": ('max_bytes = "0 B"', 2, "invalid size '0 B'", ""),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_told_with_its_file_and_line_and_what_to_write(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, line, message, hint = MISTAKES[what]
    Path("pyproject.toml").write_text(f"[tool.lrexport.budget]\n{text}\n")
    with pytest.raises(UsageError) as raised:
        read_budgets(read_settings(None))
    assert raised.value.message.startswith(f"pyproject.toml:{line}: ")
    assert message in raised.value.message
    assert hint in str(raised.value.hint)


def test_a_table_has_limits_of_its_own_and_budgets_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lrexport.toml").write_text(
        '[budget]\nmax_bytes = "1 KB"\n[budget.phone]\npath = ["a", "b/*"]\ntarget = "phone"\nmax_latency_p50 = "1 ms"\n'
        '[budget."my.net"]\npath = "c"\nforbidden_operators = "Loop"\n'
    )
    own, phone, mine = read_budgets(read_settings(None))
    assert (own.name, own.paths, own.target) == ("budget", (), "local")
    assert (phone.name, phone.paths, phone.target) == ("phone", ("a", "b/*"), "phone")
    assert (mine.name, mine.limits[0].place) == ("my.net", "lrexport.toml:9")
    assert isinstance(mine.limits[0], Operators)


def test_every_key_is_documented() -> None:
    documented = set(
        re.findall(r"`((?:max|min|allowed|forbidden)_\w+|path|exclude|target|dense|shapes|sum|severity)`", _documentation())
    )
    assert documented == set(KEYS)


def _documentation() -> str:
    return (ROOT / "docs" / "budgets.md").read_text(encoding="utf-8")


@settings(deadline=None)
@given(st.floats(1e-6, 1e6))
def test_a_time_in_any_unit_is_the_same_time(milliseconds: float) -> None:
    found = [units.parse_ms(f"{milliseconds * scale:.12f} {unit}") for scale, unit in ((1e3, "us"), (1, "ms"), (1e-3, "s"))]
    assert found == pytest.approx([milliseconds] * 3, rel=1e-3)

"""Printed and parsed figures."""

from __future__ import annotations

import pytest

from lrexport import units
from lrexport.errors import UsageError


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("50%", 0.5), ("1", 1.0), (" 1e-1 ", 0.1)])
def test_shares(text: str, value: float) -> None:
    assert units.parse_share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["0", "1.1", "200%", "half", "0.5MB", "nan"])
def test_anything_that_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_share(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("1e-2", 0.01), ("5%", 0.05), ("1", 1.0), (".5 %", 0.005)])
def test_energies(text: str, value: float) -> None:
    assert units.parse_energy(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["-1", "1.1", "101%", "half", "nan", ""])
def test_anything_that_is_no_share_of_energy_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"invalid share .*: expected a number in \[0, 1\]"):
        units.parse_energy(text)


@pytest.mark.parametrize(
    ("text", "value"), [("500KB", 500_000), ("1.5 MB", 1_500_000), ("64KiB", 65_536), ("12 b", 12), (".5 kb", 500)]
)
def test_sizes(text: str, value: int) -> None:
    assert units.parse_bytes(text) == value


@pytest.mark.parametrize("text", ["500", "KB", "1 kilobyte", "-1KB", "0MB", "0.1 B", "1e3 KB", ""])
def test_a_size_without_a_unit_or_a_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid size"):
        units.parse_bytes(text)


def test_printed_forms() -> None:
    assert units.format_bytes(1_081_234) == "1.08 MB"
    assert units.format_bytes(512) == "512 B"
    assert units.format_count(40_551_040) == "40.55M"
    assert units.format_ms(0.8423) == "0.842 ms"
    assert units.format_ms(12.345) == "12.3 ms"
    assert units.format_ms(123.45) == "123 ms"
    assert units.format_share(1, 3) == "0.33×"
    assert units.format_percent(0.9178) == "91.78 %"
    assert units.format_duration(3725) == "1 h 02 min"


def test_shapes_of_inputs_by_name() -> None:
    assert units.parse_input_shape("images=1,3,320,320") == ("images", (1, 3, 320, 320))
    assert units.parse_input_shape("a=b:0= 7") == ("a=b:0", (7,))


@pytest.mark.parametrize("text", ["1,3", "=1,3", "x=", "x=1,,3", "x=-1,3", "x=1.5", "x=N,3", "x=²"])
def test_what_is_not_a_name_and_sizes_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid input shape"):
        units.parse_input_shape(text)


def test_macs_that_are_a_lower_bound_are_shown_as_one() -> None:
    assert [units.format_macs(count, exact) for count, exact in ((2500, True), (2500, False), (0, True), (0, False))] == [
        "2.50K", "≥ 2.50K", "0", "not counted",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "uncounted", "text"),
    [
        (50, ((), ()), "0.50×"),
        (50, (("DFT",), ("DFT",)), "≥ 0.50×"),
        (50, ((), ("DFT",)), "unknown"),
        (0, (("DFT",), ("DFT",)), "unknown"),
        (150, (("DFT",), ("DFT",)), "unknown"),
    ],
)
def test_a_ratio_of_macs_is_exact_a_bound_or_unknown(
    part: int, uncounted: tuple[tuple[str, ...], tuple[str, ...]], text: str
) -> None:
    assert units.format_macs_share(part, 100, uncounted) == text

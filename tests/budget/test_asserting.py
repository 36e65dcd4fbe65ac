"""The assertion for test suites."""

from __future__ import annotations

from pathlib import Path

import pytest

import lrexport

pytestmark = pytest.mark.usefixtures("sample", "_looked_into_once")


def test_a_model_within_its_budget_is_reported_on() -> None:
    report = lrexport.assert_within_budget("run", max_bytes="6 KB", max_accuracy_drop="1 point")
    assert [verdict.status for _, verdict in report.rows()] == ["passed", "passed"]


def test_a_model_past_its_budget_fails_the_test_with_limit_found_and_overshoot() -> None:
    with pytest.raises(AssertionError, match=r"size: found 5.46 KB, expected at most 5 KB, 463 B \(9.26 %\) over"):
        lrexport.assert_within_budget(Path("run"), max_bytes="5 KB")


def test_a_limit_that_cannot_be_checked_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="was not scored on any data"):
        lrexport.assert_within_budget("exports/small.onnx", min_accuracy="90%")


def test_without_limits_those_of_the_configuration_hold() -> None:
    assert len(lrexport.assert_within_budget("exports/*.onnx").models) == 2
    Path("mine.toml").write_text('[budget]\nmax_bytes = "1 KB"\n')
    with pytest.raises(AssertionError, match=r"mine.toml:2"):
        lrexport.assert_within_budget("run", config="mine.toml")


def test_an_inconclusive_limit_fails_only_when_strict() -> None:
    lrexport.assert_within_budget("run", max_latency_ratio="0.62x")
    with pytest.raises(AssertionError, match="inconclusive, which fails with --strict"):
        lrexport.assert_within_budget("run", strict=True, max_latency_ratio="0.62x")


def test_growth_is_against_the_baseline_that_is_given() -> None:
    lrexport.assert_within_budget("run", baseline="lrexport-baseline.json", max_macs_growth="11%")
    with pytest.raises(AssertionError, match="conv2"):
        lrexport.assert_within_budget("run", baseline="lrexport-baseline.json", max_macs_growth="10%")


def test_a_mistake_in_a_limit_is_a_usage_error() -> None:
    with pytest.raises(lrexport.UsageError, match="unknown key 'max_byte'"):
        lrexport.assert_within_budget("run", max_byte="5 KB")
    with pytest.raises(lrexport.UsageError, match="has no unit"):
        lrexport.assert_within_budget("run", max_bytes=5000)

"""The interval rule, and which layers explain a limit that was broken."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrexport.budget.check_report import Checked, Report
from lrexport.budget.facts import AccuracyFacts, Facts, LatencyFacts, Layer, ScoreFacts
from lrexport.budget.limits import make_budget
from lrexport.budget.quantities import Comparison
from lrexport.budget.verdicts import Verdict, judge

MACHINE = {"cpu": "A", "cores": 4}
TIMES = st.floats(0.01, 1000)


def _verdict(now: Facts, key: str, text: str, **others: Facts | bool | None) -> Verdict:
    (verdict,) = judge(make_budget("test", {key: text}, lambda name: "here"), Comparison(now, **others))  # type: ignore[arg-type]
    return verdict


def _timed(ratio: float, low: float, high: float, warning: str | None = None) -> Facts:
    return Facts(latency_ms={"local": LatencyFacts(1.0, 1.2, 0.1, 1, 1, ratio, (low, high), warning, MACHINE)})


@settings(deadline=None)
@given(st.lists(TIMES, min_size=3, max_size=3).map(sorted), TIMES, st.booleans())
def test_a_latency_fails_only_when_its_whole_interval_is_past_and_passes_only_when_it_is_within(
    interval: list[float], limit: float, doubtful: bool
) -> None:
    low, value, high = interval
    limit = float(f"{limit:.6f}")
    warning = "inconclusive: noise" if doubtful else None
    status = _verdict(_timed(value, low, high, warning), "max_latency_ratio", f"{limit:.6f}x").status
    assert (status == "failed") == (low > limit)
    assert (status == "passed") == (high <= limit and not doubtful)


@settings(deadline=None)
@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_sizes_and_macs_gate_exactly_and_are_never_inconclusive(found: int, limit: int) -> None:
    wanted = "passed" if found <= limit else "failed"
    assert _verdict(Facts(bytes=found), "max_bytes", f"{limit} B").status == wanted
    assert _verdict(Facts(macs=found), "max_macs", f"{limit} MACs").status == wanted
    dense = Facts(bytes=limit)
    assert _verdict(Facts(bytes=found), "max_bytes_ratio", "1x", dense=dense).status == wanted
    assert _verdict(Facts(bytes=found), "max_bytes_growth", "0%", baseline=dense).status == wanted


@pytest.mark.parametrize(
    ("macs", "words"), [(1001, "(0.1 %)"), (1234, "(23.4 %)"), (9999, "(900 %)"), (932_992, "(93199 %)")]
)
def test_what_is_over_is_a_percentage_without_powers_of_ten(macs: int, words: str) -> None:
    assert _verdict(Facts(macs=macs), "max_macs", "1K").over.endswith(words)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_drop_in_accuracy_is_judged_to_the_image(right: int, dense_right: int) -> None:
    """One image of 1000 is 0.1 points, which no binary fraction is."""
    now, dense = (Facts(accuracy=AccuracyFacts(count / 1000, 1.0, 1000)) for count in (right, dense_right))
    lost = max(0, dense_right - right)
    assert _verdict(now, "max_accuracy_drop", f"{lost / 10:.1f} points", dense=dense).status == "passed"
    if lost:
        assert _verdict(now, "max_accuracy_drop", f"{(lost - 1) / 10:.1f} points", dense=dense).status == "failed"


def _scored(value: float, unit: str = "dB", metric: str = "PSNR", higher: bool = True) -> Facts:
    return Facts(accuracy=ScoreFacts("image", metric, unit, value, 10, higher))


@pytest.mark.parametrize(
    ("now", "dense", "key", "text", "status"),
    [
        (_scored(31.0), None, "min_accuracy", "31 dB", "passed"),
        (_scored(30.9), None, "min_accuracy", "31 db", "failed"),
        (_scored(30.9), _scored(31.0), "max_accuracy_drop", "0.1 dB", "passed"),
        (_scored(30.8), _scored(31.0), "max_accuracy_drop", "0.1 dB", "failed"),
        (_scored(0.95, "", "SSIM"), None, "min_accuracy", "0.95 SSIM", "passed"),
        (_scored(0.8, "%", "mIoU"), _scored(0.81, "%", "mIoU"), "max_accuracy_drop", "1 point", "passed"),
        (_scored(0.7, "%", "mIoU"), None, "min_accuracy", "80%", "failed"),
        (_scored(0.3, "", "LPIPS", False), _scored(0.2, "", "LPIPS", False), "max_accuracy_drop", "0.05 LPIPS", "failed"),
        (_scored(0.2, "", "LPIPS", False), _scored(0.3, "", "LPIPS", False), "max_accuracy_drop", "0 LPIPS", "passed"),
    ],
)
def test_limits_on_scores_follow_unit_and_direction_of_the_tasks_metric(
    now: Facts, dense: Facts | None, key: str, text: str, status: str
) -> None:
    verdict = _verdict(now, key, text, dense=dense)
    assert verdict.status == status
    assert isinstance(now.accuracy, ScoreFacts)
    assert verdict.label.startswith(now.accuracy.metric)


@pytest.mark.parametrize(
    ("now", "key", "text", "words"),
    [
        (_scored(31.0), "min_accuracy", "91%", "its PSNR is not in %: write the limit in dB"),
        (_scored(0.9, "", "SSIM"), "min_accuracy", "31 dB", "its SSIM is not in dB: write the limit in SSIM"),
        (_scored(0.9, "%", "mIoU"), "min_accuracy", "31 dB", "write the limit in % or in points"),
        (
            Facts(accuracy=AccuracyFacts(0.9, 1.0, 10)),
            "min_accuracy",
            "31 dB",
            "its top-1 accuracy is a percentage, not in dB",
        ),
        (_scored(0.2, "", "LPIPS", False), "min_accuracy", "0.3 LPIPS", "a smaller LPIPS is better"),
        (_scored(31.0), "min_top5_accuracy", "91%", "only classification has top-5 accuracy"),
        (Facts(), "min_accuracy", "31 dB", "it was not scored on any data"),
    ],
)
def test_a_limit_in_the_unit_of_another_task_is_not_measured_and_says_which_to_use(
    now: Facts, key: str, text: str, words: str
) -> None:
    verdict = _verdict(now, key, text)
    assert verdict.status == "not measured"
    assert words in verdict.note


def test_milliseconds_have_the_spread_of_the_interleaved_ratio() -> None:
    now = _timed(0.5, 0.45, 0.55)
    assert _verdict(now, "max_latency_p50", "0.89 ms").status == "failed"  # 1 ms · 0.45 ÷ 0.5 = 0.9 ms
    assert _verdict(now, "max_latency_p50", "0.91 ms").status == "inconclusive"
    assert _verdict(now, "max_latency_p50", "1.11 ms").status == "passed"


def test_a_latency_that_was_measured_alone_has_its_own_spread() -> None:
    now = Facts(latency_ms={"local": LatencyFacts(1.0, 1.2, 0.2, 1, 1, machine=MACHINE)})
    assert _verdict(now, "max_latency_p50", "0.89 ms").status == "failed"  # 1 ms − 0.2 ms ÷ 2
    assert _verdict(now, "max_latency_p50", "1.05 ms").status == "inconclusive"
    assert _verdict(now, "max_latency_ratio", "2x").status == "not measured"


def test_macs_that_are_only_a_lower_bound_fail_past_the_limit_and_never_pass() -> None:
    now = Facts(macs=100, uncounted=("LSTM",))
    assert _verdict(now, "max_macs", "99 MACs").status == "failed"
    within = _verdict(now, "max_macs", "1000 MACs")
    assert (within.status, within.found) == ("not measured", "100 or more")
    assert (within.value, within.at_least) == (None, 100)
    assert "LSTM" in within.note
    assert "shapes = {" not in within.note
    assert "shapes = {" in _verdict(Facts(macs=0, uncounted=("Conv of unknown shape",)), "max_macs", "1K").note


@settings(deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 10**12), st.booleans(), st.booleans(), st.sampled_from(["ab", "aa"]))
def test_growth_and_ratios_of_lower_bounds_are_finite_and_never_pass_unless_nothing_changed(
    now: int, before: int, in_part: bool, before_in_part: bool, graphs: str
) -> None:
    uncounted = ("LSTM",)
    facts = Facts(macs=now, uncounted=uncounted if in_part else (), graph=graphs[0])
    other = Facts(macs=before, uncounted=uncounted if before_in_part else (), graph=graphs[1])
    is_same = in_part and before_in_part and now == before and graphs == "aa"
    for key, text in (("max_macs_growth", "5%"), ("max_macs_growth", "10K"), ("max_macs_ratio", "50%")):
        verdict = _verdict(facts, key, text, **{"dense" if key == "max_macs_ratio" else "baseline": other})
        if in_part or before_in_part:
            assert (verdict.status == "passed") == (is_same and key == "max_macs_growth")
        for text in (verdict.found, verdict.over, verdict.note):
            assert not re.search(r"\b(nan|inf)", text, re.IGNORECASE)
        assert all(value is None or math.isfinite(value) for value in (verdict.value, verdict.at_least))


def test_what_was_0_and_is_0_did_not_grow_and_what_was_0_is_told_what_helps() -> None:
    nothing = Facts(macs=0)
    assert _verdict(nothing, "max_macs_growth", "0%", baseline=nothing).status == "passed"
    grown = _verdict(Facts(macs=9), "max_macs_growth", "5%", baseline=nothing)
    assert (grown.status, grown.found) == ("not measured", "—")
    assert "by a number with its unit" in grown.note
    assert _verdict(Facts(macs=9), "max_macs_growth", "8 MACs", baseline=nothing).status == "failed"


def test_a_budget_that_warns_never_fails_and_says_so() -> None:
    limits = {"max_bytes": "1 KB", "min_accuracy": "90%", "max_macs": "1K", "severity": "warn"}
    budget = make_budget("test", limits, lambda name: "here")
    verdicts = judge(budget, Comparison(Facts(bytes=2000, macs=5)))
    assert [verdict.status for verdict in verdicts] == ["warning", "warning", "passed"]
    report = Report((Checked("m", Facts(), tuple(verdicts)),))
    assert (report.exit_code, report.summary()) == (0, "2 of 3 limits only warned")


def test_a_file_of_another_kind_has_bytes_and_says_why_it_has_no_more() -> None:
    now = Facts(bytes=10, kind="a .tflite file")
    assert _verdict(now, "max_bytes", "1 KB").status == "passed"
    assert _verdict(now, "max_bytes_growth", "0%", baseline=now).status == "passed"
    for key, value in (("max_macs", "1K"), ("max_params", "1K"), ("max_opset", 18), ("forbidden_operators", ["If"])):
        verdict = _verdict(now, key, value)  # type: ignore[arg-type]
        assert verdict.status == "not measured"
        assert "this is a .tflite file: limit its bytes" in verdict.note


def test_latencies_of_other_machines_threads_and_batches_are_not_compared() -> None:
    now = _timed(0.5, 0.49, 0.51)
    (latency,) = now.latency_ms.values()

    def against(**changes: object) -> Facts:
        return Facts(latency_ms={"local": replace(latency, **changes)})  # type: ignore[arg-type]

    assert _verdict(now, "max_latency_growth", "10%", baseline=now).status == "passed"
    for changes in ({"machine": {"cpu": "B", "cores": 4}}, {"machine": {}}, {"threads": 4}, {"batch": 8}):
        verdict = _verdict(now, "max_latency_growth", "10%", baseline=against(**changes))
        assert verdict.status == "not measured"
    other = against(machine={"cpu": "B", "cores": 4})
    assert _verdict(now, "max_latency_growth", "10%", baseline=other, any_machine=True).status == "passed"
    assert _verdict(now, "max_latency_growth", "10%", baseline=against(threads=4), any_machine=True).status == "not measured"


@pytest.mark.parametrize("other", ["dense", "baseline"])
def test_nothing_is_divided_by_nothing(other: str) -> None:
    key = "max_macs_ratio" if other == "dense" else "max_macs_growth"
    verdict = _verdict(Facts(macs=5), key, "50%", **{other: Facts(macs=0)})
    assert verdict.status == "not measured"


def test_the_layers_that_grew_are_named_with_both_sizes_the_most_grown_first() -> None:
    before = Facts(bytes=60, layers={"a": Layer(1, 1, 10), "b": Layer(1, 1, 50), "gone": Layer(1, 1, 9)})
    now = Facts(bytes=90, layers={"a": Layer(1, 1, 12), "b": Layer(1, 1, 40), "c": Layer(1, 1, 38)})
    explanation = _verdict(now, "max_bytes", "80 B", baseline=before).explanation
    assert explanation is not None
    assert explanation.grew
    assert [(layer.name, layer.before, layer.now) for layer in explanation.layers] == [("c", None, 38), ("a", 10, 12)]
    alone = _verdict(now, "max_bytes", "80 B").explanation
    assert alone is not None
    assert not alone.grew
    assert [layer.name for layer in alone.layers] == ["b", "c", "a"]
    assert _verdict(now, "max_bytes", "90 B", baseline=before).explanation is None


def test_operators_are_allowed_or_forbidden_by_name_or_pattern() -> None:
    now = Facts(operators=("Conv", "Relu", "com.microsoft.FusedConv"))
    assert _verdict(now, "allowed_operators", ["Conv", "Relu"]).found == "com.microsoft.FusedConv"  # type: ignore[arg-type]
    assert _verdict(now, "allowed_operators", ["*"]).status == "passed"  # type: ignore[arg-type]
    assert _verdict(now, "forbidden_operators", ["com.microsoft.*", "conv"]).found == "com.microsoft.FusedConv"  # type: ignore[arg-type]
    assert _verdict(now, "forbidden_operators", "Loop").status == "passed"

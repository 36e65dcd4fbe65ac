from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.goals import Energy, Goal, Macs, values_of
from lrexport.errors import UsageError
from lrexport.sweep.request import SweepRequest, make_request
from lrexport.sweep.space import Choices, Dimension, Numbers, parse_space, points_of, size_of

TRAIN = TrainConfig("resnet20", data="digits")


def parse(text: str) -> Dimension:
    (found,) = parse_space([text])
    return found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("macs=0.2..0.7", Dimension("macs", Numbers(0.2, 0.7))),
        ("--macs=20%..70%", Dimension("macs", Numbers(0.2, 0.7))),
        ("macs = 0.2..0.8:step=0.1", Dimension("macs", Numbers(0.2, 0.8, step=0.1))),
        ("macs=0.2..0.75:step=0.1", Dimension("macs", Numbers(0.2, 0.7, step=0.1))),
        ("sparsity-strength=0.01..0.3:log", Dimension("sparsity_strength", Numbers(0.01, 0.3, log=True))),
        ("energy=1e-3..1e-1:log", Dimension("energy", Numbers(1e-3, 1e-1, log=True))),
        ("svd-epochs=2..8", Dimension("svd_epochs", Numbers(2, 8, step=1, whole=True))),
        ("size=100KB..0.5MB", Dimension("size", Numbers(100_000, 500_000, step=1, whole=True))),
        ("latency=40%..0.9", Dimension("latency", Numbers(0.4, 0.9))),
        ("latency=800us..5ms", Dimension("latency_ms", Numbers(0.8, 5.0))),
        ("scheme=spatial,channel,auto", Dimension("scheme", Choices(("spatial", "channel", "auto")))),
        ("macs=0.25,0.5", Dimension("macs", Choices((0.25, 0.5)))),
    ],
)
def test_a_dimension_is_read_as_it_is_meant(text: str, wanted: Dimension) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("macz=0.2..0.7", "Did you mean macs?"),
        ("heldout=0.1..0.2", "'heldout' cannot be varied"),
        ("macs", "has no values"),
        ("macs=0.7..0.2", "expected the first number below the second"),
        ("macs=0..0.5", "invalid macs '0'"),
        ("macs=0.5", "has only one value"),
        ("macs=0.5,50%", "the same value twice"),
        ("macs=a..b", "invalid macs 'a'"),
        ("macs=0.2..0.7:lin", "invalid 'lin': expected log or step=S"),
        ("macs=0.2..0.3:step=0.2", "expected a step above 0"),
        ("scheme=spatial..channel", "scheme takes a list, not a range"),
        ("scheme=spatial,diagonal", "invalid scheme 'diagonal'"),
        ("size=100..200", "invalid size '100'"),
        ("latency=0.5..5ms", "mixes shares and times"),
        ("svd-epochs=0..4:log", "must start above 0"),
        ("svd-epochs=1.5..4", "invalid svd-epochs '1.5'"),
        ("sparsity-strength=nan..1", "sparsity-strength 'nan'"),
    ],
)
def test_a_text_that_is_no_dimension_is_refused_with_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["macs=0.2..0.7", "macs=0.1..0.2"], "macs is given twice"),
        (["macs=0.2..0.7", "energy=0.1..0.2"], "--vary macs and --vary energy are both goals"),
    ],
)
def test_dimensions_that_exclude_each_other_are_refused(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_space(texts)


_NUMBER = st.floats(0.001, 1.0).map(lambda value: round(value, 6))
_ENDS = st.tuples(_NUMBER, _NUMBER).filter(lambda ends: ends[0] < ends[1])
_RANGES = st.builds(
    lambda ends, how: f"macs={ends[0]}..{ends[1]}{how}",
    _ENDS,
    st.one_of(st.sampled_from(["", ":log"])),
)
_STEPPED = st.builds(
    lambda first, step, more: f"orthogonality={first / 100}..{(first + step * more) / 100}:step={step / 100}",
    *(st.integers(1, 60) for _ in range(3)),
)
_WHOLE = st.builds(lambda first, more: f"svd-epochs={first}..{first + more}", st.integers(0, 9), st.integers(1, 50))
_WHOLE_STEPPED = st.builds(
    lambda first, step, more: f"fine-tune-epochs={first}..{first + step * more}:step={step}",
    *(st.integers(1, 9) for _ in range(3)),
)
_SIZES = st.builds(lambda first, more: f"size={first}KB..{first + more}KB", st.integers(1, 900), st.integers(1, 900))
_CHOICES = st.lists(_NUMBER, min_size=2, max_size=6, unique=True).map(lambda found: f"macs={','.join(map(str, found))}")
_TEXTS = st.one_of(_RANGES, _STEPPED, _WHOLE, _WHOLE_STEPPED, _SIZES, _CHOICES, st.just("latency=0.8ms..5ms"))


@given(_TEXTS)
def test_a_dimension_is_written_as_it_is_read(text: str) -> None:
    assert parse(str(parse(text))) == parse(text)


@given(_TEXTS, st.floats(0, 1, exclude_max=True))
def test_every_share_of_a_dimension_is_one_of_its_values(text: str, share: float) -> None:
    domain = parse(text).domain
    value = domain.at(share)
    values = domain.values() if domain.count is not None and domain.count < 1000 else None
    if values is not None:
        assert value in values
        assert len(values) == len(set(values)) == domain.count
    if isinstance(domain, Numbers):
        assert domain.low <= value <= domain.high  # type: ignore[operator]
        assert domain.at(0.0) == pytest.approx(domain.low)


def test_a_share_of_the_way_is_a_number_that_people_would_write() -> None:
    assert Numbers(0.2, 0.8).at(0.25) == 0.35
    assert Numbers(0.3, 0.9).at(0.5) == 0.6


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_step_gives_both_ends_whatever_floats_make_of_it(step: int, more: int) -> None:
    found = parse(f"orthogonality=0.1..{(10 + step * more) / 100}:step={step / 100}").domain
    assert isinstance(found, Numbers)
    values = found.values()
    assert values is not None
    assert len(values) == more + 1
    assert values[-1] == pytest.approx((10 + step * more) / 100)


def test_a_logarithmic_range_is_spread_by_ratio() -> None:
    domain = parse("sparsity-strength=0.01..1:log").domain
    assert domain.at(0.5) == pytest.approx(0.1)


def test_a_space_is_as_large_as_the_product_of_its_dimensions_or_a_continuum() -> None:
    space = parse_space(["scheme=spatial,channel", "svd-epochs=1..3"])
    points = points_of(space)
    assert points is not None
    assert len(points) == size_of(space) == 6
    assert {tuple(point.values()) for point in points} == {(s, e) for s in ("spatial", "channel") for e in (1, 2, 3)}
    assert size_of(parse_space(["scheme=spatial,channel", "macs=0.2..0.7"])) is None
    assert points_of(parse_space(["macs=0.2..0.7"])) is None


def request(*vary: str, goal: Goal | None = None, trials: int = 10, **others: object) -> SweepRequest:
    return make_request(TRAIN, goal, others, vary, "macs", trials)


def test_a_point_becomes_the_compression_that_it_says() -> None:
    found = request("macs=0.2..0.7", "scheme=spatial,auto", "fine-tune-epochs=1..4", threads=2).config(
        {"macs": 0.4, "scheme": "auto", "fine_tune_epochs": 3}
    )
    train = TrainConfig("resnet20", data="digits", scheme="auto")
    assert found == CompressConfig(train, Macs(0.4), threads=2, fine_tune_epochs=3)


@pytest.mark.parametrize("name", ["energy", "params", "accuracy_drop", "size", "latency", "latency_ms"])
def test_every_goal_can_be_varied(name: str) -> None:
    text = {"size": "size=1KB..2KB", "latency_ms": "latency=1ms..2ms"}.get(name, f"{name}=0.1..0.5")
    value = 1500 if name == "size" else 0.25
    assert values_of(request(text).config({name: value}).goal) == {name: value}


def test_without_a_goal_the_share_of_the_macs_is_varied() -> None:
    assert list(map(str, request().space)) == ["macs=0.2..0.8"]
    assert list(map(str, request("scheme=spatial,channel").space)) == ["macs=0.2..0.8", "scheme=spatial,channel"]
    fixed = request("sparsity-strength=0.01..0.1", goal=Energy(0.1))
    assert fixed.config({"sparsity_strength": 0.05}).goal == Energy(0.1)


def test_no_more_trials_are_wanted_than_the_space_has_points() -> None:
    assert request("macs=0.3,0.5,0.7").trial_count == 3
    assert request("macs=0.3..0.7").trial_count == 10


def test_a_goal_given_and_varied_and_a_sweep_without_data_are_refused() -> None:
    with pytest.raises(UsageError, match="and a goal are mutually exclusive"):
        request("macs=0.2..0.7", goal=Macs(0.5))
    with pytest.raises(UsageError, match="requires --data"):
        make_request(TrainConfig("resnet20"), None, {}, (), "macs", 3)


def test_strength_is_not_steered_where_trials_of_many_budgets_share_svd_training() -> None:
    steered = replace(TRAIN, sparsity_strength="auto")
    for train, vary in ((steered, ()), (replace(steered, svd_epochs=0), ("svd-epochs=0,2",))):
        with pytest.raises(UsageError, match="trials share SVD training"):
            make_request(train, None, {}, vary, "macs", 3)
    assert make_request(replace(steered, svd_epochs=0), None, {}, (), "macs", 3).trial_count == 3
    assert make_request(steered, None, {}, ("sparsity-strength=0.01..0.1",), "macs", 3).trial_count == 3


def test_latency_is_measured_on_this_machine_unless_another_is_given() -> None:
    for target, wanted in ((None, "local"), ("ssh://pi@board", "ssh://pi@board")):
        found = make_request(TRAIN, None, {"target": target}, (), "latency", 3)
        assert found.config({"macs": 0.5}).target == wanted


def test_trials_share_their_svd_training_where_nothing_of_it_differs() -> None:
    sweep = request("macs=0.2..0.7", "scheme=spatial,auto", "fine-tune-epochs=1..4")
    points = [
        {"macs": 0.3, "scheme": "auto", "fine_tune_epochs": 1},
        {"macs": 0.5, "scheme": "auto", "fine_tune_epochs": 4},
        {"macs": 0.5, "scheme": "spatial", "fine_tune_epochs": 4},
    ]
    first, same, other = (sweep.svd_digest(sweep.config(point).train) for point in points)
    assert first == same != other


def test_what_a_sweep_was_made_with_is_the_same_for_the_same_space_written_differently() -> None:
    one = request("macs=20%..0.70", "scheme=spatial,auto").made_with()
    assert one == request("scheme=spatial,auto", "macs=0.2..0.7").made_with()
    assert one != request("scheme=spatial,auto", "macs=0.2..0.8").made_with()
    assert one == request("scheme=spatial,auto", "macs=0.2..0.7", trials=99).made_with()


def test_a_logarithmic_count_is_whole() -> None:
    domain = parse("svd-epochs=1..64:log").domain
    assert [domain.at(share) for share in (0.0, 0.5, 0.999999)] == [1, 8, 64]
    assert math.isclose(len(domain.values() or ()), 64)


def test_images_that_may_be_left_out_are_a_difference_only_where_there_may_be_some() -> None:
    none = request("macs=0.5,0.6")
    some = replace(none, train=replace(none.train, max_bad=3))
    assert "max_bad" not in none.made_with()  # sweeps of before know no such option, and go on
    assert some.made_with()["max_bad"] == 3
    assert some.dense_digest() != none.dense_digest()

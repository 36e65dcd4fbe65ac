"""Lists of options derived from their facts, and what differs between two configurations."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrexport.config import comparison
from lrexport.config.comparison import OPTIONS, decide_again, differences, only_in, settled, undecided
from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.goals import Energy, Macs, Size
from lrexport.errors import UsageError
from lrexport.sweep.request import make_request

_TRAIN = TrainConfig("resnet20", data="digits")
_NAMES = st.sampled_from([*OPTIONS, "plan_sha256", "an_option_of_tomorrow"])
_VALUES = st.sampled_from([None, True, 0, 1, 0.5, "auto", [], [0.5, 0.75], {"macs": 0.5}])
_CONFIGS = st.dictionaries(_NAMES, _VALUES, max_size=6)


def _json(config: CompressConfig) -> dict[str, Any]:
    return json.loads(json.dumps(config.to_record()))


def test_a_run_with_svd_training_has_settled_what_its_dense_network_alone_leaves_open() -> None:
    assert {*settled(svd_trained=True)} - {*settled(svd_trained=False)} == {"scheme", "keep", "svd_form"}
    assert {"weights", "seed", "dense_epochs", "orthogonality", "max_bad"} <= {*settled(svd_trained=False)}


def test_what_a_later_run_decides_again_is_neither_settled_nor_without_effect() -> None:
    again = {*decide_again(svd_trained=True, with_data=True)}
    assert {"batch_size", "lr", "teacher", "rule", "precision", "fine_tune_epochs"} <= again
    assert not again & {*settled(svd_trained=True), "data", "falling_ranks", "log_to", "workers", "device", "model", "goal"}
    assert {*decide_again(svd_trained=True, with_data=False)} == {
        *("rule", "rank_multiple", "target", "threads", "weighting")
    }


def test_options_of_one_phase_are_those_that_it_alone_uses() -> None:
    assert {*only_in("split")} == {"seed", "heldout"}
    assert {*only_in("dense")} == {"dense_epochs", "dense_lr"}
    assert {*only_in("fine-tune")} == {"fine_tune_epochs"}
    assert {*only_in("pruning")} >= {"goal", "rule", "target", "calibration_images"}


def test_a_configuration_differs_in_nothing_from_itself_as_json_has_it() -> None:
    config = CompressConfig(train=replace(_TRAIN, keep=("fc",), milestones=(0.3, 0.6)), goal=Macs(0.5))
    assert differences(_json(config), _json(config)) == {}


def test_differences_are_said_in_words() -> None:
    before = CompressConfig(train=replace(_TRAIN, keep=("fc", "stem")), goal=Macs(0.5))
    now = replace(before, train=replace(before.train, keep=(), lr=0.5), goal=Size(500), reconstruct=False)
    told = [str(each) for each in differences(_json(before), _json(now)).values()]
    assert sorted(told) == [
        "goal was --macs 0.5, now --size 500",
        "keep was fc stem, now not given",
        "lr was 0.02, now 0.5",
        "reconstruct was on, now off",
    ]


def test_a_digest_that_is_another_says_that_what_was_read_changed() -> None:
    (change,) = differences({"weights_sha256": "ab"}, {"weights_sha256": "cd"}).values()
    assert str(change) == "the weights has changed (weights-sha256 was 'ab', now 'cd')"


def test_what_an_older_version_did_not_know_is_no_difference_while_it_is_off() -> None:
    older = {name: value for name, value in _TRAIN.to_record().items() if name != "max_bad"}
    assert differences(older, {**older, "max_bad": 0, "weights_sha256": "ab"}) == {}
    assert [*differences(older, {**older, "max_bad": 3})] == ["max_bad"]


@given(_CONFIGS, _CONFIGS)
def test_what_changes_nothing_is_no_difference_and_every_other_change_of_a_known_option_is(
    before: dict[str, Any], now: dict[str, Any]
) -> None:
    changes = differences(before, now)
    assert not [name for name in changes if name in OPTIONS and OPTIONS[name].changes == "nothing"]
    for name in before.keys() & now.keys():
        free = name in OPTIONS and OPTIONS[name].changes == "nothing"
        assert (name in changes) == (before[name] != now[name] and not free)


def test_a_teacher_that_is_not_given_is_an_answer_and_weights_are_left_to_the_run() -> None:
    open_ones = undecided(_TRAIN.to_record())
    assert {"weights", "dense_epochs", "input_shape"} <= open_ones
    assert not open_ones & {"teacher", "teacher_weights", "weights_key", "teacher_weights_key"}


def test_stages_that_sweeps_share_keep_the_names_that_their_folders_have() -> None:
    request = make_request(_TRAIN, None, {}, (), "macs", 5)
    # An option that is new must be `later=True` and off by default, or sweeps that were begun before train all over again.
    assert request.dense_digest() == "7ad10ded"
    assert request.svd_digest(_TRAIN) == "08721e9e"
    assert request.svd_digest(replace(_TRAIN, devices=4, workers=0, download=True)) == "08721e9e"


def test_epochs_are_those_of_every_stage_of_training() -> None:
    assert comparison.EPOCHS == ("dense_epochs", "svd_epochs", "fine_tune_epochs", "baseline_epochs")
    assert {*comparison.EPOCHS} <= OPTIONS.keys()


@pytest.mark.parametrize("more", [{"goal": Macs(0.5), "rule": "threshold"}, {"goal": Energy(0.1)}], ids=["rule", "energy"])
def test_a_multiple_of_ranks_is_refused_where_a_threshold_decides_them(more: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--rank-multiple has no effect where a threshold or a plan decides ranks"):
        CompressConfig(TrainConfig("net"), rank_multiple=8, **more)

"""Events as people read them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from lrexport.cli.heartbeat import Heartbeat
from lrexport.cli.progress import Progressing
from lrexport.cli.sweep_progress import SweepProgress
from lrexport.events import EpochDone, Event, FidelityMeasured, HealingPart, LayersTimed, Noted, PlanChosen, Warned, Working
from lrexport.runs.sweep_record import Sweep
from lrexport.sweep.events import TrialBegun, TrialsSaved, WaitingForStage, WaitingForTrials


def kinds(base: type[Event] = Event) -> Iterator[type[Event]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_every_kind_of_event_of_a_run_has_one_handler_and_those_of_sweeps_have_theirs() -> None:
    shown = {*vars(Progressing)["__call__"].dispatcher.registry} - {object}
    of_sweeps = {kind for kind in kinds() if kind.__module__ == "lrexport.sweep.events"}
    assert shown == {kind for kind in kinds() if kind.__module__ == "lrexport.events"}
    assert {*vars(SweepProgress)["__call__"].dispatcher.registry} - {object} == of_sweeps


def test_the_time_that_is_left_is_that_of_whole_epochs_where_the_first_was_resumed_on_the_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seconds, left in ((1.0, "1 min 00 s left"), (40.0, "1 min 20 s left")):
        Progressing()(EpochDone("fine-tune", 3, 5, 100, 1.0, 0.5, 0.1, seconds, images_per_second=300.0, step_ms=300.0))
        assert left in capsys.readouterr().err


def test_a_plan_says_which_repair_was_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    after = {"heldout_top1_after_reconstruction": 0.9, "heldout_top1_after_batchnorm": 0.8}
    scores = {"heldout_top1": 0.7, **after}
    Progressing()(PlanChosen(threshold=0.1, scores=scores, macs=400, dense_macs=1000))
    assert capsys.readouterr().err == (
        "plan: 400 of 1.00K MACs (0.400), at most 10 % of a layer's energy dropped; held-out top-1 70.00 % as folded, "
        "90.00 % reconstructed, 80.00 % with BatchNorm re-estimated (not kept)\n"
    )


def test_healing_shows_its_first_part_and_then_what_it_reached(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progressing()
    for done, name in enumerate(["layer1.0.conv1", "layer1.0", ""]):
        progress(HealingPart(done, 3, "block" if name else "network", name))
    repaired, healed = {"SQNR": 12.34, "agreement": 0.9}, {"SQNR": 20.06, "agreement": 0.975}
    progress(FidelityMeasured(repaired=repaired))
    progress(FidelityMeasured(repaired=repaired, healed=healed, parts=3, kept=2, seconds=90, complete=False))
    first, measured, after = capsys.readouterr().err.splitlines()
    assert first == "healing the block layer1.0.conv1, part 1 of 3"
    assert measured == "fidelity to the network before pruning: 12.3 dB SQNR, same top-1 on 90.00 %"
    assert after == (
        f"{measured} repaired, 20.1 dB SQNR, same top-1 on 97.50 % healed in 1 min 30 s (2 of 3 parts better, out of time)"
    )


def test_long_healing_says_what_it_does_and_not_what_was_done_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrexport.cli.progress.Heartbeat", partial(Heartbeat, 0.1))
    with Progressing() as progress:
        progress(Working("refitting pairs"))
        progress(HealingPart(0, 9, "pair", "conv1"))
        progress(HealingPart(1, 9, "pair", "conv2"))
        time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "healing the pair conv1, part 1 of 9"
    assert lines[1:]
    assert all(re.fullmatch(r"healing: the pair conv2, part 2 of 9, .* so far", line) for line in lines[1:])


def test_a_sweep_shows_shared_stages_in_full_and_of_a_trial_only_the_live_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    show = SweepProgress(Progressing())
    for event in (
        WaitingForStage("svd"),
        Warned("in a shared stage"),
        TrialBegun(0, 2, {"macs": 0.5}),
        Warned("in a trial"),
        LayersTimed(1, 2, "local"),
        TrialsSaved(Sweep(study="s", objective="macs", made_with={}, wanted=2)),
        WaitingForTrials(2),
        Noted("after it"),
    ):
        show(event)
    assert capsys.readouterr().err.splitlines() == [
        "waiting for another process's SVD training",
        "warning: in a shared stage",
        "trial 0: macs 0.5",
        "timing layers and their pairs on local",
        "waiting for 2 trials of other processes",
        "note: after it",
    ]

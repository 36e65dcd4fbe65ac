"""Claims, errors and deaths, with trials that train nothing."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from lrexport.config.compression import TrainConfig
from lrexport.errors import DeviceError, InputError, UsageError
from lrexport.runs.sweep_record import Figures, Sweep, load_sweep
from lrexport.sweep import storage as storages
from lrexport.sweep.extras import need_optuna
from lrexport.sweep.locks import Process
from lrexport.sweep.request import SweepRequest, make_request
from lrexport.sweep.space import Point
from lrexport.sweep.storage import database_lock, open_storage
from lrexport.sweep.study import Book, Made

need_optuna()
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
DENSE = Figures(heldout_score=0.9, test_score=0.9, macs=1000, params=100)
Make = Callable[[int, Point, Path], Made]


def made(number: int, point: Point, run: Path) -> Made:
    macs = round(1000 * float(point["macs"]))
    return Figures(heldout_score=random.Random(number).random(), test_score=0.5, macs=macs, params=10), DENSE


def request(trials: int = 6, vary: str = "macs=0.2..0.8") -> SweepRequest:
    return make_request(TrainConfig("resnet20", data="digits"), None, {}, (vary,), "macs", trials)


def sweep(
    folder: Path, make: Make = made, asked: SweepRequest | None = None, url: str | None = None, name: str = "s"
) -> Sweep:
    folder.mkdir(exist_ok=True)
    with Process(folder) as process:
        book = Book(asked or request(), folder, open_storage(url, folder), name, process)
        book.bind()
        while book.begin(lambda running: None):
            book.make(make)
        return book.save()


def test_the_front_is_that_of_brute_force_and_the_file_says_the_same(tmp_path: Path) -> None:
    found = sweep(tmp_path, asked=request(12))
    points = {t.number: (t.figures.macs, t.figures.heldout_score) for t in found.trials if t.figures}
    assert len(points) == 12
    beaten = {
        n for n, (m, a) in points.items() for m2, a2 in points.values() if (m2 <= m and a2 > a) or (m2 < m and a2 >= a)
    }
    assert set(found.front) == set(points) - beaten
    assert [points[number][0] for number in found.front] == sorted(points[number][0] for number in found.front)
    assert load_sweep(tmp_path) == found


def test_a_finished_sweep_is_not_gone_on_with_but_for_more_trials(tmp_path: Path) -> None:
    first = sweep(tmp_path)
    assert sweep(tmp_path, lambda *_: pytest.fail("nothing is to be made")) == first
    more = sweep(tmp_path, asked=request(9))
    assert [trial.number for trial in more.trials] == list(range(9))
    assert more.trials[:6] == first.trials


def test_a_goal_out_of_reach_is_pruned_with_its_reason_and_the_sweep_goes_on(tmp_path: Path) -> None:
    def make(number: int, point: Point, run: Path) -> Made:
        if number == 1:
            raise UsageError("0.2 of the MACs is out of reach", "The least is 0.3.")
        return made(number, point, run)

    found = sweep(tmp_path, make)
    assert [trial.state for trial in found.trials] == ["finished", "pruned", *["finished"] * 4]
    assert found.trials[1].reason == "0.2 of the MACs is out of reach\nThe least is 0.3."
    assert 1 not in found.front


def test_a_failure_is_recorded_and_one_of_the_environment_is_tried_again_at_the_next_start(tmp_path: Path) -> None:
    errors = {1: InputError("the loss is nan"), 2: DeviceError("disk full"), 3: KeyError("x")}

    def make(number: int, point: Point, run: Path) -> Made:
        if number in errors:
            raise errors[number]
        return made(number, point, run)

    first = sweep(tmp_path, make)
    failed = {trial.number: (trial.reason, trial.exit_code) for trial in first.trials if trial.state == "failed"}
    assert failed == {1: ("the loss is nan", 3), 2: ("disk full", 4), 3: ("unexpected KeyError: 'x'", 4)}
    again = sweep(tmp_path, make)
    assert {trial.number for trial in again.trials} == {0, 1, 4, 5, 6, 7}
    assert [trial.number for trial in again.trials if trial.state == "failed"] == [1]
    before = {trial.number: trial.parameters for trial in first.trials}
    assert [trial.parameters for trial in again.trials[-2:]] == [before[2], before[3]]


@pytest.mark.parametrize("signal", [KeyboardInterrupt(), SystemExit(143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_trial_is_queued_again_with_its_point(tmp_path: Path, signal: BaseException) -> None:
    points: dict[int, Point] = {}

    def make(number: int, point: Point, run: Path) -> Made:
        points[number] = point
        if number == 2:
            (run / "checkpoint").mkdir(parents=True)
            (run / "checkpoint" / "state.json").write_text("of trial 2")
            raise signal
        if number == 3:
            assert (run / "checkpoint" / "state.json").read_text() == "of trial 2", "it goes on where that was stopped"
        return made(number, point, run)

    with pytest.raises(type(signal)):
        sweep(tmp_path, make)
    left = load_sweep(tmp_path)
    assert [trial.state for trial in left.trials] == ["finished", "finished", "waiting"]
    found = sweep(tmp_path, make)
    assert [trial.state for trial in found.trials] == ["finished"] * 6
    assert points[3] == points[2]


def abandon(folder: Path, url: str | None = None, name: str = "s") -> optuna.Trial:
    """A trial of a sweep of three that a machine took, which then went away after one heartbeat."""
    folder.mkdir(exist_ok=True)
    storage = open_storage(url, folder)
    with Process(folder) as process:
        process.place = "elsewhere"
        gone = Book(request(3), folder, storage, name, process)
        gone.bind()
        trial = gone._study.ask()
        gone._claim(trial)
        storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    return trial


def test_a_trial_whose_machine_went_away_is_taken_over_when_its_heart_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(storages, "GRACE_SECONDS", 1)
    trial = abandon(tmp_path)
    found = sweep(tmp_path, asked=request(3))
    assert [(trial.number, trial.state) for trial in found.trials] == [(n, "finished") for n in (1, 2, 3)]
    assert found.trials[-1].parameters["macs"] == trial.params["macs"]


def test_a_trial_whose_process_left_in_the_midst_of_taking_it_is_taken_over_at_once(tmp_path: Path) -> None:
    with Process(tmp_path) as process:
        book = Book(request(2), tmp_path, open_storage(None, tmp_path), "s", process)
        book.bind()
        book._claim(book._study.ask())
    found = sweep(tmp_path, asked=request(2))
    assert [(trial.number, trial.state) for trial in found.trials] == [(1, "finished"), (2, "finished")]


def test_a_trial_that_kills_its_process_every_time_is_left_at_last(tmp_path: Path) -> None:
    for _ in range(5):
        with Process(tmp_path) as process:
            book = Book(request(2), tmp_path, open_storage(None, tmp_path), "s", process)
            book.bind()
            book._revive()
            waiting = [t for t in book._study.get_trials() if t.state == optuna.trial.TrialState.WAITING]
            if waiting or not book._study.get_trials():
                book._claim(book._study.ask())
            book._revive()  # as the next process would: this one's trial is not under way any more
    found = sweep(tmp_path, asked=request(2))
    assert [trial.state for trial in found.trials] == ["failed", "finished"]
    assert found.trials[0].reason == "its process died without an error message, 4 times"


def test_another_space_is_refused_with_what_differs(tmp_path: Path) -> None:
    sweep(tmp_path)
    before = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(UsageError, match=r"space was macs=0.2..0.8, now macs=0.3..0.8"):
        sweep(tmp_path, asked=request(vary="macs=0.3..0.8"))
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_a_storage_that_lost_the_study_is_not_begun_again(tmp_path: Path) -> None:
    sweep(tmp_path)
    (tmp_path / "sweep.db").unlink()
    with pytest.raises(InputError, match=r"sweep.json has 6 trials, but the study 's' has none"):
        sweep(tmp_path)


def test_a_journal_file_holds_a_sweep_as_well(tmp_path: Path) -> None:
    url = f"journal:{tmp_path / 'sweep.log'}"
    first = sweep(tmp_path / "one", url=url, asked=request(3))
    assert [trial.state for trial in first.trials] == ["finished"] * 3
    assert sweep(tmp_path / "two", url=url, asked=request(5)).trials[:3] == first.trials


def test_two_sweeps_in_one_storage_do_not_meet(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'all.db'}"
    one = sweep(tmp_path / "one", url=url, name="one", asked=request(2))
    two = sweep(tmp_path / "two", url=url, name="two", asked=request(3, "macs=0.1..0.3"))
    assert (len(one.trials), len(two.trials)) == (2, 3)


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("nonsense", UsageError, "--storage 'nonsense'"),
        ("nosuch://a:secret@b/c", UsageError, "nosuch"),
        ("mysql://user:secret@host/db", DeviceError, "needs MySQLdb, which is not installed"),
        ("mysql://user:secret@host/db", DeviceError, "pip install 'mysqlclient'"),
        ("postgresql+pg8000://user:secret@host/db", DeviceError, "pip install 'pg8000'"),
        ("sqlite:////nowhere/at/all.db", DeviceError, "cannot open sqlite:////nowhere/at/all.db"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_told_without_its_password(
    tmp_path: Path, url: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        open_storage(url, tmp_path)
    assert words in f"{caught.value} {caught.value.hint}"
    assert "secret" not in str(caught.value)


def test_the_driver_that_postgresql_needs_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as where it is not installed
    for opening in (lambda url: open_storage(url, tmp_path), database_lock):
        with pytest.raises(DeviceError, match="needs psycopg, which is not installed") as caught:
            opening("postgresql://user:secret@host/db")
        assert caught.value.hint == "Install it with: pip install 'psycopg[binary]'"


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "sweep.db").write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(InputError, match="is not a database"):
        open_storage(None, tmp_path)

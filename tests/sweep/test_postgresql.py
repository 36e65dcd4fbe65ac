"""Sweeps that share a real PostgreSQL server: two folders, one study, processes that die and a server that goes away."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from lrexport.errors import DeviceError
from lrexport.runs.sweep_record import load_sweep
from lrexport.sweep import storage as storages
from lrexport.sweep.extras import need_optuna
from lrexport.sweep.locks import Process
from lrexport.sweep.storage import database_lock, open_storage
from tests.folders import folder_with
from tests.forked import Forked
from tests.sweep.postgresql import PASSWORD, Server, running_server
from tests.sweep.test_processes import COMMAND, NETWORK
from tests.sweep.test_study import abandon, request, sweep

pytest.importorskip("psycopg")
need_optuna()
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, sweep_network=NETWORK)


def begin(folder: Path, server: Server, study: str, output: str, trials: int = 4) -> Forked:
    where = ("--storage", server.url, "--study", study, "-o", output)
    return Forked(folder, *COMMAND, "--trials", str(trials), "--vary", "macs=0.3..0.8", *where)


def made_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "trials").iterdir()) if (folder / "trials").exists() else []


def _make_tables(url: str, folder: Path, together: Barrier, ended: Queue[str]) -> None:
    need_optuna()
    together.wait()
    try:
        with Process(folder, database_lock(url)) as process, process.claimed():
            open_storage(url, folder)
        ended.put("done")
    except BaseException as error:
        ended.put(repr(error))


@pytest.mark.slow
def test_processes_that_meet_a_new_database_together_make_its_tables_once(tmp_path: Path, server: Server) -> None:
    context = multiprocessing.get_context("fork")
    together, ended = context.Barrier(4), context.Queue()
    folders = [tmp_path / str(number) for number in range(4)]
    for folder in folders:
        folder.mkdir()
    processes = [context.Process(target=_make_tables, args=(server.url, folder, together, ended)) for folder in folders]
    for process in processes:
        process.start()
    assert [ended.get(timeout=60) for _ in processes] == ["done"] * 4
    for process in processes:
        process.join()


@pytest.mark.slow
def test_two_folders_share_the_trials_of_one_study(folder: Path, server: Server) -> None:
    processes = [begin(folder, server, "shared", name) for name in ("one", "two")]
    assert [process.wait() for process in processes] == [0, 0], [process.output for process in processes]
    sweeps = [load_sweep(folder / name) for name in ("one", "two")]
    assert [trial.state for trial in sweeps[0].trials] == ["finished"] * 4
    assert sweeps[0].trials == sweeps[1].trials
    assert sweeps[0].front == sweeps[1].front
    runs = [made_in(folder / name) for name in ("one", "two")]
    assert all(runs), "both have made some"
    assert sorted(runs[0] + runs[1]) == ["0000", "0001", "0002", "0003"]
    assert not any(PASSWORD in process.output for process in processes)


@pytest.mark.slow
def test_a_process_that_is_killed_in_a_trial_leaves_the_others_and_makes_its_own_again(folder: Path, server: Server) -> None:
    killed = begin(folder, server, "killed", "dying")
    killed.until(": macs ")
    other = begin(folder, server, "killed", "living")
    time.sleep(0.2)
    killed.send(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    other.until("waiting for 1 trial of other processes")
    again = begin(folder, server, "killed", "dying")
    assert [again.wait(), other.wait()] == [0, 0], again.output + other.output
    found = load_sweep(folder / "living")
    assert [trial.state for trial in found.trials] == ["finished"] * 4
    assert load_sweep(folder / "dying").trials == found.trials
    assert len(made_in(folder / "dying") + made_in(folder / "living")) == 4


def test_a_trial_whose_machine_went_away_is_made_elsewhere_when_its_heart_has_stopped(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(storages, "GRACE_SECONDS", 1)
    lost = abandon(tmp_path / "gone", server.url, "heart")
    found = sweep(tmp_path / "here", asked=request(3), url=server.url, name="heart")
    assert [(trial.number, trial.state) for trial in found.trials] == [(n, "finished") for n in (1, 2, 3)]
    assert lost.params["macs"] in [trial.parameters["macs"] for trial in found.trials]


@pytest.mark.slow
def test_a_server_that_restarts_while_a_trial_trains_is_not_noticed(folder: Path, server: Server) -> None:
    process = begin(folder, server, "restarted", "restarted", trials=2)
    process.until("trial 0: macs")
    server.restart()
    assert process.wait() == 0, process.output
    assert [trial.state for trial in load_sweep(folder / "restarted").trials] == ["finished"] * 2


@pytest.mark.slow
def test_a_server_that_stops_ends_the_sweep_with_what_to_do_and_the_same_command_goes_on(
    folder: Path, server: Server
) -> None:
    process = begin(folder, server, "stopped", "stopped", trials=3)
    process.until("trial 1: macs")
    server.stop()
    try:
        assert process.wait() == 4, process.output
        assert "run the same command again" in process.output
        refused = begin(folder, server, "stopped", "stopped", trials=3)
        assert refused.wait() == 4, refused.output
        assert "cannot open postgresql" in refused.output
    finally:
        server.start()
    for said in (process.output, refused.output):
        assert "Traceback" not in said
        assert PASSWORD not in said
    again = begin(folder, server, "stopped", "stopped", trials=3)
    assert again.wait() == 0, again.output
    found = load_sweep(folder / "stopped")
    assert [trial.state for trial in found.trials] == ["finished"] * 3
    assert "dense training: epoch" not in again.output


def test_a_wrong_password_is_said_without_it(tmp_path: Path, server: Server) -> None:
    with pytest.raises(DeviceError, match=r"cannot open postgresql://tester:\*\*\*@127") as caught:
        open_storage(server.url.replace(PASSWORD, "wrong-one"), tmp_path)
    assert "password authentication failed" in str(caught.value)
    assert "wrong-one" not in str(caught.value)

"""The browser target's server, its checks and its programs, with a page that the tests play: no browser is needed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrexport.cli.main import run
from lrexport.errors import DeviceError, UsageError
from lrexport.events import Event, Noted
from lrexport.measure.latency import Interrupted, Measurement, measure
from lrexport.measure.targets import MeasuringJob, parse_target
from lrexport.measure.targets.artefacts import prepared
from lrexport.measure.targets.base import ModelRefused
from lrexport.measure.targets.browser import desk, keeper, target, visits
from lrexport.measure.targets.browser.about import About
from lrexport.measure.targets.browser.target import Browser
from tests.board import write_model
from tests.measure.targets.phone import ABOUT, Phone, in_background, running_in, write_package
from tests.measure.test_runtimes import write_two

Play = Callable[[Phone], Any]


@pytest.fixture(autouse=True)
def _no_page_stays() -> Iterator[None]:
    yield
    for visit in visits._open.values():
        visit.end()
    visits._open.clear()


_PREPARED: dict[tuple[bytes, ...], MeasuringJob] = {}


@pytest.fixture(autouse=True)
def _files_are_prepared_once(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's outputs of a file are made by a process that takes a second: once for all tests."""

    def prepared_before(job: MeasuringJob, python: Any, folder: Path, name: str, measured: Any) -> Iterator[Any]:
        key = tuple(path.read_bytes() for path in job.paths())
        if job.groups and key not in _PREPARED:
            *_, done = prepared(job, job.runtime, python, tmp_path_factory.mktemp("prepared"), name)
            assert isinstance(done, MeasuringJob)
            _PREPARED[key] = done
        if job.groups:
            artefacts = _PREPARED[key].artefacts.values()
            job = replace(job, artefacts=dict(zip(job.paths(), artefacts, strict=True)))
        yield from measured(job)

    monkeypatch.setattr(target, "measured_when_prepared", prepared_before)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {"dense": write_model(tmp_path / "dense.onnx", 32)}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package")


def opened_by(play: Play) -> Callable[[Event], None]:
    """What a target says is opened by ``play``, with a phone."""

    def on_event(event: Event) -> None:
        assert isinstance(event, Noted)
        play(Phone(next(word for word in event.text.split() if word.startswith("http:"))))

    return on_event


def measured(files: dict[str, Path], package: Path, play: Play, seconds: int = 20, **options: Any) -> Measurement:
    """A measurement with a page that is played."""
    text = f"browser?serve=127.0.0.1:0&package={package}&timeout={seconds}"
    job = MeasuringJob((), rounds=60, **options)
    return measure(files, next(iter(files)), job, parse_target(text, opened_by(play)))


def test_a_page_elsewhere_measures_and_its_figures_are_those_of_any_target(
    files: dict[str, Path], package: Path, tmp_path: Path
) -> None:
    found = measured({**files, "two": write_two(tmp_path / "two.onnx")}, package, Phone.start)
    assert (found.latencies["two"].p50, found.latencies["two"].ratio) == (2.0, 1.0)
    assert found.inputs["two"]["first"] == {"shape": [1, 3, 9, 7], "dtype": "float32", "values": "random"}
    assert found.environment == {
        "cpu": "unknown processor",
        "isa": [],
        "cores": 8,
        "system": "Linux; Android 16; K",
        "runtime": "onnxruntime-web",
        "runtime_version": "1.30.0 wasm, Chrome 140.0.0.0",
        "precision": "float32",
        "timer_us": 100.0,
    }


def test_a_page_stays_for_the_measurements_that_follow_and_is_announced_once(files: dict[str, Path], package: Path) -> None:
    opened: list[Phone] = []

    def play(phone: Phone) -> None:
        opened.append(phone)
        in_background(lambda: [phone.work() for _ in range(3)])

    place = parse_target(f"browser?serve=127.0.0.1:0&package={package}&timeout=20", opened_by(play))
    assert place.environment()["cores"] == 8
    for _ in range(2):
        assert measure(files, None, MeasuringJob((), rounds=60), place).latencies["dense"].p50 == 2.0
    assert len(opened) == 1


def test_the_command_says_what_to_open_and_prints_the_table_of_what_a_phone_posts(
    files: dict[str, Path], package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    announce = visits._Served.announce

    def announced(visit: Any, on_event: Callable[[Event], None]) -> None:
        announce(visit, on_event)
        opened_by(Phone.start)(Noted(visit._url))

    monkeypatch.setattr(visits._Served, "announce", announced)
    target = f"browser?serve=127.0.0.1:0&package={package}"
    assert run(["bench", str(files["dense"]), "--target", target]) == 0
    out, err = capsys.readouterr()
    assert "note: open http://127.0.0.1:" in err
    assert "Keep the address secret" in err
    assert "ONNX Runtime Web 1.30.0 wasm, Chrome 140.0.0.0 in float32, clock in steps of 100 µs" in " ".join(out.split())


def test_other_outputs_than_onnx_runtimes_end_it_before_anything_is_timed(files: dict[str, Path], package: Path) -> None:
    pages: list[threading.Thread] = []
    timed: list[Any] = []

    def play(phone: Phone) -> None:
        phone.computed = lambda array: array * np.float32(1.01)
        phone.answered = timed.append
        pages.append(phone.start())

    with pytest.raises(ModelRefused, match=r"differs from ONNX Runtime's by 0\.01") as caught:
        measured(files, package, play)
    assert caught.value.model == "dense"
    pages[0].join(30)
    assert (pages[0].is_alive(), timed) == (False, [])


@pytest.mark.parametrize("samples", [[float("nan")] * 60, [None] * 60, [2.0] * 61], ids=["nan", "null", "too many"])
def test_times_that_a_page_of_ours_never_posts_are_refused(
    samples: list[Any], files: dict[str, Path], package: Path
) -> None:
    def play(phone: Phone) -> None:
        phone.answered = lambda answer: {"group": 0, "models": {"dense": {"samples_ms": samples, "repeats": 1}}}
        phone.start()

    with pytest.raises(DeviceError, match="not from lrexport's runner"):
        measured(files, package, play)


def test_a_stranger_gets_nothing_and_disturbs_nothing(files: dict[str, Path], package: Path) -> None:
    def play(phone: Phone) -> None:
        for path in ("/", "/x", f"/{'a' * 22}/", "/../../etc/passwd", phone.url.path.rstrip("/"), "/%00"):
            assert {phone.ask(path)[0], phone.ask(path, b"{}")[0]} == {404}
        for path in ("ort/../package.json", "ort/%2e%2e/package.json", "package.json", "model/99", "model/-1", "model/1e3"):
            assert phone.ask(path)[0] == 404
        assert phone.ask("")[0] == phone.ask("ort/ort.wasm.min.mjs")[0] == 200
        assert phone.ask("job", b"", **{"Content-Length": "4000001"})[0] == 413
        assert phone.ask("job", b"", **{"Content-Length": "-1"})[0] == 411
        assert [phone.ask("job", body)[0] for body in (b"{", b"[]", b"\xff", b"[" * 100_000)] == [400] * 4
        in_background(lambda: work_beside_another(phone))

    def work_beside_another(phone: Phone) -> None:
        other = Phone(phone.url.geturl(), "another")
        job, phone.job = phone.job(), lambda: job  # type: ignore[method-assign]
        refused.extend([other.post("job", ABOUT)[0], other.post("answer", {"finished": True})[0]])
        refused.append(phone.ask("outputs/0", b"\1\0\0\0x")[0])
        phone.work()

    refused: list[int] = []
    assert measured(files, package, play).latencies["dense"].p50 == 2.0
    assert refused == [409, 409, 400]


def test_a_page_is_isolated_and_may_load_only_our_files(files: dict[str, Path], package: Path) -> None:
    headers: list[Any] = []

    def play(phone: Phone) -> None:
        with urllib.request.urlopen(phone.url.geturl(), timeout=20) as answer:
            headers.append(answer.headers)
        phone.start()

    measured(files, package, play)
    assert headers[0]["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers[0]["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "default-src 'none'" in headers[0]["Content-Security-Policy"]


def test_a_page_that_is_reloaded_ends_the_measurement(files: dict[str, Path], package: Path) -> None:
    def play(phone: Phone) -> None:
        in_background(lambda: (phone.job(), phone.post("job", phone.about)))

    with pytest.raises(DeviceError, match="the page was reloaded"):
        measured(files, package, play)


def test_a_page_that_falls_silent_leaves_what_it_posted_before(files: dict[str, Path], package: Path) -> None:
    def play(phone: Phone) -> None:
        def work() -> None:
            phone.job()
            progress = {"stage": "measuring", "group": 0, "done": 7, "of": 60, "samples_ms": {"dense": [2.0] * 7}}
            phone.post("answer", {"progress": progress})

        in_background(work)

    with pytest.raises(Interrupted, match="was heard for 1 s") as caught:
        measured(files, package, play, seconds=1)
    assert "keep it in front" in (caught.value.hint or "")
    assert caught.value.measurement.latencies["dense"].rounds == 7


def test_a_phone_that_never_comes_is_not_waited_for_longer_than_allowed(files: dict[str, Path], package: Path) -> None:
    with pytest.raises(DeviceError, match=r"no page of http://127\.0\.0\.1:\d+/.+ was heard for 1 s"):
        measured(files, package, lambda phone: None, seconds=1)


def test_a_page_that_nobody_could_open_is_not_waited_for(files: dict[str, Path], package: Path) -> None:
    place = parse_target(f"browser?serve=127.0.0.1:0&package={package}")
    with pytest.raises(UsageError, match="nobody would see the address"):
        measure(files, None, MeasuringJob((), rounds=60), place)


def test_a_port_in_use_is_named(files: dict[str, Path], package: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        place = parse_target(f"browser?serve=127.0.0.1:{port}&package={package}", opened_by(Phone.start))
        with pytest.raises(DeviceError, match=f"cannot serve on 127.0.0.1:{port}: Address already in use"):
            measure(files, None, MeasuringJob((), rounds=60), place)


@pytest.mark.parametrize(
    ("query", "threads", "message"),
    [
        ("", 2, "cannot use 2 threads: Chrome 140.0.0.0"),
        ("&provider=webgpu", 1, "has no WebGPU in Chrome 140.0.0.0, because"),
    ],
)
def test_what_the_browser_lacks_is_said(
    query: str, threads: int, message: str, files: dict[str, Path], package: Path
) -> None:
    def play(phone: Phone) -> None:
        in_background(lambda: phone.post("job", phone.about))

    text = f"browser?serve=127.0.0.1:0&package={package}{query}"
    with pytest.raises(DeviceError, match=message):
        measure(files, None, MeasuringJob((), rounds=60, threads=threads), parse_target(text, opened_by(play)))


@pytest.mark.parametrize("about", [{"cores": 0}, {"timer_ms": float("nan")}, {"agent": "x" * 501}, {"more": 1}, None])
def test_what_a_stranger_says_about_his_browser_is_refused(about: dict[str, Any] | None) -> None:
    with pytest.raises(DeviceError, match="a page that is not lrexport's"):
        Browser()._checked({} if about is None else {**ABOUT, **about}, MeasuringJob(()))


@pytest.mark.parametrize(
    ("agent", "brands", "name"),
    [
        ("", [["Not:A-Brand", "8.0.0.0"], ["Chromium", "156.0.8078.108"]], "Chromium 156.0.8078.108"),
        ("", [["Chromium", "156.0.1.2"], ["Google Chrome", "156.0.1.3"]], "Google Chrome 156.0.1.3"),
        ("Mozilla/5.0 (Android 16; Mobile; rv:145.0) Gecko/145.0 Firefox/145.0", [], "Firefox 145.0"),
        ("Mozilla/5.0 (iPhone) AppleWebKit/605.1 (KHTML, like Gecko) Version/26.0 Mobile Safari/604.1", [], "Safari 26.0"),
        ("", [], "an unknown browser"),
    ],
)
def test_browsers_are_named_by_what_they_tell(agent: str, brands: list[list[str]], name: str) -> None:
    about = {**ABOUT, "agent": agent, "brands": [tuple(brand) for brand in brands]}
    assert About.model_validate(about).browser == name


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        ("browser", "browser", Browser()),
        ("browser?provider=webgpu", "browser?provider=webgpu", Browser("webgpu")),
        ("browser?package=node&path=/opt/chrome", "browser", Browser(package="node", path="/opt/chrome")),
        ("browser?serve=0.0.0.0:80&timeout=9", "browser?serve", Browser(serve=("0.0.0.0", 80), timeout=9)),
        ("browser?serve=[::]:8000&provider=webgpu", "browser?serve&provider=webgpu", Browser("webgpu", serve=("::", 8000))),
    ],
)
def test_a_browser_is_named_by_how_it_computes(text: str, name: str, wanted: Browser) -> None:
    assert (parse_target(text), parse_target(text).name) == (wanted, name)


@pytest.mark.parametrize(
    "text",
    [
        *("browsers", "browser:", "browser?", "browser?threads=2", "browser?provider=webgl", "browser?serve=8000"),
        *("browser?serve=0.0.0.0:65536", "browser?serve=a b:1", "browser?package=", "browser?path=", "browser?timeout=9"),
        *("browser?serve=a:1&path=b", "browser?serve=a:1&timeout=0", "local?runtime=onnxruntime-web"),
    ],
)
def test_what_is_not_a_browser_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert repr(text) in caught.value.message
    assert caught.value.hint


def bench(files: dict[str, Path], target: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    return run(["bench", str(files["dense"]), "--target", target]), capsys.readouterr().err


def test_what_is_missing_is_exit_code_4_with_the_line_that_installs_it(
    files: dict[str, Path],
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    below = tmp_path / "project" / "src"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    code, err = bench(files, "browser", capsys)
    assert (code, "npm install onnxruntime-web" in err) == (4, True)
    code, err = bench(files, f"browser?package={tmp_path}", capsys)
    assert (code, f"{tmp_path} is not onnxruntime-web" in err) == (4, True)
    write_package(below.parent / "node_modules" / "onnxruntime-web")
    monkeypatch.setenv("PATH", str(tmp_path))
    code, err = bench(files, "browser", capsys)
    assert (code, "Chromium is not installed" in err, "apt-get install chromium" in err) == (4, True, True)
    code, err = bench(files, "browser?path=/nowhere/chromium", capsys)
    assert (code, "there is no browser to run at /nowhere/chromium" in err) == (4, True)
    (package / "dist" / "ort.wasm.min.mjs").unlink()
    code, err = bench(files, f"browser?package={package}", capsys)
    assert (code, "expected version 1.20 or newer" in err) == (4, True)


def test_a_browser_that_ends_at_once_is_reported_with_its_last_words(
    files: dict[str, Path], package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho 'cannot open display' >&2\nexit 7\n")
    program.chmod(0o755)
    code, err = bench(files, f"browser?package={package}&path={program}", capsys)
    assert (code, "the browser ended with exit status 7: cannot open display" in err) == (4, True)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for a browser's sockets, as pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@pytest.mark.parametrize("ending", ["stdin", signal.SIGTERM, signal.SIGINT])
def test_the_keeper_of_a_browser_leaves_neither_process_nor_folder(ending: Any, short_folder: Path) -> None:
    script = "mkdir {folder}/profile; touch $HOME/.pki; sleep 1000 & sleep 1000"
    keep = subprocess.Popen(
        [sys.executable, keeper.__file__, "sh", "-c", script],
        stdin=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(short_folder)},
    )
    assert keep.stdin is not None
    assert keep.poll() is None
    until = time.monotonic() + 60
    while not list(short_folder.glob("*/.pki")) and time.monotonic() < until:
        time.sleep(0.02)
    assert list(short_folder.glob("*/.pki"))
    if ending == "stdin":
        keep.stdin.close()
    else:
        keep.send_signal(ending)
    keep.wait(60)
    assert list(short_folder.iterdir()) == []
    assert running_in(short_folder) == []
    keep.stdin.close()


def test_a_page_may_be_replaced_once_it_was_away_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "_POLL_SECONDS", 0.01)
    place = desk.Desk()
    assert place.ask("first", {"is": "first"}) is None
    with pytest.raises(desk.Busy):
        place.ask("second", {})
    monkeypatch.setattr(desk, "_AWAY_SECONDS", -1.0)
    assert place.ask("second", {"is": "second"}) is None
    with pytest.raises(desk.Busy):
        place.hear("first")

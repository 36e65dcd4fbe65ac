"""Phones over adb: the real client, a fake phone, and what the programs of the runtimes print."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrexport.cli.main import run
from lrexport.errors import UsageError
from lrexport.measure.latency import measure, slowed_down
from lrexport.measure.targets import MeasuringJob, check_times_layers, parse_target
from lrexport.measure.targets.adb import Adb
from lrexport.measure.targets.phone_facts import Core, chosen_cores, listed, mask, ranges
from lrexport.measure.targets.phone_programs import PROGRAMS, Unreadable
from tests.board import write_model
from tests.phone import FakePhone, write_script
from tests.phone_programs import FAKE_EXECUTORCH, FAKE_LITERT, FAKE_NCNN, FAKE_ORT


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        ("adb://?runner=ort&program=p", "adb://?runner=ort", Adb("ort", Path("p"))),
        ("adb://R3CN70?runner=ncnn&program=a%20b", "adb://R3CN70?runner=ncnn", Adb("ncnn", Path("a b"), "R3CN70")),
        (
            "adb://10.0.0.7:5555?runner=mnn&program=p",
            "adb://10.0.0.7:5555?runner=mnn",
            Adb("mnn", Path("p"), "10.0.0.7:5555"),
        ),
        (
            "adb://?runner=litert&program=p&cores=4-7&libraries=l",
            "adb://?runner=litert&cores=4-7",
            Adb("litert", Path("p"), None, Path("l"), "4-7"),
        ),
    ],
)
def test_a_phone_is_named_by_its_serial_runner_and_cores(text: str, name: str, wanted: Adb) -> None:
    found = parse_target(text)
    assert (found, found.name) == (wanted, name)


@pytest.mark.parametrize(
    "text",
    [
        *("adb://", "adb:phone", "adb://phone", "adb://?runner=ort", "adb://?program=p", "adb://?runner=tvm&program=p"),
        *("adb://-s?runner=ort&program=p", "adb://a;b?runner=ort&program=p", "adb://$(id)?runner=ort&program=p"),
        *("adb://a b?runner=ort&program=p", "adb://?runner=ort&program=", "adb://?runner=ort&program=p&cores=fast"),
        *("adb://?runner=ort&program=p&cores=7-4", "adb://?runner=ort&program=p&cores=0-9999", "adb://?x=1"),
        *("adb://?runner=ncnn&program=p&cores=4-7", "adb://?runner=mnn&program=p&cores=little"),
        "adb://?runner=ort&program=p&program=q",
    ],
)
def test_what_names_no_phone_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert repr(text) in caught.value.message
    assert caught.value.hint


def test_the_fastest_cores_are_chosen_and_as_many_as_there_are_threads() -> None:
    cores = [Core(number, fastest) for number, fastest in enumerate([1800] * 4 + [2400] * 3 + [3000])]
    chosen = {
        (words, threads): chosen_cores(cores, words, threads) for words in ("big", "little") for threads in (0, 1, 2, 5)
    }
    assert chosen["big", 1] == chosen["big", 0] == (7,)
    assert chosen["big", 2] == (4, 5, 6, 7)
    assert chosen["big", 5] == chosen_cores(cores, "all", 1) == tuple(range(8))
    assert chosen["little", 2] == (0, 1, 2, 3)
    assert chosen["little", 5] == tuple(range(7))
    assert chosen_cores(cores, "2,5-7", 1) == (2, 5, 6, 7)
    with pytest.raises(UsageError, match="the device has no core 8"):
        chosen_cores(cores, "7-8", 1)
    assert (mask((4, 5, 6, 7)), ranges((0, 2, 3, 7)), listed("0,2-3")) == ("f0", "0,2-3,7", (0, 2, 3))


def test_two_files_take_turns_on_a_phone_and_nothing_is_left_there(
    phone: FakePhone, here: Path, models: tuple[Path, Path]
) -> None:
    wide, narrow = models
    target = parse_target(f"adb://PHONE1?runner=ort&program={write_script(here / 'a $(touch pwned)', FAKE_ORT)}")
    found = measure({"wide": wide, "narrow": narrow}, "wide", MeasuringJob((), 6, cold=True), target)
    assert found.latencies["narrow"].ratio == pytest.approx(narrow.stat().st_size / wide.stat().st_size, abs=0.01)
    assert found.latencies["wide"].p50 == pytest.approx(wide.stat().st_size / 10, rel=1e-3)
    assert found.latencies["wide"].load_ms == pytest.approx(217.932)
    assert len(found.samples_ms["wide"]) == 6
    assert found.environment["cpu"] == "Acme X1 (Example Phone 7)"
    assert found.environment["system"].startswith("Android 14")
    assert found.environment["celsius"] == found.after["celsius"] == 41.5
    assert found.environment["clocks_mhz"]["0"] == 900
    assert found.environment["isa"] == ["asimd", "asimddp"]
    assert found.environment["runtime_version"].startswith("onnxruntime_perf_test ")
    ran = [command for command in phone.commands if "./program" in command]
    assert len(ran) == 2 + 12
    assert all(f"exec taskset {mask(range(os.cpu_count() or 1))} ./program -e cpu" in command for command in ran)
    order = "".join("w" if "0/model.onnx" in command else "n" for command in ran[2:])
    assert order not in ("wn" * 6, "nw" * 6, "w" * 6 + "n" * 6)
    assert phone.left() == []
    assert phone.running() == []
    assert {path.name for path in here.iterdir()} == {"a $(touch pwned)", "wide.onnx", "narrow.onnx"}


def test_sizes_that_a_file_leaves_open_are_fixed_before_it_is_sent(phone: FakePhone, here: Path) -> None:
    import onnx

    write_model(Path("open.onnx"))
    model = onnx.load("open.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, "open.onnx")
    program = write_script(here / "program", f"cp */model.onnx {here}/sent.onnx\n{FAKE_ORT}")
    found = measure({"open": Path("open.onnx")}, None, MeasuringJob((), 2, batch=3), _target("ort", program))
    assert found.latencies["open"].batch == 3
    assert found.inputs["open"]["x"] == {"shape": [3, 3, 8, 8], "dtype": "float32", "values": "random"}
    sent = onnx.load("sent.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in sent] == [3, 3, 8, 8]


def test_ncnn_gets_the_network_without_weights_and_sizes_in_its_order(phone: FakePhone, here: Path) -> None:
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    write_model(Path("model.onnx"))
    program = write_script(here / "benchncnn", FAKE_NCNN)
    found = measure({"model": Path("model.onnx")}, None, MeasuringJob((), 2), _target("ncnn", program, "&cores=little"))
    assert found.environment["precision"] == "float16 where the processor has it"
    assert found.environment["pinned"] == "little, by benchncnn"
    assert found.inputs["model"]["x"]["values"] == "0.01"
    ran = [command for command in phone.commands if "./program" in command]
    assert all("taskset" not in command for command in ran)
    assert "exec ./program 5 1 1 -1 0 param=0/model.param" in ran[0]
    assert "shape=[8,8,3]" in ran[0]
    assert phone.left() == []


@pytest.mark.parametrize(
    ("runner", "suffix", "script"), [("litert", ".tflite", FAKE_LITERT), ("executorch", ".pte", FAKE_EXECUTORCH)]
)
def test_files_of_other_toolchains_are_measured_as_they_are(
    runner: str, suffix: str, script: str, phone: FakePhone, here: Path
) -> None:
    mark = {"litert": b"\0\0\0\0TFL3", "executorch": b"\0\0\0\0ET12"}[runner]
    for name, size in (("dense file", 900), ("small", 450)):
        Path(name + suffix).write_bytes(mark.ljust(size, b"\0"))
    target = f"adb://?runner={runner}&program={write_script(here / 'program', script)}"
    assert (
        run(["bench", f"dense file{suffix}", f"small{suffix}", "--rounds", "10", "--target", target, "--json", "out"]) == 0
    )
    files = json.loads(Path("out").read_text())["files"]
    assert files[f"small{suffix}"]["latency_ms"]["ratio"] == pytest.approx(0.5, abs=0.01)
    assert files[f"dense file{suffix}"]["latency_ms"]["first_run_ms"] == pytest.approx(18.535 if runner == "litert" else 90)
    assert phone.left() == []


def test_ranks_are_chosen_by_layers_that_a_phone_timed(phone: FakePhone, here: Path, models: tuple[Path, Path]) -> None:
    target = _target("ort", write_script(here / "program", FAKE_ORT))
    job = MeasuringJob(({"x2": models[1], "x6": models[0]},), 200, group_seconds=1.0, evict_bytes=1 << 20)
    found = next(answer["models"] for answer in target.run(job) if "models" in answer)
    assert {name: len(figures["samples_ms"]) for name, figures in found.items()} == {"x2": 7, "x6": 7}
    check_times_layers(target)
    for runner, reason in (("ncnn", "prints hundredths of a millisecond"), ("litert", "are not converted for")):
        with pytest.raises(UsageError, match=reason):
            check_times_layers(_target(runner, here / "program"))


def test_a_clock_that_is_held_back_is_a_reason_to_call_a_result_inconclusive(phone: FakePhone, here: Path) -> None:
    (phone.folder / "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq").write_text("1800000\n")
    target = _target("ort", write_script(here / "program", FAKE_ORT))
    assert target.environment()["slowed"] == ["clock limited to 1.80 of 2.80 GHz"]
    assert slowed_down(target.environment(), {}) == "clock limited to 1.80 of 2.80 GHz"


# As the sources print them; the figures are made up.
RECORDED = {
    "ort": """Setting intra_op_num_threads to 1
Disabling intra-op thread spinning between runs

Session creation time cost: 0.217932 s
First inference time cost: 196 ms
Total inference time cost: 0.4 s
Total inference requests: 4
Average inference time cost total: 100.000000 ms
Total inference run time: 0.494854 s
Number of inferences per second: 10.104
Avg CPU usage: 11 %
Peak working set size: 271122432 bytes

.,0.13,271122432,11,0
.,0.091,271122432,11,1
.,0.09,271122432,11,2
.,8.9e-02,271122432,11,3
""",
    "ncnn": """loop_count = 4
num_threads = 1
powersave = 2
gpu_device = -1
cooling_down = 0
       0/model.param  min =   89.21  max =   91.00  avg =   90.00
""",
    "mnn": """MNN benchmark
Forward type: CPU thread=1 precision=1 sparsity=0 sparseBlockOC=1 testQuantizedModel=0 enableKleidiAI=0
--------> Benchmarking... loop = 4, warmup = 1
[-INFO-]: precision!=2, use fp32 inference.
[ - ] model.mnn                   max =   91.000 ms  min =   89.210 ms  avg =   90.000 ms
""",
    "litert": """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Min num runs: [4]
INFO: Num threads: [1]
INFO: Graph: [0/model.tflite]
INFO: Loaded model 0/model.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 4.27635
INFO: Initialized session in 5.685ms.
INFO: Running benchmark for at least 1 iterations and at least 0 seconds but terminate if exceeding 3600 seconds.
INFO: count=1 curr=98535

INFO: Running benchmark for at least 4 iterations and at least 0 seconds but terminate if exceeding 3600 seconds.
INFO: count=4 first=91000 curr=89210 min=89210 max=91000 avg=90000 std=700

INFO: Inference timings in us: Init: 5685, First inference: 98535, Warmup (avg): 98535, Inference (avg): 90000
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE
INFO: Memory footprint delta from the start of the tool (MB): init=4.5 overall=7.25
""",
    "executorch": """OutputX 0: tensor(sizes=[1, 10], [0., 1.])

I 00:00:00.001 executorch:executor_runner.cpp:380] Model loaded in 12.500000 ms.
I 00:00:00.110 executorch:executor_runner.cpp:560] Iteration 1 of 4: 98.500000 ms
I 00:00:00.210 executorch:executor_runner.cpp:560] Iteration 2 of 4: 91.000000 ms
I 00:00:00.310 executorch:executor_runner.cpp:560] Iteration 3 of 4: 90.000000 ms
I 00:00:00.410 executorch:executor_runner.cpp:560] Iteration 4 of 4: 89.000000 ms
I 00:00:00.411 executorch:executor_runner.cpp:570] Model executed successfully 4 time(s) in 368.500000 ms.
I 00:00:00.411 executorch:executor_runner.cpp:580] 1 outputs: 
""",
}  # fmt: skip
FILES = {
    "ort": "0/model.onnx",
    "ncnn": "0/model.param",
    "mnn": "0/model.mnn",
    "litert": "0/m.tflite",
    "executorch": "0/m.pte",
}


@pytest.mark.parametrize("runner", RECORDED)
def test_what_a_program_prints_is_read(runner: str) -> None:
    timing = PROGRAMS[runner].parse(RECORDED[runner], 4, FILES[runner])
    assert timing.ms == pytest.approx(90)
    if runner in ("ort", "litert", "executorch"):
        assert timing.load_ms == pytest.approx({"ort": 217.932, "litert": 5.685, "executorch": 12.5}[runner])
        assert timing.first_run_ms == pytest.approx({"ort": 196, "litert": 98.535, "executorch": 98.5}[runner])


def test_an_executor_runner_that_prints_no_single_runs_gives_their_average() -> None:
    lines = [line for line in RECORDED["executorch"].splitlines() if "Iteration" not in line]
    assert PROGRAMS["executorch"].parse("\n".join(lines), 4, "0/m.pte").ms == pytest.approx(368.5 / 4)


def _changed(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    ("runner", "change", "reason"),
    [
        *[(runner, lambda text: "Segmentation fault", "no lines like") for runner in RECORDED],
        *[(runner, lambda text: "", "It printed: nothing") for runner in RECORDED],
        *[(runner, lambda text: text + text, "2 lines like") for runner in RECORDED],
        *[(runner, lambda text: text.replace("9", "nan"), "") for runner in RECORDED],
        ("ort", _changed(".,0.09,271122432,11,2\n", ""), "3 runs in its result file, expected 4"),
        ("ort", _changed("total: 100.0", "total: 90.0"), "an average of 90.000000 ms, but its runs have 100 ms"),
        ("ncnn", _changed("loop_count = 4", "loop_count = 8"), "8 runs, expected 4"),
        (
            "ncnn",
            _changed("       0/model.param", "          squeezenet"),
            "times of squeezenet, expected 0/model.param",
        ),
        ("ncnn", _changed("avg =   90.00", "avg =    0.00"), "a time of 0 ms"),
        ("ncnn", _changed("90.00\n", "90.00  user =    1.00\n"), "no lines like"),
        ("mnn", _changed("model.mnn ", "quant-model.mnn "), "times of quant-model.mnn"),
        ("litert", _changed("count=4", "count=3"), "3 runs, expected 4"),
        ("executorch", _changed("successfully 4 time(s) in 368.500000 ms.", "successfully."), "no lines like"),
        ("executorch", _changed("Iteration 2 of 4: 91", "Iteration 2 of 4: x"), "3 iterations, expected 4"),
    ],
)
def test_anything_else_that_a_program_prints_is_an_error_that_shows_it(
    runner: str, change: Callable[[str], str], reason: str
) -> None:
    with pytest.raises(Unreadable) as caught:
        PROGRAMS[runner].parse(change(RECORDED[runner]), 4, FILES[runner])
    assert reason in str(caught.value)
    assert "It printed: " in str(caught.value)


def _target(runner: str, program: Path, more: str = "") -> Any:
    return parse_target(f"adb://?runner={runner}&program={program}{more}")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def models(here: Path) -> tuple[Path, Path]:
    return write_model(here / "wide.onnx", 4), write_model(here / "narrow.onnx", 2)

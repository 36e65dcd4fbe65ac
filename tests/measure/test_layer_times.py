"""Models of single layers, and the tables of their times; the target here is arithmetic, so that times are known."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from torch import nn

from lrexport.errors import DeviceError, InputError
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.moments import every_scheme_of
from lrexport.lowrank.layers.kernels import TRANSPOSED
from lrexport.lowrank.layers.schemes import SCHEMES, blank
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.measure.layer_models import COPIES, layer_model
from lrexport.measure.layer_times import LayerTimes
from lrexport.measure.macs.onnx_macs import count_onnx
from lrexport.measure.targets import MeasuringJob
from lrexport.measure.targets.local import Local
from lrexport.networks.cifar_resnet import CifarResNet
from lrexport.plan import Dense, Pair, Plan
from tests.conftest import SmallNet
from tests.lowrank.layers.drawn import layers

SHAPE = (3, 12, 12)
MS_A_MAC = 1e-3


def call_of(layer: Any, given: torch.Tensor) -> Any:
    """The call of a layer for one input, as the decomposition of a network sees it."""
    svd = decompose(nn.Sequential(copy.deepcopy(layer)), tuple(given.shape[1:]), "channel")
    found = [call for facts in svd.layers.values() for _, call in facts.calls]
    return found[0] if found else None


@settings(max_examples=20, deadline=None)
@given(drawn=layers())
def test_a_layer_model_is_valid_and_has_the_macs_and_the_shapes_of_its_copies(drawn: tuple[Any, torch.Tensor]) -> None:
    layer, images = drawn
    if isinstance(layer, TRANSPOSED):  # what torch allows beyond that, the runtime refuses
        assume(all(extra < step for extra, step in zip(layer.output_padding, layer.stride, strict=True)))
    made, macs, call = blank(layer), {}, call_of(layer, images)
    assume(call is not None)  # depthwise, or too small to gain
    for copies in COPIES:
        model = layer_model(made, call, copies, batch=2)
        onnx.checker.check_model(model, full_check=True)
        macs[copies] = count_onnx(model).macs
        found = run(model)
        chained = images.shape == layer(images).shape
        assert found.shape == (images if chained else layer(images)).shape
        assert np.isfinite(found).all()
    one = count_torch_macs(nn.Sequential(layer), tuple(images.shape[1:])).total
    assert macs[COPIES[1]] - macs[COPIES[0]] == (COPIES[1] - COPIES[0]) * one


def run(model: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    return session.run(None, {given.name: np.random.default_rng(0).standard_normal(given.shape, dtype=np.float32)})[0]


def test_signals_neither_vanish_nor_grow_along_a_chain() -> None:
    # Denormal numbers would be timed instead of the layer.
    layer = nn.Conv2d(16, 16, 3, padding=1)
    found = run(layer_model(blank(layer), call_of(layer, torch.zeros(1, 16, 8, 8)), 6))
    assert 1e-4 < np.abs(found).max() < 10


class Arithmetic:
    """A target that takes a fixed time and ``MS_A_MAC`` for each MAC of a file; it may stop after some groups."""

    name = "arithmetic"

    def __init__(self, groups: int = 10**9, speed: float = 1.0, busy: int = 0, **facts: str) -> None:
        self.groups, self.speed, self.files, self.busy, self.facts = groups, speed, 0, busy, facts

    def environment(self) -> dict[str, Any]:
        return {"cpu": "abacus", "cores": 1, "celsius": 40.0 + self.files, **self.facts}

    def run(self, job: MeasuringJob) -> Iterator[dict[str, Any]]:
        yield {"environment": self.environment()}
        for index, group in enumerate(job.groups):
            if index == self.groups:
                raise DeviceError("the abacus fell down")
            times = {name: 0.5 + MS_A_MAC * count_onnx(onnx.load(path)).macs for name, path in group.items()}
            self.files += len(group)
            spread = [1, 1, 1, 1, 3, 3, 3] if self.busy > 0 else [1] * 7
            self.busy -= 1
            samples = {name: [self.speed * ms * factor for factor in spread] for name, ms in times.items()}
            yield {"group": index, "models": {name: {"samples_ms": each} for name, each in samples.items()}}
        yield {"done": self.environment()}


def test_times_are_those_of_one_copy_at_every_rank_on_the_grain(tmp_path: Path) -> None:
    svd = decompose(SmallNet(), SHAPE)
    found = LayerTimes(Arithmetic(), folder=tmp_path).of(svd, every_scheme_of(svd))
    assert found.keys() == svd.layers.keys()
    for name, layer in found.items():
        facts = svd.layers[name]
        assert layer.dense_ms == pytest.approx(MS_A_MAC * facts.dense_macs)
        assert layer.pairs.keys() == facts.schemes.keys()
        for scheme, times in layer.pairs.items():
            for rank, milliseconds in times.items():
                assert milliseconds == pytest.approx(MS_A_MAC * rank * facts.schemes[scheme].macs_per_rank)
                assert rank % 4 == 0 or max(times) < 4


def test_a_wide_layer_is_measured_at_few_ranks_and_known_at_every_block(tmp_path: Path) -> None:
    svd = decompose(nn.Sequential(nn.Conv2d(256, 256, 3, padding=1)), (256, 8, 8))
    target = Arithmetic()
    times = LayerTimes(target, folder=tmp_path).of(svd, every_scheme_of(svd))["0"].pairs["spatial"]
    facts = svd.layers["0"].schemes["spatial"]
    assert len(times) > len([r for r in times if r in range(1, 33) or r % 32 == 0]) > 8
    assert {16, 32, 48, 176, 336} <= set(times)
    for rank, milliseconds in times.items():
        assert milliseconds == pytest.approx(MS_A_MAC * rank * facts.macs_per_rank)


def test_what_is_known_is_not_measured_again_and_a_stopped_measurement_goes_on(tmp_path: Path) -> None:
    svd = decompose(CifarResNet(3, 10), (3, 32, 32))
    schemes, events = every_scheme_of(svd), []
    with pytest.raises(DeviceError, match="fell down"):
        LayerTimes(Arithmetic(groups=3), folder=tmp_path).of(svd, schemes)
    # Half as fast now: what is added must fit what is there, by the reference that is in every group.
    rest = Arithmetic(speed=2.0)
    times = LayerTimes(rest, folder=tmp_path)
    found = times.of(svd, schemes, lambda done, of: events.append((done, of)))
    assert [done for done, _ in events] == list(range(1, events[0][1] + 1))
    for name, layer in found.items():
        facts = svd.layers[name].schemes
        for scheme, pairs in layer.pairs.items():
            ratios = [ms / layer.dense_ms / (rank * facts[scheme].macs_per_rank) for rank, ms in pairs.items()]
            assert ratios == pytest.approx([1 / svd.layers[name].dense_macs] * len(ratios))
    again = Arithmetic()
    assert LayerTimes(again, folder=tmp_path).of(svd, schemes) == found
    assert (again.files, rest.files > 0) == (0, True)


def test_a_network_is_timed_on_the_scale_of_the_table_and_as_it_is_now(tmp_path: Path) -> None:
    svd = decompose(SmallNet(), SHAPE)
    LayerTimes(Arithmetic(), folder=tmp_path).of(svd, every_scheme_of(svd))
    file = tmp_path / "a network.onnx"
    layer = nn.Conv2d(8, 12, 3)
    file.write_bytes(layer_model(blank(layer), call_of(layer, torch.zeros(1, 8, 9, 9)), 2).SerializeToString())
    wanted = 0.5 + MS_A_MAC * count_onnx(onnx.load(file)).macs
    slower = LayerTimes(Arithmetic(speed=3.0), folder=tmp_path)
    whole, now = slower.whole(svd, file)
    assert whole == pytest.approx(wanted)
    assert now.p50 == pytest.approx(3 * wanted)


def test_memory_touched_between_runs_does_not_change_the_scale(tmp_path: Path) -> None:
    class Cached(Arithmetic):
        """Twice as fast where nothing else was touched, and the slower the more it was."""

        def run(self, job: MeasuringJob) -> Iterator[dict[str, Any]]:
            self.speed = 1 + job.evict_bytes / 2**20
            yield from super().run(job)

    svd = decompose(SmallNet(), SHAPE)
    times = LayerTimes(Cached(), folder=tmp_path)
    wide = decompose(nn.Sequential(nn.Conv2d(256, 256, 3, padding=1)), (256, 8, 8))
    layer = times.of(wide, every_scheme_of(wide))["0"]
    times.of(svd, every_scheme_of(svd))
    file = tmp_path / "a network.onnx"
    made = nn.Conv2d(8, 12, 3)
    file.write_bytes(layer_model(blank(made), call_of(made, torch.zeros(1, 8, 9, 9)), 2).SerializeToString())
    for network in (svd, wide):
        assert times.whole(network, file)[0] == pytest.approx(0.5 + MS_A_MAC * count_onnx(onnx.load(file)).macs)
    assert times.of(wide, every_scheme_of(wide))["0"] == layer


def test_winograds_rounding_is_small_beside_what_a_chain_computes() -> None:
    layer = nn.Conv2d(64, 64, 3, padding=1)
    file = layer_model(blank(layer), call_of(layer, torch.zeros(1, 64, 12, 12)), 6)
    values = run(file)
    assert values.min() > 0.1 * values.max()  # means of numbers of both signs are near 0


def test_other_threads_and_other_machines_have_tables_of_their_own(tmp_path: Path) -> None:
    class Other(Arithmetic):
        def environment(self) -> dict[str, Any]:
            return {"cpu": "slide rule"}

    one, threads, other = LayerTimes(Arithmetic()), LayerTimes(Arithmetic(), threads=2), LayerTimes(Other())
    assert len({one.path, threads.path, other.path}) == 3
    ncnn = {"runtime": "ncnn", "runtime_version": "1", "precision": "float32"}
    later, half = {**ncnn, "runtime_version": "2"}, {**ncnn, "precision": "float16"}
    tables = [LayerTimes(Arithmetic(**facts)).path for facts in (ncnn, later, half)]
    assert len({one.path, *tables}) == 4
    warmer = Arithmetic()
    warmer.files = 30
    assert LayerTimes(warmer).path == one.path


def test_what_a_busy_machine_gave_is_measured_again_at_once_and_else_by_the_next_command(tmp_path: Path) -> None:
    svd = decompose(SmallNet(), SHAPE)
    schemes = every_scheme_of(svd)
    quiet = LayerTimes(Arithmetic(), folder=tmp_path / "quiet").of(svd, schemes)
    target = Arithmetic(busy=2)
    soon = LayerTimes(target, folder=tmp_path / "soon")
    assert soon.of(svd, schemes) == quiet
    assert soon.busy_of(svd, schemes)[0] == 0
    always = LayerTimes(Arithmetic(busy=10**6), folder=tmp_path / "always")
    always.of(svd, schemes)
    marked, known = always.busy_of(svd, schemes)
    assert marked == known > 0
    later = LayerTimes(Arithmetic(), folder=tmp_path / "always")
    assert later.busy == always.busy
    again = later.of(svd, schemes)
    assert later.busy_of(svd, schemes)[0] == 0
    assert again.keys() == quiet.keys()
    unchanged = LayerTimes(Arithmetic(busy=10**6), folder=tmp_path / "quiet")
    assert unchanged.of(svd, schemes) == quiet


def test_the_latencies_that_a_plan_uses_can_be_measured_again(tmp_path: Path) -> None:
    svd = decompose(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)), (16, 8, 8))
    schemes = every_scheme_of(svd)
    before = LayerTimes(Arithmetic(), folder=tmp_path).of(svd, schemes)
    ranks = sorted(before["0"].pairs["spatial"])
    target = Arithmetic()
    times = LayerTimes(target, folder=tmp_path)
    key = next(key for key in times.times if key.endswith(f"spatial {ranks[0]}"))
    right = times.times[key]
    times.times[key] = 100 * right
    figures = dict.fromkeys(("dense_macs", "macs", "dense_params", "params"), 1)
    pair = Pair(scheme="spatial", rank=ranks[0], full_rank=48, energy_kept=1.0, **figures)
    plan = Plan({"0": pair, "1": Dense(reason="chosen")})
    found = times.again(svd, schemes, plan)
    assert found["0"].pairs["spatial"][ranks[0]] == pytest.approx(right)
    assert target.files <= 2 * 2 * len(COPIES) + 2 * len(COPIES)


@pytest.mark.parametrize("content", ["", "{}", '{"milliseconds": {"a": "b"}}', '{"milliseconds": 3}', "[1]"])
def test_a_damaged_table_is_an_error_that_says_what_to_do(tmp_path: Path, content: str) -> None:
    path = LayerTimes(Arithmetic(), folder=tmp_path).path
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="measured again") as caught:
        LayerTimes(Arithmetic(), folder=tmp_path)
    assert path.name in str(caught.value)


@pytest.mark.slow
def test_this_machine_has_times_for_every_layer(tmp_path: Path) -> None:
    svd = decompose(SmallNet(), SHAPE)
    found = LayerTimes(Local(), folder=tmp_path).of(svd, every_scheme_of(svd))
    assert all(layer.dense_ms > 0 for layer in found.values())
    assert all(ms > 0 for layer in found.values() for times in layer.pairs.values() for ms in times.values())


def test_a_pair_is_timed_by_the_model_of_both_halves() -> None:
    layer = nn.Conv2d(8, 12, 3, stride=2, padding=1)
    call = call_of(layer, torch.zeros(1, 8, 9, 9))
    pair = nn.Sequential(*SCHEMES["spatial"].pair(blank(layer), 4))
    model = layer_model(pair, call, 2)
    assert [node.op_type for node in model.graph.node if node.op_type == "Conv"] == ["Conv"] * 4
    assert run(model).shape == (1, 12, 5, 5)


@pytest.mark.slow
def test_a_table_that_cannot_be_written_serves_its_process_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    svd = decompose(SmallNet(), SHAPE, "channel")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        times = LayerTimes(Arithmetic(), folder=folder)
        found = times.of(svd, every_scheme_of(svd))
        assert found == LayerTimes(Arithmetic(), folder=tmp_path / "good").of(svd, every_scheme_of(svd))
        assert times.unsaved is not None
        assert times.unsaved.startswith(f"cannot write {folder}")
    assert LayerTimes(Arithmetic(), folder=tmp_path / "good").unsaved is None
    assert (tmp_path / "file").read_text() == "a file where a folder should be"

"""lrexport.compress: one call for a network of the user's own, and the names and signatures that are public."""

from __future__ import annotations

import ast
import copy
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import lrexport as api
from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.data.datasets import load_data
from lrexport.data.images import hold_out
from lrexport.plan import Dense, Pair
from lrexport.workflow import compress_network
from lrexport.workflow.healing import Effort
from lrexport.workflow.pruning import Pruning
from tests.workflow.test_pruning import Net, speed_of

SHAPE = (1, 12, 12)
CPU = torch.device("cpu")


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(48, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_a_network_is_compressed_and_the_one_given_is_as_it_was(model: Net, images: Tensor, tmp_path: Path) -> None:
    before, parts = copy.deepcopy(model.state_dict()), list(model.modules())
    result = api.compress(model, images[:2], api.Macs(0.5), calibration=images)
    assert [id(part) for part in model.modules()] == [id(part) for part in parts]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert 0.4 * result.dense_macs < result.macs <= 0.5 * result.dense_macs
    assert 0 < result.params < result.dense_params == sum(value.numel() for value in model.parameters())
    assert {type(part).__module__.split(".")[0] for part in result.network.modules()} <= {"torch", "tests"}
    assert not result.network.training
    assert result.network(images).shape == (48, 10)
    assert result.output_error is not None
    assert 0 < result.output_error < 1
    assert result.notes == ()
    exported = result.export(tmp_path / "model.onnx")
    assert exported.cost.macs == result.macs
    assert (tmp_path / "model.onnx").stat().st_size == exported.bytes


def test_without_calibration_a_note_says_that_the_quality_is_unknown(model: Net) -> None:
    result = api.compress(model, SHAPE, api.Macs(0.5))
    assert result.output_error is None
    assert "quality unknown" in result.notes[-1]


class Difference(nn.Module):
    """The small difference of two large outputs: what truncation changes in either is large beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Conv2d(1, 8, 5, bias=False) for _ in range(2))
        self.other.weight.data = self.one.weight.detach() + 1e-3 * torch.randn(8, 1, 5, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.one(image) - self.other(image)


def test_a_note_says_so_where_a_constant_output_would_be_nearer_to_the_network_s(images: Tensor) -> None:
    torch.manual_seed(4)
    network = Difference()
    shares = {0.3: True, 1.0: False}
    for share, unusable in shares.items():
        result = api.compress(network, SHAPE, api.Params(share), calibration=images)
        assert result.output_error is not None
        assert (result.output_error > 1) == unusable
        notes = [note for note in result.notes if "not usable" in note]
        assert notes == (["the outputs are not usable as they are: their error is " + f"{result.output_error:.2f}, and a "
            "constant output has 1; choose a larger goal, or fine-tune the network"] if unusable else [])  # fmt: skip


def test_calibration_takes_the_outputs_nearer_to_the_network_s(model: Net, images: Tensor) -> None:
    fitted = api.compress(model, SHAPE, api.Macs(0.3), calibration=images)
    plain = api.compress(model, SHAPE, api.Macs(0.3))
    with torch.no_grad():
        wanted = model.eval()(images)
        errors = [float((each.network(images) - wanted).square().sum()) for each in (fitted, plain)]
    assert errors[0] < errors[1]
    variance = float((wanted - wanted.mean(0)).square().sum())
    assert fitted.output_error == pytest.approx(errors[0] / variance, rel=1e-3)


@pytest.mark.slow
def test_healing_brings_the_outputs_nearer_and_takes_the_same_plan(model: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress_network, "Effort", partial(Effort, steps=60))
    images = load_data("digits", SHAPE).train
    ((batch, _),) = images.subset(torch.arange(300)).batches(300, CPU)
    plain = api.compress(model, SHAPE, api.Macs(0.3), calibration=batch.only)
    before = copy.deepcopy(model.state_dict())
    healed = api.compress(model, SHAPE, api.Macs(0.3), calibration=batch.only, heal=10)
    assert healed.plan == plain.plan
    assert plain.output_error is not None
    assert healed.output_error is not None
    assert healed.output_error < 0.5 * plain.output_error
    assert not healed.network.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        difference = healed.network(batch.only) - model.eval()(batch.only)
        variance = model(batch.only).var(0, correction=0).sum() * 300
    assert healed.output_error == pytest.approx(float(difference.square().sum() / variance), rel=1e-3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"heal": -1}, "invalid heal -1: expected minutes, 0 or more"),
        ({"heal": float("nan")}, "invalid heal nan: expected minutes"),
        ({"heal": True}, "invalid heal True: expected minutes"),
        ({"heal": 1}, "heal requires calibration inputs"),
        ({"heal": 1, "calibration": torch.randn(19, *SHAPE)}, "for heal: expected at least 20 inputs, not 19"),
    ],
)
def test_healing_needs_minutes_and_enough_inputs(model: Net, more: dict[str, Any], message: str) -> None:
    with pytest.raises(api.UsageError, match=message):
        api.compress(model, SHAPE, api.Macs(0.5), **more)


def test_the_command_and_the_call_choose_the_same_plan_of_the_same_images(model: Net) -> None:
    splits = hold_out(load_data("digits", SHAPE), 0.3)
    images = torch.cat([batch.only for batch, _ in splits.train.batches(250, CPU)])
    assert len(images) > 1000  # more than are used: the same ones are drawn
    svd = api.decompose(copy.deepcopy(model), SHAPE, form="implicit")  # as the command does without SVD training
    of_command = Pruning(svd, CompressConfig(TrainConfig("net"), api.Macs(0.4)), splits, CPU).select()
    assert api.compress(model, SHAPE, api.Macs(0.4), calibration=images).plan == of_command.plan


def test_calibration_is_a_tensor_batches_pairs_or_single_inputs(model: Net, images: Tensor) -> None:
    forms: list[Any] = [
        images,
        list(images.split(20)),
        ((batch, None) for batch in images.split(20)),
        [(image, 3) for image in images],
        iter(images),
    ]
    results = [api.compress(model, SHAPE, api.Macs(0.5), calibration=form) for form in forms]
    for result in results[1:]:
        assert result.plan == results[0].plan
        assert result.output_error == pytest.approx(results[0].output_error)


def test_a_data_set_is_drawn_from_at_random(model: Net) -> None:
    images = torch.zeros(3000, *SHAPE)
    images[::3] = torch.randn(1000, *SHAPE, generator=torch.Generator().manual_seed(0))
    taken: list[int] = []

    class Noting(torch.utils.data.TensorDataset):
        def __getitem__(self, index: int) -> Any:
            taken.append(index)
            return super().__getitem__(index)

    result = api.compress(model, SHAPE, api.Macs(0.5), calibration=Noting(images, torch.arange(3000)))
    assert result.output_error is not None
    assert len(taken) == len(set(taken)) == 1000
    assert max(taken) > 2000


class Awkward(nn.Module):
    """Changes its input in place and returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = self.first(x.mul_(0.5)).relu()
        return {"out": self.second(hidden), "hidden": [hidden], "count": len(x)}


def _hooked() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(1, 16, 3)), nn.ReLU(), nn.Conv2d(16, 32, 3))


def _half() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3)).bfloat16()


@pytest.mark.parametrize(
    "make",
    [Awkward, _hooked, _half, lambda: torch.compile(Net()), lambda: nn.DataParallel(Net())],
    ids=["in place", "spectral_norm", "bfloat16", "compiled", "DataParallel"],
)
def test_networks_of_many_kinds_are_compressed_and_left_alone(make: Callable[[], nn.Module], images: Tensor) -> None:
    network, given = make(), images.clone()
    kinds = [type(part) for part in network.modules()]
    result = api.compress(network, SHAPE, api.Macs(0.6), calibration=given)
    assert torch.equal(given, images)
    assert [type(part) for part in network.modules()] == kinds
    assert result.macs <= 0.6 * result.dense_macs
    assert result.output_error is not None
    assert result.output_error < 0.5


def test_a_network_without_layers_to_factorise_is_returned_as_it_is() -> None:
    result = api.compress(nn.Sequential(nn.Flatten(), nn.ReLU()), SHAPE, api.Macs(0.5))
    assert (result.plan, result.macs, result.dense_macs) == ({}, 0, 0)
    assert any("nothing is pruned" in note for note in result.notes)


@pytest.mark.parametrize("goal", [api.Params(0.5), api.Size(30_000), api.Energy(0.3)], ids=str)
def test_other_goals_are_met(model: Net, goal: Any, tmp_path: Path) -> None:
    result = api.compress(model, SHAPE, goal)
    assert result.params < result.dense_params
    if isinstance(goal, api.Params):
        assert result.params <= 0.5 * result.dense_params
    elif isinstance(goal, api.Size):
        assert 20_000 < result.export(tmp_path / "model.onnx").bytes <= 30_000
    else:
        assert all(layer.energy_kept >= 0.7 for layer in result.plan.values() if isinstance(layer, Pair))


def test_a_goal_of_latency_is_measured(model: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(svd: api.SVDNetwork, *_others: object) -> Any:
        config = CompressConfig(TrainConfig("net"), api.Latency(0.6))
        return speed_of(Pruning(svd, config, None, CPU), 1.1)

    monkeypatch.setattr(compress_network, "measure_speed", measured)
    result = api.compress(model, SHAPE, api.Latency(0.6))
    assert result.latency is not None
    assert 0.5 < result.latency.ratio <= 0.6


def test_a_plan_is_followed_from_a_file_from_json_and_as_it_is(model: Net, tmp_path: Path) -> None:
    result = api.compress(model, SHAPE, api.Macs(0.5))
    result.save_plan(tmp_path / "plan.json")
    text = result.plan.to_json()
    assert api.Plan.from_json(text) == result.plan
    choices = {name: {"scheme": p.scheme, "rank": p.rank} for name, p in result.plan.items() if isinstance(p, Pair)}
    for plan in (tmp_path / "plan.json", str(tmp_path / "plan.json"), result.plan, json.loads(text), choices):
        again = api.compress(model, SHAPE, api.FromPlan(plan))
        assert (again.macs, again.plan.keys()) == (result.macs, result.plan.keys())
        assert torch.equal(again.network(torch.ones(1, *SHAPE)), result.network(torch.ones(1, *SHAPE)))


def test_an_edited_plan_is_not_read_with_figures_that_are_not_its_own(model: Net) -> None:
    written = json.loads(api.compress(model, SHAPE, api.Macs(0.5)).plan.to_json())
    name = next(name for name, layer in written["plan"].items() if "rank" in layer)
    written["plan"][name]["rank"] += 1
    with pytest.raises(api.InputError, match="edited after it was written"):
        api.Plan.from_json(json.dumps(written))
    for text in ("[]", "{}", "{", '{"digest": "", "plan": {"a": 3}}'):
        with pytest.raises(api.InputError, match="invalid plan"):
            api.Plan.from_json(text)


def test_folding_the_whole_selection_loses_less_than_its_bare_plan(model: Net, images: Tensor) -> None:
    colours = images * torch.linspace(0.1, 3, 12)  # columns that matter more than others
    wanted = model.eval()(colours).detach()
    svd = api.decompose(copy.deepcopy(model), SHAPE)
    chosen = api.select(svd, api.Macs(0.2), moments=api.input_moments(svd, colours))
    with torch.no_grad():
        whole, bare = (float((api.fold(svd, p).eval()(colours) - wanted).square().sum()) for p in (chosen, chosen.plan))
    assert whole < bare


def test_a_second_decomposition_is_refused(model: Net) -> None:
    api.decompose(model, SHAPE)
    for call in (lambda: api.decompose(model, SHAPE), lambda: api.compress(model, SHAPE, api.Macs(0.5))):
        with pytest.raises(api.UsageError, match="already in SVD form"):
            call()


class Standardised(nn.Conv2d):
    """A convolution that computes its weight itself."""

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean()) / (self.weight.std() + 1e-5)
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


def _normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 16, 3)), nn.ReLU(), nn.Conv2d(16, 32, 3))


def _standardised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), Standardised(16, 32, 3))


def _tied() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3))
    network[3].weight = network[1].weight
    return network


@pytest.mark.parametrize("make", [Net, _normed, _standardised, _tied], ids=["plain", "weight_norm", "standardised", "tied"])
def test_a_state_dict_and_an_ema_copy_are_loaded_into_a_rebuilt_network(
    make: Callable[[], nn.Module], images: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    result = api.compress(make(), SHAPE, api.Macs(0.6))
    average = AveragedModel(result.network)
    average.update_parameters(result.network)
    result.save_plan(tmp_path / "plan.json")
    torch.save({"model": result.network.state_dict(), "ema": average.state_dict()}, tmp_path / "last.pth")
    held = torch.load(tmp_path / "last.pth", weights_only=True)
    fresh = make()
    before = list(fresh.modules())
    for plan in (result.plan, tmp_path / "plan.json"):
        rebuilt = api.rebuild(fresh, plan, SHAPE if make is _standardised else None)
        assert not any(part.training for part in rebuilt.modules())
        rebuilt.load_state_dict(held["model"])
        assert torch.equal(rebuilt(images), result.network(images))
        ema = AveragedModel(rebuilt)
        ema.load_state_dict(held["ema"])
        rebuilt.load_state_dict(ema.module.state_dict())
        assert torch.equal(rebuilt(images), result.network(images))
    assert [id(part) for part in fresh.modules()] == [id(part) for part in before]


def test_rebuilding_asks_for_inputs_where_layers_compute_something_themselves() -> None:
    plan = api.Plan({"2": Dense(reason="kept")})
    with pytest.raises(api.UsageError, match="rebuild needs example_inputs for this network: layer '2'"):
        api.rebuild(_standardised(), plan)
    with pytest.raises(api.InputError, match="which the network does not have"):
        api.rebuild(nn.Sequential(nn.Conv2d(1, 4, 3)), {"body": {"scheme": "spatial", "rank": 2}})
    with pytest.raises(api.InputError, match="its full rank by spatial is 3"):
        api.rebuild(nn.Sequential(nn.Conv2d(1, 4, 3)), {"0": {"scheme": "spatial", "rank": 9}})


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a number for a goal": ({"goal": 0.5}, api.UsageError, "invalid goal 0.5: expected one of Macs, Params"),
    "a goal that needs labels": ({"goal": api.AccuracyDrop(1)}, api.UsageError, "AccuracyDrop needs labelled images"),
    "a goal out of reach": ({"goal": api.Macs(1e-4)}, api.UsageError, "out of reach"),
    "no network": ({"model": [1]}, api.UsageError, "invalid model of type list"),
    "two inputs": ({"example_inputs": (torch.ones(1, 2), torch.ones(1, 2))}, api.InputError, "takes 2 positional arguments"),
    "a number for a shape": ({"example_inputs": 12}, api.UsageError, "invalid example_inputs 12"),
    "a shape of the network's not": ({"example_inputs": (3, 12, 12)}, api.InputError, "(3, 12, 12)"),
    "a vector for a batch": ({"example_inputs": torch.ones(3)}, api.UsageError, "invalid example_inputs of shape (3,)"),
    "no calibration": ({"calibration": []}, api.UsageError, "expected at least 2 inputs, not 0"),
    "one calibration input": ({"calibration": torch.ones(1, *SHAPE)}, api.UsageError, "at least 2 inputs, not 1"),
    "a folder": ({"calibration": 3}, api.UsageError, "invalid calibration of type int"),
    "text": ({"calibration": ["a.png"]}, api.UsageError, "invalid batch of type str"),
    "inputs of another shape": ({"calibration": torch.ones(4, 3, 8, 8)}, api.InputError, "expected (N, 1, 12, 12)"),
    "bytes": ({"calibration": torch.ones(4, *SHAPE, dtype=torch.uint8)}, api.InputError, "of uint8: expected floats"),
    "inputs with NaN": ({"calibration": torch.full((4, *SHAPE), float("nan"))}, api.InputError, "not finite"),
    "a plan of anything": ({"goal": api.FromPlan({"body": object()})}, api.InputError, "layer 'body' is"),
    "another rule": ({"rule": "best"}, api.UsageError, "unknown rule 'best'"),
    "another scheme": ({"scheme": "cp"}, api.UsageError, "unknown scheme 'cp'"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_an_error_of_the_family_and_leaves_the_network_alone(what: str, model: Net) -> None:
    given, kind, message = MISTAKES[what]
    arguments: dict[str, Any] = {"model": model, "example_inputs": SHAPE, "goal": api.Macs(0.5)} | given
    with pytest.raises(kind) as caught:
        api.compress(**arguments)
    assert message in str(caught.value)
    assert isinstance(model.body.weight, nn.Parameter)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: api.Macs(0), r"invalid macs 0: expected a share of the dense network in \(0, 1\]"),
        (lambda: api.Params(1.5), "invalid params 1.5"),
        (lambda: api.Macs(float("nan")), "invalid macs nan"),
        (lambda: api.Macs(True), "invalid macs True: expected a number"),
        (lambda: api.Size(0.5), "invalid size 0.5: expected a whole number of bytes, at least 1"),
        (lambda: api.Latency(), "expected a share or milliseconds"),
        (lambda: api.Latency(0.5, 3), "expected a share or milliseconds"),
        (lambda: api.Latency(milliseconds=0), "expected milliseconds above 0"),
        (lambda: api.AccuracyDrop(101), "percentage points from 0 to 100"),
        (lambda: api.Energy(-0.1), "invalid energy -0.1: expected a share from 0 to 1"),
        (lambda: api.FromPlan(3), "invalid plan of type int"),
    ],
)
def test_a_goal_says_what_it_may_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(api.UsageError, match=message):
        make()


# What users may rely on: parameters of functions, fields of values.
PUBLIC = {
    "AccuracyDrop": "points",
    "Compressed": "network, plan, macs, dense_macs, params, dense_params, signature, output_error, latency, notes",
    "DeviceError": "",
    "Energy": "dropped",
    "FromPlan": "plan",
    "InputError": "",
    "Latency": "share, milliseconds",
    "LrexportError": "",
    "Macs": "share",
    "Metric": "name, unit, higher_is_better",
    "Params": "share",
    "Plan": "",
    "SVDNetwork": "network, layers, dense, signature, other_macs, other_params, made_plain, form",
    "Selection": "plan, threshold, warnings, truncations, heldout_score, latency",
    "Size": "bytes",
    "Task": "",
    "UsageError": "",
    "assert_within_budget": "path, *, config, baseline, allow_other_machine, strict, limits",
    "compress": "model, example_inputs, goal, *, calibration, heal, scheme, keep, rule, rank_multiple, target, threads, "
    "seed",
    "decompose": "network, input_shape, scheme, keep, total_macs, form",
    "export_onnx": "network, path, input_shape, *, batch, dynamic, opset, samples, preprocessing, with_preprocessing, "
    "classes, passes",
    "fold": "svd, plan",
    "input_moments": "svd, batches, schemes",
    "load": "run, trust_code",
    "read_onnx": "path, inputs",
    "load_weights": "network, path, key, option",
    "losses": "svd, orthogonality_strength, sparsity_strength, sparsity",
    "make_plain": "network, input_shape",
    "rebuild": "model, plan, example_inputs",
    "reconstruct": "network, svd, plan, images, weights, seed",
    "select": "svd, goal, *, rule, moments, every_scheme, latency, rank_multiple",
}


def _parameters(public: Any) -> str:
    if is_dataclass(public):
        return ", ".join(field.name for field in fields(public))
    if inspect.isclass(public):
        return ""
    names: list[str] = []
    for parameter in inspect.signature(public).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        names.append(parameter.name)
    return ", ".join(names)


def test_public_names_their_parameters_and_their_documentation() -> None:
    assert sorted(api.__all__) == sorted(PUBLIC)
    assert {name: _parameters(getattr(api, name)) for name in api.__all__} == PUBLIC
    for name in api.__all__:
        assert inspect.getdoc(getattr(api, name)), name
    assert _public(api.Compressed) == {"export", "save_plan"}
    assert _public(api.Plan) - _public(dict) == {"to_json", "from_json"}


def test_type_checkers_and_programs_find_the_same_public_names_in_the_same_modules() -> None:
    source = Path(api.__file__).read_text(encoding="utf-8")
    (block,) = (each for each in ast.parse(source).body if isinstance(each, ast.If))
    static = {name.name: each.module for each in block.body if isinstance(each, ast.ImportFrom) for name in each.names}
    assert static == api._HOMES
    assert api.__all__ == sorted(static)
    assert all(getattr(api, name) is not None for name in api.__all__)


def _public(kind: type) -> set[str]:
    names: Iterable[str] = (name for name, value in inspect.getmembers(kind) if callable(value))
    return {name for name in names if not name.startswith("_")}

"""Networks with computed weights, subclasses of layers, compiled and scripted parts, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import PathFinder
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import lrexport
from lrexport import UsageError
from lrexport.torch_tools.compiled import Scripted
from lrexport.torch_tools.equivalents import make_layers_plain, why_not_plain
from lrexport.torch_tools.plain_form import make_plain, unwrapped
from lrexport.torch_tools.refusal import check_workable


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Noisy(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.randn_like(weight)


def _parametrised(layer: nn.Module, *parts: nn.Module, name: str = "weight") -> nn.Module:
    for part in parts:
        parametrize.register_parametrization(layer, name, part)
    return layer


def _pruned_twice(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.3)
    return prune.ln_structured(layer, "weight", 0.3, n=2, dim=0)


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm, hook": weight_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm, hook": spectral_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "prune twice": _pruned_twice,
    "one of the user's own": lambda layer: _parametrised(layer, Doubled()),
    "two in a row": lambda layer: _parametrised(layer, Doubled(), Doubled()),
    "of the bias, too": lambda layer: _parametrised(parametrizations.weight_norm(layer), Doubled(), name="bias"),
}


@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("training", [True, False])
def test_computed_weights_become_plain_ones_with_the_names_of_a_plain_layer(kind: str, training: bool) -> None:
    network = nn.Sequential(COMPUTED[kind](nn.Conv2d(3, 6, 3)), nn.ReLU(), COMPUTED[kind](nn.Linear(4, 5)))
    images = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        wanted = network.eval()(images)
    network.train(training)
    (note, *_) = make_plain(network, (3, 6, 6))
    assert "2 weights" in note
    assert all(module.training == training for module in network.modules())
    assert {*network.state_dict()} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert {name for name, _ in network.named_parameters()} == {*network.state_dict()}
    assert torch.allclose(network.eval()(images), wanted, rtol=1e-6, atol=1e-6)
    assert type(network[0]) is nn.Conv2d
    assert make_plain(network, (3, 6, 6)) == []


def test_weights_that_are_drawn_in_every_pass_stay_as_they_are() -> None:
    network = nn.Sequential(_parametrised(nn.Linear(4, 4), Noisy()))
    assert make_plain(network, (4,)) == []
    assert parametrize.is_parametrized(network[0])


@pytest.mark.parametrize("kind", [weight_norm, parametrizations.weight_norm], ids=["hook", "parametrisation"])
def test_recurrent_layers_are_folded_too(kind: Callable[..., nn.Module]) -> None:
    layer = kind(kind(nn.GRU(4, 4), "weight_hh_l0"), "weight_ih_l0").eval()
    images = torch.randn(3, 2, 4)
    wanted = layer(images)[0]
    make_plain(layer, (4,))
    assert torch.allclose(layer(images)[0], wanted, atol=1e-6)
    assert {*layer.state_dict()} == {"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}


@pytest.mark.parametrize("kind", ["hook", "parametrisation"])
def test_computed_weights_that_are_shared_stay_shared(kind: str) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for layer in network:
        if kind == "hook":
            weight_norm(layer)
        else:
            parametrizations.weight_norm(layer)
    if kind == "hook":
        network[1].weight_g, network[1].weight_v = network[0].weight_g, network[0].weight_v
    else:
        network[1].parametrizations.weight = network[0].parametrizations.weight
    make_plain(network, (4,))
    assert network[0].weight is network[1].weight


class SamePadding(nn.Conv2d):
    """As EfficientNets of TensorFlow's family have it: padding by the input's size."""

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (1, 0):
            size, stride, kernel = input.shape[2 + axis], self.stride[axis], self.kernel_size[axis]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class OneSided(nn.Conv2d):
    """As networks converted from Keras have it: zeros at the end only, whatever the size."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Shifting(nn.Conv2d):
    """Pads on the side where the input is larger."""

    def forward(self, input: Tensor) -> Tensor:
        left = bool(input[..., 0].sum() > input[..., -1].sum())
        return F.conv2d(F.pad(input, (1, 0) if left else (0, 1)), self.weight, self.bias)


class Standardised(nn.Conv2d):
    """As normaliser-free networks have it: a standardised weight with a gain."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 1.5))

    def forward(self, input: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (std + 1e-5) * self.gain
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, 0.5 * self.weight, bias=self.bias)


class ScaledUp(nn.ConvTranspose2d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.conv_transpose2d(input, 2 * self.weight, self.bias, self.stride, self.padding, self.output_padding)


class Activated(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Conditional(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * input.mean().sigmoid(), self.bias, self.stride, self.padding)


class Twice(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(super().forward(input))


class ByHand(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.t() + self.bias


EQUAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "same padding": (lambda: SamePadding(4, 6, 3), (4, 7, 7)),
    "standardised": (lambda: Standardised(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (4, 7, 7)),
    "scaled": (lambda: Scaled(4, 6), (3, 4)),
    "transposed": (lambda: ScaledUp(4, 6, 4, stride=2, padding=1), (4, 5, 5)),
}


@pytest.mark.parametrize("kind", EQUAL)
def test_a_subclass_that_computes_what_a_plain_layer_does_becomes_one(kind: str) -> None:
    make, shape = EQUAL[kind]
    network = nn.Sequential(nn.Identity(), make())
    images = torch.randn(3, *shape)
    wanted = network(images)
    assert len(make_plain(network, shape)) == 1
    assert type(network[1]).__module__.startswith("torch.nn")
    assert torch.allclose(network(images), wanted, rtol=1e-5, atol=1e-5)
    assert {*network.state_dict()} <= {"1.weight", "1.bias"}


PADDED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "same, stride 2": (lambda: SamePadding(4, 6, 3, stride=2), "SamePadding"),
    "same, stride 3 and 2": (lambda: SamePadding(4, 6, (5, 3), stride=(3, 2)), "SamePadding"),
    "same, even kernel": (lambda: SamePadding(4, 6, 2, stride=2, bias=False), "SamePadding"),
    "one side": (lambda: OneSided(4, 6, 3, stride=2), "ConstantPad2d"),
}


@pytest.mark.parametrize("kind", PADDED)
def test_a_convolution_that_pads_unevenly_becomes_padding_and_a_plain_convolution(kind: str) -> None:
    make, padding = PADDED[kind]
    network = nn.Sequential(nn.Identity(), make())
    images = [torch.randn(2, 4, size, size + 1) for size in range(6, 14)]
    before = [network(image) for image in images]
    (note,) = make_plain(network, (4, 8, 8))
    assert note.endswith("by padding and Conv2d, which computes the same")
    assert [type(part).__name__ for part in network[1]] == [padding, "Conv2d"]  # type: ignore[arg-type]
    for image, output in zip(images, before, strict=True):
        assert torch.allclose(network(image), output, atol=1e-5)
    assert network[1].out_channels == 6


@pytest.mark.slow
def test_such_a_convolution_is_factorised_and_exported_for_any_size() -> None:
    network = nn.Sequential(SamePadding(8, 32, 3, stride=2), nn.ReLU(), SamePadding(32, 32, 3, stride=2)).eval()
    images = torch.randn(1, 8, 15, 16)
    with torch.no_grad():
        before = network(images)
    make_plain(network, (8, 16, 16))
    sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(network, (torch.randn(1, 8, 16, 16),), dynamic_shapes=(sides,))
    with torch.no_grad():
        assert torch.allclose(program.module()(images), before, atol=1e-4)
    assert list(lrexport.decompose(network, (8, 16, 16)).layers) == ["0.convolution", "2.convolution"]


def test_every_subclass_of_a_convolution_in_timm_becomes_plain() -> None:
    timm = pytest.importorskip("lrexport.networks.timm_zoo").timm
    if PathFinder.find_spec("timm") is None:
        pytest.skip("needs the extra timm")
    layers: Any = timm().layers
    for name in ("Conv2dSame", "StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"):
        for stride in (1, 2):
            network = nn.Sequential(nn.Identity(), getattr(layers, name)(4, 6, 3, stride=stride))
            images = torch.randn(2, 4, 9, 10)
            before = network(images)
            assert len(make_plain(network, (4, 9, 10))) == 1, name
            assert torch.allclose(network(images), before, atol=1e-4), name


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "padding by the input's values": (lambda: Shifting(4, 6, 3), "Shifting pads its input unevenly"),
    "an activation": (lambda: Activated(4, 6, 3, padding=1), "Activated computes something else than Conv2d"),
    "a weight that depends on the input": (lambda: Conditional(4, 6, 3), "Conditional computes something else than Conv2d"),
    "two products": (lambda: Twice(4, 4), "Twice computes several products"),
    "by hand": (lambda: ByHand(4, 4), "ByHand computes no visible convolution or linear function"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("zeros", [True, False], ids=["zeros", "random"])
def test_a_subclass_that_computes_something_else_stays_with_the_reason(kind: str, zeros: bool) -> None:
    make, reason = OTHERS[kind]
    layer = make()
    if zeros:  # which hide every difference
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    network = nn.Sequential(nn.Identity(), layer)
    shape = (4,) if isinstance(layer, nn.Linear) else (4, 8, 8)
    assert make_layers_plain(network, shape) == []
    assert network[1] is layer
    assert why_not_plain(layer) == reason


def test_a_weight_of_its_own_stays_tied_and_a_computed_one_keeps_the_layer() -> None:
    network = nn.Sequential(SamePadding(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1), Standardised(4, 4, 3), nn.Conv2d(4, 4, 3))
    network[1].weight, network[3].weight = network[0].weight, network[2].weight
    make_plain(network, (4, 9, 9))
    assert [type(layer).__name__ for layer in network] == ["Conv2d", "Conv2d", "Standardised", "Conv2d"]
    assert network[0].weight is network[1].weight


def test_a_subclass_stays_where_the_network_asks_for_it() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Scaled(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if isinstance(self.layer, Scaled) else x

    network = Asking()
    assert make_plain(network, (4,)) == []
    assert isinstance(network.layer, Scaled)


def test_compiled_parts_are_taken_back_and_named() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), torch.compile(nn.Linear(4, 4), backend="eager"), nn.Linear(4, 4))
    inner[2].compile(backend="eager")
    network, notes = unwrapped(torch.compile(inner, backend="eager"), "the network")  # type: ignore[arg-type]
    assert network is inner
    assert [type(layer) for layer in inner] == [nn.Linear] * 3
    assert getattr(inner[2], "_compiled_call_impl", None) is None
    assert notes == ["removed torch.compile from the whole network, 1, 2; --compile uses it in training"]
    assert {*network.state_dict()} == {f"{index}.{name}" for index in range(3) for name in ("weight", "bias")}


class Sum(nn.Module):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope, self.inner = slope, nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.slope + torch.sigmoid(x)


def test_scripted_activations_become_ordinary_modules_that_torch_can_export() -> None:
    network: nn.Module = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        torch.jit.script(nn.Hardswish()),
        torch.jit.script(Sum(0.3)),
        nn.Sequential(torch.jit.script(nn.Flatten())),
    )
    images = torch.randn(2, 3, 5, 5)
    wanted = network(images)
    network, _ = unwrapped(network, "the network")
    assert [type(module) for module in (network[1], network[2], network[3][0])] == [Scripted] * 3  # type: ignore[index]
    assert torch.equal(network(images), wanted)
    program = torch.export.export(network.eval(), (images,))
    assert torch.allclose(program.module()(images), wanted)


def test_scripted_layers_and_what_differs_in_training_are_refused_by_name() -> None:
    for part in (nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())):
        network = nn.Sequential(nn.Identity(), torch.jit.script(part))
        name = type(part).__name__
        with pytest.raises(UsageError, match=rf"the network: '1' is TorchScript \({name}\), whose layers cannot be changed"):
            unwrapped(network, "the network")


def _prepared() -> nn.Module:
    import torch.ao.quantization as quantization

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    network.qconfig = quantization.get_default_qconfig("x86")  # type: ignore[assignment]
    return quantization.prepare(network)


def _dynamic() -> nn.Module:
    import torch.ao.quantization as quantization

    return quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})


class WithState(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_prepared, "the network: '0.activation_post_process' is prepared for quantisation (HistogramObserver)"),
        (_dynamic, "the network: '0' is prepared for quantisation (Linear)"),
        (
            lambda: nn.Sequential(WithState(4, 4)),
            "the network: '0._extra_state' in its state dict is a dict; expected only tensors",
        ),
        (lambda: nn.Linear(4, 4, device="meta"), "the network without values: 'weight' is on the meta device"),
    ],
)
def test_networks_that_are_no_ordinary_ones_are_refused_by_name(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_workable(make(), "the network")
    assert caught.value.message == message


def test_stubs_and_functions_of_quantisation_that_do_nothing_yet_are_fine() -> None:
    import torch.ao.quantization as quantization

    check_workable(nn.Sequential(quantization.QuantStub(), nn.Linear(4, 4), torch.ao.nn.quantized.FloatFunctional()), "x")

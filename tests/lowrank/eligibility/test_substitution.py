"""Networks that want more of a layer than it does when called, or another layout than channels_last."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lrexport.config.goals import Macs, Params
from lrexport.errors import UsageError
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold, fold_structure
from lrexport.lowrank.factors.moments import input_moments
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.lowrank.repair.reconstruct import reconstruct
from lrexport.lowrank.selection.costs import plan_layer, plan_macs
from lrexport.lowrank.selection.select import select
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.memory_layout import fast_layout

SHAPE = (3, 8, 8)


class Flattening(nn.Module):
    """As tutorials write it: the number of features is asked of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(1024, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).view(-1, self.first.in_features)
        return self.last(torch.relu(self.first(x)))  # type: ignore[no-any-return]


class Striding(Flattening):
    """One that asks a convolution for what a pair, with two strides, has not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., :: self.conv.stride[0], :])


class Listing(nn.Module):
    """Its convolutions are registered, and called from a list that nobody else sees, as detectron2's FPN has them."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: list[nn.Module] = []
        for number, channels in enumerate((3, 16)):
            self.listed.append(nn.Conv2d(channels, 16, 3, padding=1))
            self.add_module(f"conv{number}", self.listed[-1])
        self.last = nn.Linear(1024, 16)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.listed:
            x = torch.relu(layer(x))
        return self.last(x.flatten(1))  # type: ignore[no-any-return]


def test_a_network_that_asks_a_layer_for_its_sizes_asks_the_pair() -> None:
    network = Flattening().eval()
    images = torch.randn(4, *SHAPE)
    with torch.no_grad():
        wanted = network(images)
    svd = decompose(network, SHAPE)
    plan = select(svd, Macs(0.5)).plan
    folded = fold(svd, plan)
    assert (folded.get_submodule("first").in_features, folded.get_submodule("first").out_features) == (1024, 32)
    assert folded(images).shape == wanted.shape
    loaded = fold_structure(Flattening(), plan)
    loaded.load_state_dict(folded.state_dict())
    torch.testing.assert_close(loaded(images), folded(images))


def test_a_layer_that_is_asked_for_what_a_pair_has_not_stays_dense_and_the_others_do_not() -> None:
    svd = decompose(Striding(), SHAPE)
    assert list(svd.layers) == ["first", "last"]
    assert svd.dense["conv"].kind == "unsupported"
    assert "does not run with a pair in its place: 'Sequential' object has no attribute 'stride'" in svd.dense["conv"].reason
    assert fold(svd, select(svd, Macs(0.5)).plan)(torch.randn(2, *SHAPE)).shape == (2, 4)


def test_layers_that_are_called_from_elsewhere_than_their_places_stay_dense() -> None:
    network = Listing()
    svd = decompose(network, SHAPE)
    assert list(svd.layers) == ["last"]
    for name in ("conv0", "conv1"):
        assert svd.dense[name].reason == "the network calls it through another reference"
    with pytest.raises(UsageError) as caught:
        select(svd, Macs(0.5))
    assert "The largest layer that stays dense is conv1, with 147.46K: the network calls" in (caught.value.hint or "")
    plan = select(svd, Params(0.9)).plan
    assert count_torch_macs(fold(svd, plan), SHAPE).total == plan_macs(svd, plan)


class Asking(nn.Module):
    """One that does something else with what is no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.last = nn.Linear(1024, 16)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if isinstance(layer, nn.Conv2d) else 2 * layer(x)
        return self.last(x.flatten(1))  # type: ignore[no-any-return]


def test_a_layer_that_is_asked_of_what_kind_it_is_stays_dense() -> None:
    network = Asking().eval()
    images = torch.randn(2, *SHAPE)
    with torch.no_grad():
        wanted = network(images)
    svd = decompose(network, SHAPE)
    assert list(svd.layers) == ["last"]
    assert svd.dense["layers.0"].reason == "the network computes something else with a pair in its place"
    torch.testing.assert_close(fold(svd, {})(images), wanted, atol=1e-5, rtol=1e-4)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


class Twice(nn.Module):
    """A block at two places, with one layer at two names and of one parent."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one = nn.Conv2d(3, 8, 3, padding=1), Block()
        self.other = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(self.first(x)))  # type: ignore[no-any-return]


def test_a_block_at_two_places_is_factorised_once_and_folds_at_both() -> None:
    network, images = Twice().eval(), torch.randn(2, *SHAPE)
    with torch.no_grad():
        wanted = network(images)
    svd = decompose(network, SHAPE)
    assert svd.layers["one.conv"].names == ("one.conv", "other.conv")
    layer = svd.layers["one.conv"]
    folded = fold(svd, {"one.conv": plan_layer(layer, layer.full_rank, 1.0, even_if_costly=True)})
    assert folded.get_submodule("one.conv") is folded.get_submodule("other.conv")
    torch.testing.assert_close(folded(images), wanted, atol=1e-5, rtol=1e-4)


def test_images_are_as_they_were_after_a_network_that_changes_its_input() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(0.5).view(len(x), -1)

    images = torch.ones(2, *SHAPE)
    fast_layout(InPlace(), Batch.of(images))
    assert bool((images == 1).all())


@pytest.mark.parametrize("make", [Flattening, Striding, Listing])
def test_trying_pairs_out_leaves_network_and_random_numbers_as_they_were(make: type[nn.Module]) -> None:
    network = make()
    layers, modes = dict(network.named_modules()), [module.training for module in network.modules()]
    state = copy.deepcopy(network.state_dict())
    torch.manual_seed(3)
    wanted = torch.randn(2)
    torch.manual_seed(3)
    decompose(network, SHAPE, keep=["*"])
    decompose(network, SHAPE)
    assert torch.equal(torch.randn(2), wanted)
    found = dict(network.named_modules())
    assert all(found[name] is layer for name, layer in layers.items())
    assert [module.training for module in layers.values()] == modes
    plain = fold(decompose(make(), SHAPE), {}).state_dict()
    assert plain.keys() == state.keys()


def test_a_network_that_is_one_layer_stays_as_it_is() -> None:
    svd = decompose(nn.Conv2d(8, 16, 3, padding=1), (8, 8, 8))
    assert not svd.layers
    assert svd.dense[""].reason == "it is the whole network"


class Standardising(nn.Module):
    """A wrapper for inference, which takes an image's mean away, divides by its spread, and knows no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 16))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - x.mean()) / (x.std() + 1e-5))  # type: ignore[no-any-return]


def test_layers_behind_a_standardisation_without_gradients_do_not_work_on_constants() -> None:
    assert list(decompose(Standardising(), SHAPE).layers) == ["body.0", "body.3"]


def test_an_input_has_the_dtype_of_floating_point_parameters_whatever_comes_first() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))
    network.register_parameter("phase", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))
    network.register_parameter("step", nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False))
    assert next(network.parameters()).is_complex()
    assert list(decompose(network, SHAPE).layers) == ["0", "1"]


@pytest.mark.parametrize("make", [Flattening, Listing])
def test_images_are_in_channels_last_where_the_network_takes_it(make: type[nn.Module]) -> None:
    network, images = make().eval(), torch.randn(40, *SHAPE)
    with pytest.raises(RuntimeError, match="view size") if make is Flattening else torch.no_grad():
        network(images.contiguous(memory_format=torch.channels_last))
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        found = fast_layout(network, Batch.of(given)).only
        assert torch.equal(found, images)
        assert found.is_contiguous() == (make is Flattening)
    svd = decompose(network, SHAPE)
    plan = select(svd, Params(0.9), moments=input_moments(svd, [(images, images)])).plan
    folded = fold(svd, plan)
    assert reconstruct(folded, svd, plan, images)

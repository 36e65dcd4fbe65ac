"""Which parts of a network are trained alone, and what is recorded of their calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.layers.pairs import untrained_pair
from lrexport.lowrank.repair.parts import called_once, own_parameters, parts_of
from lrexport.lowrank.repair.recorded_calls import UnslicableError, record_inputs, record_outputs
from lrexport.networks.cifar_resnet import CifarResNet
from lrexport.torch_tools.batch import Batch
from tests.lowrank.repair.test_reconstruct import at_rank


def names(network: nn.Module, kind: str) -> list[str]:
    return [part.name for part in parts_of(network) if part.kind == kind]


def folded(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    svd = decompose(network.eval(), shape)
    return fold(svd, at_rank(svd, 2))


def test_the_blocks_of_a_resnet_are_its_residual_blocks() -> None:
    network = folded(CifarResNet(20), (3, 32, 32))
    assert names(network, "block") == [f"{stage}.{block}" for stage in ("layer1", "layer2", "layer3") for block in range(3)]
    assert len(names(network, "pair")) == sum(name.endswith(".first") for name, _ in network.named_modules())
    assert names(network, "network") == [""]


class Shortcut(nn.Module):
    """x + layers(x), the layers in one Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def test_a_block_includes_what_is_around_its_only_group_of_layers() -> None:
    network = folded(nn.Sequential(nn.Conv2d(3, 8, 3), Shortcut(), Shortcut()), (3, 10, 10))
    assert names(network, "block") == ["1", "2"]


def test_a_network_without_pairs_has_no_parts() -> None:
    assert parts_of(CifarResNet(20)) == []


def test_a_flat_network_is_one_part_after_its_pairs() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    network[2] = untrained_pair(network[2], "spatial", 2)
    assert [(part.name, part.kind) for part in parts_of(network)] == [("2", "pair"), ("", "network")]


class Twice(nn.Module):
    """``shared`` runs twice, ``tied`` has the weight of ``first``, and ``late`` is registered before it runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.late = untrained_pair(nn.Conv2d(4, 4, 3, padding=1), "spatial", 2)
        self.shared = untrained_pair(nn.Conv2d(4, 4, 3, padding=1), "spatial", 2)
        self.first = untrained_pair(nn.Conv2d(4, 4, 3, padding=1), "spatial", 2)
        self.tied = nn.Conv2d(2, 4, (1, 3), padding=(0, 1))
        self.tied.weight = self.first.second.weight
        for half in [*self.late, *self.shared, *self.first]:
            nn.init.normal_(half.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(self.first(x)))
        return self.late(x)


def test_parts_come_in_the_order_of_their_calls_and_only_if_called_once() -> None:
    network = Twice()
    parts = called_once(parts_of(network), (network, network), Batch.of(torch.randn(2, 4, 6, 6)))
    assert [part.name for part in parts] == ["first", "late", ""]


def test_weights_that_another_part_shares_are_not_trained() -> None:
    network = Twice()
    (first,) = [part for part in parts_of(network) if part.name == "first"]
    trained = own_parameters(network, first)
    assert any(each is network.first.first.weight for each in trained)
    assert not any(each is network.tied.weight for each in trained)


def test_recorded_inputs_give_the_recorded_outputs_again() -> None:
    network = CifarResNet(20).eval()
    batches = [Batch.of(torch.randn(size, 3, 32, 32)) for size in (4, 3)]
    given, outputs = record_inputs(network, "layer2.0", batches), record_outputs(network, ("layer2.0",), batches)
    assert len(given) == len(outputs) == 7
    index = torch.tensor([6, 0, 3])
    args, kwargs = given.of(index)
    with torch.no_grad():
        torch.testing.assert_close({"layer2.0": network.layer2[0](*args, **kwargs)}, outputs.of(index))


class Windows(nn.Module):
    """Calls ``body`` with several rows a sample and a flag by name; ``summed`` gets nothing with a row for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.summed = Scaled(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        rows = self.body(x.flatten(0, 1), twice=True).view_as(x)
        return rows + self.summed(rows.sum())


class Scaled(nn.Module):
    def forward(self, rows: Tensor, twice: bool = False) -> Tensor:
        return rows.mul_(2 if twice else 1)  # in place: what is recorded must not change


def test_a_part_may_get_several_rows_a_sample_and_arguments_by_name() -> None:
    network, x = Windows(), torch.randn(6, 3, 5)
    given = record_inputs(network, "body", [Batch.of(x[:4].clone()), Batch.of(x[4:].clone())])
    args, kwargs = given.of(torch.tensor([5, 1]))
    assert kwargs == {"twice": True}
    assert torch.equal(args[0], x[[5, 1]].flatten(0, 1))
    network.body(*args, **kwargs)
    assert torch.equal(given.of(torch.tensor([5, 1]))[0][0], x[[5, 1]].flatten(0, 1))


def test_tensors_without_a_row_for_each_sample_are_not_recorded() -> None:
    with pytest.raises(UnslicableError):
        record_inputs(Windows(), "summed", [Batch.of(torch.randn(4, 3, 5))])

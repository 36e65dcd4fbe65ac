"""Which layers are put into SVD form, why the others are not, and that nothing changes by it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lrexport.errors import InputError
from lrexport.lowrank.decompose import decompose
from lrexport.lowrank.regularisers import losses
from lrexport.lowrank.svd_form import factors
from tests.conftest import SmallNet, relative_error


def test_the_network_in_svd_form_computes_what_it_did_and_keeps_its_layers(small_net: nn.Module) -> None:
    images = torch.randn(2, 3, 12, 12)
    wanted = small_net(images)
    svd = decompose(small_net, (3, 12, 12))
    assert relative_error(small_net(images), wanted) <= 1e-5
    assert isinstance(small_net.body, nn.Conv2d)
    left, singular, right = factors(small_net.body)
    assert (left.shape, singular.shape, right.shape) == ((72, 48), (48,), (48, 48))
    assert svd.layers["body"].full_rank == 48


def test_training_moves_the_factors_with_the_gradients_of_the_two_layer_form() -> None:
    # y = U diag(|s|) Vᵀ x: the composed form must give the gradients of running the two layers one after the other.
    layer, rows = nn.Linear(6, 5, bias=False).double(), torch.randn(9, 6, dtype=torch.float64)
    network = nn.Sequential(layer)
    svd_layer = decompose_all(network)
    left, singular, right = factors(svd_layer)
    with torch.no_grad():
        singular[1].neg_()  # the sign must not matter
    composed = torch.autograd.grad(network(rows).square().sum(), (left, singular, right))
    paper = ((rows @ right) * singular.abs()) @ left.T
    for mine, theirs in zip(composed, torch.autograd.grad(paper.square().sum(), (left, singular, right)), strict=True):
        torch.testing.assert_close(mine, theirs)


def decompose_all(network: nn.Sequential) -> nn.Module:
    from lrexport.lowrank.svd_form import attach

    attach(network[0], "linear")
    return network[0]


def test_a_step_of_sgd_on_the_losses_trains_every_factor(small_net: nn.Module) -> None:
    svd = decompose(small_net.train(), (3, 12, 12))
    before = copy.deepcopy(small_net.state_dict())
    optimizer = torch.optim.SGD(small_net.parameters(), lr=0.1)
    (small_net(torch.randn(4, 3, 12, 12)).square().mean() + losses(svd, 1.0, 0.1)).backward()
    optimizer.step()
    for name in svd.layers:
        for index in range(3):
            key = f"{name}.parametrizations.weight.original{index}"
            assert not torch.equal(before[key], small_net.state_dict()[key])


def reasons(network: nn.Module, shape: tuple[int, ...], **options: object) -> dict[str, str]:
    svd = decompose(network, shape, **options)  # type: ignore[arg-type]
    return {name: layer.reason for name, layer in svd.dense.items()}


def test_depthwise_convolutions_stay_dense_and_are_listed() -> None:
    network = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 3, groups=8), nn.ConvTranspose1d(16, 16, 3, groups=16)
    )
    network.insert(2, nn.Flatten(2))
    assert set(reasons(network, (8, 9, 9)).values()) == {"depthwise convolution"}


def test_a_subclass_and_an_existing_parametrisation_are_left_alone() -> None:
    class Mine(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    network = nn.Sequential(Mine(8, 8, 3), parametrizations.weight_norm(nn.Conv2d(8, 8, 3)))
    found = reasons(network, (8, 9, 9))
    assert found["0"] == "Mine may compute something else than Conv2d"
    assert found["1"] == "its weight has a parametrisation already"


def test_a_layer_never_called_stays_dense() -> None:
    network = SmallNet()
    network.unused = nn.Linear(32, 32)
    assert reasons(network, (3, 12, 12))["unused"] == "not called in a forward pass"


def test_a_weight_computed_by_a_hook_and_one_tied_to_an_embedding_stay_dense() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.hooked, self.out = nn.Embedding(40, 32), nn.Linear(32, 32), nn.Linear(32, 40)
            torch.nn.utils.weight_norm(self.hooked)
            self.out.weight = self.embedding.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.hooked(x))

    assert reasons(Tied(), (32,)) == {
        "hooked": "its weight is computed by a hook",
        "out": "its weight is shared with embedding",
    }


def test_attention_keeps_its_projections() -> None:
    network = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    found = reasons(network, (5, 32))
    assert found["self_attn.out_proj"] == "MultiheadAttention uses its weight without calling it"
    assert found["linear1"] == "TransformerEncoderLayer uses its weight without calling it"


def test_layers_can_be_kept_by_name() -> None:
    assert reasons(SmallNet(), (3, 12, 12), keep=("body",))["body"] == "kept dense as asked"


def test_nan_in_a_weight_is_reported_with_the_layer(small_net: nn.Module) -> None:
    small_net.body.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="'body'"):
        decompose(small_net, (3, 12, 12))


def test_the_wrong_input_shape_is_reported(small_net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"\(1, 12, 12\)"):
        decompose(small_net, (1, 12, 12))


def test_every_module_is_back_in_its_own_mode(small_net: nn.Module) -> None:
    small_net.train()
    small_net.norm.eval()
    decompose(small_net, (3, 12, 12))
    assert small_net.training
    assert not small_net.norm.training

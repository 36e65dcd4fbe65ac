"""Which layers are put into SVD form, why the others are not, and that nothing changes by it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lrexport.errors import InputError, UsageError
from lrexport.formats.onnx import export_onnx
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.svd_form import factors
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.lowrank.regularisation.regularisers import losses
from lrexport.signature import Signature
from lrexport.torch_tools.tracing import noise
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
    from lrexport.lowrank.factors.svd_form import attach

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


def test_a_subclass_that_computes_something_else_and_a_weight_that_is_drawn_are_left_alone() -> None:
    class Mine(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    class Noisy(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + torch.randn_like(weight)

    network = nn.Sequential(Mine(8, 8, 3), nn.Conv2d(8, 8, 3))
    parametrize.register_parametrization(network[1], "weight", Noisy())
    found = reasons(network, (8, 9, 9))
    assert found["0"] == "Mine computes something else than Conv2d"
    assert found["1"] == "its weight has a parametrisation whose value varies"


def test_computed_weights_are_folded_before_and_said_in_the_notes() -> None:
    svd = decompose(nn.Sequential(parametrizations.weight_norm(nn.Conv2d(8, 8, 3))), (8, 9, 9))
    assert [*svd.layers] == ["0"]
    assert svd.notes == ("folded weight_norm of 1 weight into plain ones",)


def test_a_network_is_decomposed_once(small_net: nn.Module) -> None:
    decompose(small_net, (3, 12, 12))
    with pytest.raises(UsageError, match="the network is already in SVD form"):
        decompose(small_net, (3, 12, 12))


def test_a_compiled_network_is_decomposed_as_the_one_it_was_made_from(small_net: nn.Module) -> None:
    compiled = torch.compile(small_net, backend="eager")
    svd = decompose(compiled, (3, 12, 12))
    assert svd.network is small_net
    assert svd.notes == ("removed torch.compile from the whole network; --compile uses it in training",)


def test_a_subclass_that_computes_the_same_is_factorised() -> None:
    class Conv3x3(nn.Conv2d):
        def __init__(self, into: int, out: int) -> None:
            super().__init__(into, out, 3)

    assert list(decompose(nn.Sequential(Conv3x3(8, 8)), (8, 9, 9)).layers) == ["0"]


def test_a_layer_with_hooks_stays_dense() -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    network[1].register_forward_hook(lambda *_: None)
    assert reasons(network, (8, 9, 9)) == {"1": "it has hooks, which a pair would lose"}
    assert len(network[1]._forward_hooks) == 1


class Reads(nn.Module):
    """``a`` is only called, the others' weights are used in other ways, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(32, 32) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x) + self.b(x).to(self.b.weight.dtype)
        x = nn.functional.linear(x, self.c.weight)
        joint = torch.cat([self.d.weight, self.e.weight])
        return self.d(self.e(x)) + nn.functional.linear(x, joint)[..., :32]


def test_a_layer_whose_weight_the_network_uses_in_other_ways_stays_dense() -> None:
    network = Reads()
    assert reasons(network, (32,)) == dict.fromkeys("bcde", "the network uses its weight without calling it")
    assert "a" in dict(network.named_modules())
    assert not network._forward_hooks
    assert not network.a._forward_pre_hooks


def test_a_layer_that_is_given_more_than_its_input_stays_dense() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(8, 8, 3, stride=2), nn.ConvTranspose2d(8, 8, 3, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(self.down(input=x), output_size=x.shape)

    assert reasons(Up(), (8, 10, 10)) == {"up": "called with further arguments, which a pair does not accept"}


def test_a_layer_never_called_stays_dense() -> None:
    network = SmallNet()
    network.unused = nn.Linear(32, 32)
    assert reasons(network, (3, 12, 12))["unused"] == "not called in a forward pass"


class PositionBias(nn.Module):
    """Adds what a layer makes of a table, as Swin v2 does; ``detached`` also cuts a layer's input off from autograd."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.body, self.bias, self.head = nn.Linear(12, 10), nn.Linear(12, 10), nn.Linear(10, 10)
        self.detached = detached
        self.register_buffer("table", torch.randn(1, 12))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.body(rows) + self.bias(self.table))
        return self.head(hidden.detach() if self.detached else hidden)


@pytest.mark.parametrize("detached", [False, True])
def test_a_layer_that_works_on_constants_stays_dense_and_costs_what_it_does_in_the_graph(detached, tmp_path) -> None:
    network, macs = PositionBias(detached), 12 * 10 + 10 * 10
    network.body.bias.requires_grad_(False)
    assert export_onnx(network, tmp_path / "model.onnx", (12,)).cost.macs == macs
    assert count_torch_macs(network, (12,)).total == macs
    svd = decompose(network, (12,))
    assert svd.dense_macs == macs
    assert set(svd.layers) == {"body", "head"}
    assert svd.dense["bias"].dense_macs == 0
    assert "its inputs are constant" in svd.dense["bias"].reason
    assert (network.body.bias.requires_grad, network.head.bias.requires_grad) == (False, True)


def test_a_network_that_autograd_cannot_follow_has_no_constant_layers() -> None:
    class Foreign(nn.Sequential):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self[1](torch.from_numpy(self[0](rows).numpy() + 1))

    assert set(decompose(Foreign(nn.Linear(12, 10), nn.Linear(10, 10)), (12,)).layers) == {"0", "1"}


def test_a_layer_that_only_some_inputs_reach_is_not_constant() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.sometimes = nn.Linear(12, 10), nn.Linear(10, 10)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            hidden = self.body(rows)
            return hidden + self.sometimes(hidden.detach().sign()) if rows[0, 0] > limit else hidden

    limit = 0.0
    network = Branching()
    firsts = [float(noise(network, Signature.of((12,)), seed).only[0, 0]) for seed in (0, 1)]
    limit = sum(firsts) / 2
    assert "body" in decompose(network, (12,)).layers


def test_a_weight_computed_by_a_hook_and_one_tied_to_an_embedding_stay_dense() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.hooked, self.out = nn.Embedding(40, 32), nn.Linear(32, 32), nn.Linear(32, 40)
            value = self.hooked.weight
            del self.hooked.weight
            self.hooked.source = value
            self.hooked.register_forward_pre_hook(lambda layer, _: setattr(layer, "weight", layer.source * 2))
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


class Attending(nn.Module):
    """(B, 5, 16) → (B, 4): attention to half of the positions, a recurrent layer and a bilinear one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(16, 16), nn.MultiheadAttention(16, 2, kdim=16, vdim=12, batch_first=True)
        self.recur, self.compare = nn.LSTM(16, 8, batch_first=True), nn.Bilinear(8, 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        last = self.recur(self.attend(x, value=x[:, 2:, :12], key=x[:, 2:])[0])[0][:, -1]
        return self.compare(last, last)


def test_modules_without_a_scheme_are_listed_and_attention_has_the_macs_that_torch_counts() -> None:
    network = Attending()
    total = count_torch_macs(network, (5, 16)).total
    svd = decompose(network, (5, 16), total_macs=total)
    assert list(svd.layers) == ["embed"]
    assert {
        name: (layer.reason, layer.shape, layer.dense_macs, layer.dense_params) for name, layer in svd.dense.items()
    } == {
        "attend": ("no scheme for MultiheadAttention", (), 16 * (5 * 16 + 3 * 16 + 3 * 12), 16 * 44 + 48),
        "attend.out_proj": ("MultiheadAttention uses its weight without calling it", (16, 16), 5 * 256, 256 + 16),
        "recur": ("no scheme for LSTM", (), 0, 4 * 8 * (16 + 8 + 2)),
        "compare": ("no scheme for Bilinear", (), 0, 4 * 64 + 4),
    }
    assert (svd.dense_macs, svd.other_macs, svd.other_params) == (total, 2 * 5 * 3 * 16, 0)


def test_attention_that_was_changed_by_its_user_is_listed_without_macs() -> None:
    class Alone(nn.MultiheadAttention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x, x, x)[0]

    dense = decompose(nn.Sequential(nn.Linear(16, 16), Alone(16, 2, batch_first=True)), (5, 16)).dense
    assert (dense["1"].reason, dense["1"].shape, dense["1"].dense_macs) == ("no scheme for Alone", (48, 16), 0)


def test_every_dense_layer_has_its_kind_shape_and_costs() -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 1, 1), nn.Conv2d(1, 16, 3))
    dense = decompose(network, (8, 9, 9), keep=("2",)).dense
    assert {name: (layer.kind, layer.shape, layer.dense_macs, layer.dense_params) for name, layer in dense.items()} == {
        "0": ("unsupported", (8, 1, 3, 3), 8 * 9 * 49, 80),
        "1": ("costly", (1, 8, 1, 1), 8 * 49, 9),
        "2": ("kept", (16, 1, 3, 3), 16 * 9 * 25, 160),
    }


@pytest.mark.parametrize(
    ("pattern", "kept"), [("body", {"body"}), ("*o*y", {"body"}), ("[bh]*", {"body", "head"}), ("?", None)]
)
def test_layers_are_kept_by_shell_patterns(pattern: str, kept: set[str] | None) -> None:
    if kept is None:
        with pytest.raises(UsageError, match=r"invalid keep pattern '\?': no layer matches"):
            decompose(SmallNet(), (3, 12, 12), keep=(pattern,))
        return
    dense = decompose(SmallNet(), (3, 12, 12), keep=(pattern,)).dense
    assert {name for name, layer in dense.items() if layer.kind == "kept"} == kept
    assert dense["body"].reason == "kept dense as asked"


def test_a_pattern_that_matches_nothing_names_close_ones() -> None:
    with pytest.raises(UsageError, match="invalid keep pattern 'bodi': no layer matches") as caught:
        decompose(SmallNet(), (3, 12, 12), keep=("stem", "bodi"))
    assert "body" in str(caught.value.hint)


def test_facts_are_there_for_every_scheme_that_gains() -> None:
    layer = decompose(SmallNet(), (3, 12, 12), "channel").layers["body"]
    assert layer.scheme == "channel"
    assert {scheme: facts.full_rank for scheme, facts in layer.schemes.items()} == {
        "spatial": 48,
        "channel": 24,
        "input-channel": 16,
    }
    assert layer.schemes["spatial"].macs_per_rank == 16 * 3 * 12 * 6 + 24 * 3 * 6 * 6
    assert layer.schemes["channel"].params_per_rank == layer.params_per_rank == 16 * 9 + 24
    assert (layer.full_rank, layer.macs_per_rank) == (24, (16 * 9 + 24) * 36)


def test_auto_takes_the_scheme_that_is_cheapest_at_full_rank() -> None:
    svd = decompose(SmallNet(), (3, 12, 12), "auto")
    for layer in svd.layers.values():
        costs = {scheme: facts.full_rank * facts.macs_per_rank for scheme, facts in layer.schemes.items()}
        assert costs[layer.scheme] == min(costs.values())
    assert {layer.scheme for layer in svd.layers.values()} > {"linear"}


def test_a_layer_that_only_another_scheme_could_make_cheaper_stays_dense_and_says_so() -> None:
    # To one output channel a channel pair of rank 1 is the layer itself and a 1×1 after it.
    dense = decompose(nn.Sequential(nn.Conv2d(16, 1, 3)), (16, 9, 9), "channel").dense["0"]
    assert dense.kind == "costly"
    assert dense.reason == "a channel pair of rank 1 costs 7.11K MACs, the layer 7.06K"
    assert "0" in decompose(nn.Sequential(nn.Conv2d(16, 1, 3)), (16, 9, 9), "auto").layers


def test_a_layer_called_on_parts_of_the_input_is_counted_for_each() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.rows, self.one = nn.Conv2d(3, 16, 3), nn.Linear(64, 64), nn.Conv1d(16, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            windows = x.unflatten(2, (3, -1)).transpose(1, 2).flatten(0, 1)  # three of (3, 10, 10)
            rows = self.rows(self.conv(windows).flatten(2))
            return self.one(rows[0])  # without a batch

    svd = decompose(Windows(), (3, 30, 10))
    counted = count_torch_macs(Windows(), (3, 30, 10)).total
    assert svd.dense_macs == counted == 3 * 16 * 27 * 64 + 3 * 16 * 64 * 64 + 8 * 16 * 3 * 62


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

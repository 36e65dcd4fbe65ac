"""The Python API and the command are one tool: the same figures, the same plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrexport as api
from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.goals import Macs
from lrexport.errors import InputError
from lrexport.events import ignore_events
from lrexport.lowrank.factors.moments import own_schemes_of
from lrexport.lowrank.factors.noise_moments import NoiseMoments
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.lowrank.selection.costs import plan_macs
from lrexport.plan import Pair, Plan
from lrexport.runs.request import RunRequest
from lrexport.workflow.pipeline import compress, plan_only

SHAPE = (3, 16, 16)


class Multiplying(nn.Module):
    """(B, 3, 16, 16) → (B, 10): two convolutions, then products that no layer makes, then a head."""

    def __init__(self, mix: Callable[[nn.Module, Tensor], Tensor], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 48, 3, padding=1)
        self.mix, self.inner, self.head = mix, inner, nn.Linear(48, 10)
        self.kernel = nn.Parameter(torch.randn(48, 48, 3, 3) / 20)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(torch.relu(self.stem(x))))
        return self.head(self.mix(self, x).mean((2, 3)))


def _attention(_: nn.Module, x: Tensor) -> Tensor:
    rows = x.flatten(2).mT
    return ((rows @ rows.mT / 7).softmax(-1) @ rows).mT.unflatten(2, x.shape[2:])


def _fused(_: nn.Module, x: Tensor) -> Tensor:
    rows = x.flatten(2).mT
    return F.scaled_dot_product_attention(rows, rows, rows).mT.unflatten(2, x.shape[2:])


def _heads(network: nn.Module, x: Tensor) -> Tensor:
    rows = x.flatten(2).mT
    return network.inner(rows, rows, rows)[0].mT.unflatten(2, x.shape[2:])


def _einsum(_: nn.Module, x: Tensor) -> Tensor:
    return torch.einsum("bchw,bdhw,bdij->bcij", x, x, x) / 100 + torch.einsum("bchw,bchv->bcwv", x, x)


def _functional(network: nn.Module, x: Tensor) -> Tensor:
    return F.conv2d(F.conv2d(x, network.kernel, padding=1), network.kernel, padding="same")


MIXED: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: Multiplying(_attention),
    "fused attention": lambda: Multiplying(_fused),
    "MultiheadAttention": lambda: Multiplying(_heads, nn.MultiheadAttention(48, 4, batch_first=True)),
    "einsum": lambda: Multiplying(_einsum),
    "functional convolutions": lambda: Multiplying(_functional),
    "convolutions alone": lambda: Multiplying(lambda _, x: x),
}


def mixed(kind: str = "") -> nn.Module:
    """What the command builds: one of MIXED, with the weights of seed 0."""
    torch.manual_seed(0)
    return MIXED[kind.replace("_", " ")]()


mixed.input_shape = SHAPE  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", MIXED)
def test_the_api_and_the_command_make_the_same_plan_of_the_same_macs(kind: str, tmp_path: Path) -> None:
    network, network_of_kind = mixed(kind).eval(), mixed(kind).eval()
    total = count_torch_macs(network, SHAPE).total
    svd = api.decompose(network, SHAPE)
    chosen = api.select(svd, api.Macs(0.75), moments=NoiseMoments(svd, own_schemes_of(svd)), rank_multiple=4)
    model = f"{__name__}:mixed?kind={kind.replace(' ', '_')}"
    # The exporter refuses fused attention of three axes, which the plan does not depend on.
    config = CompressConfig(TrainConfig(model, device="cpu", export_check=kind != "fused attention"), Macs(0.75))
    of_command, planned = plan_only(config, lambda _event: None)
    assert svd.dense_macs == of_command.dense_macs == total
    assert _choices(planned.plan) == _choices(chosen.plan)
    result = api.compress(network_of_kind, SHAPE, api.Macs(0.75))
    assert (_choices(result.plan), result.dense_macs) == (_choices(chosen.plan), total)
    folded = count_torch_macs(api.fold(svd, chosen), SHAPE).total
    assert result.macs == folded == count_torch_macs(result.network, SHAPE).total
    assert 0.7 * total < folded == plan_macs(svd, chosen.plan) <= 0.75 * total
    record = compress(RunRequest(config, tmp_path / "run", ignore_events))
    assert record.plan == planned.plan
    assert record.results.dense is not None
    assert record.results.compressed is not None
    assert (record.results.dense.macs, record.results.compressed.macs) == (total, folded)


def _choices(plan: Plan) -> Plan:
    """The plan without its energies, which depend in the ninth digit on the layout that noise went through."""
    same = {"energy_kept": 1.0}
    return Plan({name: each.model_copy(update=same) if isinstance(each, Pair) else each for name, each in plan.items()})


@dataclass
class Output:
    logits: Tensor
    note: str = "of the user's own"


class Returning(nn.Module):
    """A convolution and a head; ``wrap`` makes of the logits what the network returns."""

    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.wrap, self.conv, self.head = wrap, nn.Conv2d(3, 32, 3), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.head(self.conv(x).mean((2, 3))))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"logits": y, "classes": 10},
        Output,
        lambda y: [y, None, "text"],
        lambda y: (y, {"aux": [y, 2.0]}),
        lambda y: y.mT.expand(3, 10, 1),
    ],
    ids=["dict", "dataclass", "list", "nested", "a view"],
)
def test_macs_are_counted_whatever_the_network_returns(wrap: Callable[[Tensor], object]) -> None:
    svd = api.decompose(Returning(wrap).eval(), SHAPE)
    assert (svd.dense_macs, svd.other_macs) == (32 * 27 * 14 * 14 + 320, 0)


def test_a_network_that_torch_cannot_trace_is_refused_with_the_reason_and_left_as_it_is() -> None:
    def untraceable(y: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise NotImplementedError("not in a trace")
        return y

    network = Returning(untraceable).eval()
    with pytest.raises(InputError, match=r"cannot count the MACs of the network: torch\.jit\.trace fails on it: .*not in a"):
        api.decompose(network, SHAPE)
    assert isinstance(network.conv.weight, nn.Parameter)
    assert network.conv(torch.zeros(1, *SHAPE)).shape == (1, 32, 14, 14)

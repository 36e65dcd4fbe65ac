"""Layers of every kind, shared ones, and an SVD that does not converge: docs/faults.md, Networks and layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lrexport as package
from lrexport.runs import loading
from lrexport.runs.record import load_record
from tests.conftest import relative_error
from tests.hostile.support import Command, write_module

# Every kernel is a sum of two products of one vector per axis, so that a pair of rank 2 is exact by every scheme.
KINDS = """
    import torch
    from torch import nn

    def rank_two(layer):
        def product():
            factors = [torch.randn(length) for length in layer.weight.shape]
            letters = "abcde"[: len(factors)]
            return torch.einsum(",".join(letters) + "->" + letters, *factors)
        layer.weight.data = product() + product()
        return layer

    def network(layer, *shape):
        def make():
            torch.manual_seed(0)
            return nn.Sequential(rank_two(layer()))
        make.input_shape = shape
        return make

    grouped = network(lambda: nn.Conv2d(32, 64, 3, padding=1, groups=4), 32, 9, 9)
    transposed = network(lambda: nn.ConvTranspose2d(24, 24, 4, 2, 1, output_padding=1), 24, 6, 7)
    transposed_grouped = network(lambda: nn.ConvTranspose2d(32, 32, 3, groups=2), 32, 6, 6)
    transposed_1d = network(lambda: nn.ConvTranspose1d(24, 24, 5, 3), 24, 9)
    transposed_3d = network(lambda: nn.ConvTranspose3d(16, 16, 3, 2), 16, 3, 4, 3)
    dilated = network(lambda: nn.Conv2d(24, 24, 3, dilation=(2, 3)), 24, 12, 12)
    anisotropic = network(lambda: nn.Conv2d(24, 24, (5, 3), stride=(1, 3), padding=(2, 0)), 24, 10, 13)
    same = network(lambda: nn.Conv2d(24, 24, (4, 3), padding="same", dilation=2), 24, 9, 9)
    reflect = network(lambda: nn.Conv2d(24, 24, 3, padding=(2, 1), padding_mode="reflect"), 24, 9, 9)
    circular_same = network(lambda: nn.Conv2d(24, 24, 3, padding="same", padding_mode="circular"), 24, 9, 9)
    one_d = network(lambda: nn.Conv1d(24, 24, 5, stride=2, padding=2, padding_mode="replicate"), 24, 31)
    three_d = network(lambda: nn.Conv3d(16, 16, 3, stride=(1, 2, 2), padding=1), 16, 4, 8, 8)
    linear = network(lambda: nn.Linear(32, 32), 5, 32)

    depthwise = network(lambda: nn.Conv2d(24, 24, 3, groups=24), 24, 8, 8)
    depthwise_transposed = network(lambda: nn.ConvTranspose2d(24, 24, 4, 2, groups=24), 24, 8, 8)
    pointwise = network(lambda: nn.Conv2d(24, 1, 1), 24, 8, 8)
"""
EXACT = [
    *("grouped", "transposed", "transposed_grouped", "transposed_1d", "transposed_3d", "dilated", "anisotropic"),
    *("same", "reflect", "circular_same", "one_d", "three_d", "linear"),
]


def _plan() -> dict[str, dict[str, Any]]:
    return json.loads(Path("out/run.json").read_text())["plan"]


def _dense_and_folded() -> tuple[nn.Module, nn.Module]:
    run = Path("out")
    return loading.load_start(run, load_record(run)), package.load(run)


@pytest.mark.parametrize("kind", EXACT)
def test_a_layer_of_any_kind_is_factorised_exactly(lrexport: Command, kind: str) -> None:
    write_module("kinds", KINDS)
    done = lrexport("compress", f"kinds:{kind}", "--macs", "0.8", "-o", "out", "--device", "cpu")
    assert done.code == 0, done.err
    assert _plan()["0"]["rank"] >= 2
    dense, folded = _dense_and_folded()
    assert {type(half) for half in folded[0]} <= {kind for kind in vars(nn).values() if isinstance(kind, type)}
    images = torch.randn(3, *load_record(Path("out")).model.input_shape)
    assert relative_error(folded(images), dense(images)) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("depthwise", "depthwise convolution"),
        ("depthwise_transposed", "depthwise convolution"),
        ("pointwise", "even a pair of rank 1 costs more than the layer"),
    ],
)
def test_a_layer_that_cannot_gain_is_listed_and_left_as_it_was(lrexport: Command, kind: str, reason: str) -> None:
    write_module("kinds", KINDS)
    done = lrexport("compress", f"kinds:{kind}", "--energy", "0.5", "-o", "out", "--device", "cpu")
    assert done.code == 0, done.err
    assert "1 layer left dense: " in done.err
    assert _plan()["0"]["reason"] == reason
    dense, folded = _dense_and_folded()
    assert torch.equal(folded[0].weight, dense[0].weight)


ALL_KINDS = """
    import torch
    from torch import nn

    class All(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.grouped = nn.Conv2d(6, 24, 3, padding=1, groups=2, padding_mode="reflect")
            self.same = nn.Conv2d(24, 24, (4, 3), padding="same")
            self.up = nn.ConvTranspose2d(24, 24, 4, 2, 1, groups=2, output_padding=1)
            self.line = nn.Conv1d(24, 24, 5, stride=2, dilation=2)
            self.deep = nn.Conv3d(24, 24, 3, padding=(1, 0, 2), bias=False)
            self.up_deep = nn.ConvTranspose3d(24, 24, 3, 2, 1)
            self.head, self.tied = nn.Linear(24, 24), nn.Linear(24, 24)
            self.tied.weight = self.head.weight

        def forward(self, x):
            x = self.up(self.same(torch.relu(self.grouped(x))))
            x = self.up_deep(self.deep(self.line(x.flatten(2))[..., :120].unflatten(2, (4, 5, 6))))
            return self.tied(torch.relu(self.head(x.mean((2, 3, 4)))))

    make = All
    make.input_shape = (6, 8, 8)
"""


@pytest.mark.slow
def test_pairs_of_every_kind_are_exported_and_their_macs_agree_with_the_graph(lrexport: Command) -> None:
    write_module("kinds", ALL_KINDS)
    assert lrexport("compress", "kinds:make", "--energy", "0.5", "-o", "out", "--device", "cpu").code == 0
    assert all("rank" in layer for layer in _plan().values())
    before = load_record(Path("out")).results.compressed
    done = lrexport("onnx", "out", "--rounds", "0")
    assert done.code == 0, done.err
    after = load_record(Path("out")).results.compressed
    assert before is not None
    assert after is not None
    assert (before.macs_counted_on, after.macs_counted_on) == ("torch", "onnx")
    assert before.macs == after.macs == sum(layer["macs"] for layer in _plan().values())


SHARED = """
    import torch
    from torch import nn

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 16, 3, padding=1)
            self.first = nn.Conv2d(16, 16, 3, padding=1)
            self.blocks = nn.ModuleList([self.first, nn.Conv2d(16, 16, 3, stride=2), nn.Conv2d(16, 16, 3)])
            self.blocks[1].weight = self.first.weight
            self.embedding, self.out = nn.Embedding(10, 16), nn.Linear(16, 10)
            self.out.weight = self.embedding.weight

        def forward(self, x):
            x = torch.relu(self.first(self.stem(x)))
            for block in self.blocks:
                x = torch.relu(block(x))
            return self.out(x.mean((2, 3)))

    def make():
        return Shared()

    make.input_shape = (3, 16, 16)
"""


def test_shared_modules_and_tied_weights_agree_after_folding_and_in_the_reloaded_run(lrexport: Command) -> None:
    write_module("shared", SHARED)
    done = lrexport("compress", "shared:make", "--macs", "0.5", "-o", "out", "--device", "cpu")
    assert done.code == 0, done.err
    plan = _plan()
    assert set(plan) == {"stem", "first", "blocks.2", "out"}  # blocks.0 and blocks.1 are first
    assert plan["out"]["reason"] == "its weight is shared with embedding"
    assert plan["first"]["dense_macs"] == 16 * 16 * 9 * (2 * 16 * 16 + 7 * 7)
    dense, folded = _dense_and_folded()
    assert folded.first is folded.blocks[0]
    for half in ("first", "second"):
        assert getattr(folded.first, half).weight is getattr(folded.blocks[1], half).weight
    assert folded.out.weight is folded.embedding.weight
    assert not torch.equal(folded.first.second.bias, folded.blocks[1].second.bias)
    assert folded(torch.randn(2, 3, 16, 16)).isfinite().all()
    results = json.loads(Path("out/run.json").read_text())["results"]["compressed"]
    assert results["params"] == sum(parameter.numel() for parameter in folded.parameters())
    assert sum(layer.get("macs", layer["dense_macs"]) for layer in plan.values()) == results["macs"]
    assert sum(parameter.numel() for parameter in dense.parameters()) > results["params"]


def test_an_svd_that_does_not_converge_is_done_again_and_noted(lrexport: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    eigh, sizes = torch.linalg.eigh, []

    def failing(matrix: torch.Tensor) -> Any:
        sizes.append(len(matrix))
        if len(sizes) == 1:
            raise torch.linalg.LinAlgError("the algorithm failed to converge because the input is ill-conditioned")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    done = lrexport("compress", "tiny:make", "--macs", "0.6", "-o", "out", "--device", "cpu")
    assert done.code == 0, done.err
    assert len(sizes) > 1
    note = "the SVD of layer '0' did not converge and was repeated in float64 on the CPU"
    assert note in " ".join(done.err.split())
    assert note in json.loads(Path("out/run.json").read_text())["notes"]
    assert Path("out/model.safetensors").is_file()

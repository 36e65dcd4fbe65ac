"""What export will refuse is found before any training, told in the user's words, and once for each graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.formats import rehearsal
from lrexport.formats.rehearsal import rehearse

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """(B, 3, 8, 8) → what ``tail`` makes of features (B, 8, 8, 8) and of a head from 8 features to 4 numbers."""

    def __init__(self, tail: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.body, self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4), tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(x), self.head)


def branching(x: Tensor, head: nn.Module) -> Tensor:
    return head((x if x.mean() > 0 else 2 * x).mean((2, 3)))


def looping(x: Tensor, head: nn.Module) -> Tensor:
    for _ in range(int(x.abs().sum())):
        x = x / 2
    return head(x.mean((2, 3)))


class Dropping(nn.Module):
    """A module that draws, whatever the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


REFUSED: dict[str, tuple[Callable[[Tensor, nn.Module], Tensor], str, str]] = {
    "dropout without training=": (
        lambda x, head: head(F.dropout(x.mean((2, 3)), 0.5)),
        r"two outputs of the network for one input differ by .*, in its own forward, before its module 'head'",
        "F.dropout(x, p, self.training)",
    ),
    "noise that is added": (
        lambda x, head: head(x.mean((2, 3))) + torch.randn(4),
        r"two outputs of the network for one input .*, in its own forward",
        "cannot draw",
    ),
    "an operator that ONNX lacks": (
        lambda x, head: head(F.adaptive_max_pool2d(x, 3).mean((2, 3))),
        r"its exporter has no ONNX function for aten\.adaptive_max_pool2d",
        "other operators",
    ),
    "a branch by a value": (branching, "branches on values of a tensor", f"It comes from {__file__}, line "),
    "a loop by a value": (looping, "branches on values of a tensor", ""),
    "a batch of 1 squeezed": (
        lambda x, head: head(F.adaptive_avg_pool2d(x, 1).squeeze()),
        r"returns shape \(4,\) for a batch of 1: the first axis is not the batch",
        "flatten",
    ),
    "bfloat16": (lambda x, head: head(x.mean((2, 3))).bfloat16(), "returns bfloat16", r"x\.float\(\)"),
    "NaN": (lambda x, head: head(x.mean((2, 3))) * float("nan"), "returns NaN for random input", "range"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_export_will_refuse_is_refused_with_the_reason(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    tail, said, hint = REFUSED[kind]
    network = Net(tail).train()
    with pytest.raises(InputError, match=said) as caught:
        rehearse(network, SHAPE)
    assert caught.value.exit_code == 3
    assert "found by a trial export before any training" in caught.value.message
    assert hint.replace("\\", "") in str(caught.value.hint)
    assert "--no-export-check" in str(caught.value.hint)
    assert network.training
    assert capfd.readouterr() == ("", "")  # torch's dump of ninety lines is kept back
    assert len(caught.value.message.splitlines()) == 1


def test_a_module_that_draws_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Dropping(), nn.Flatten(), nn.Linear(256, 2))
    with pytest.raises(InputError, match=r"in its module '1' "):
        rehearse(network, SHAPE)


def in_place(x: Tensor, head: nn.Module) -> Tensor:
    return head(x.mul_(2).relu_().mean((2, 3)))


def inference(x: Tensor, head: nn.Module) -> Tensor:
    with torch.inference_mode():
        return head(x.mean((2, 3)))


def autocast(x: Tensor, head: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return head(x.mean((2, 3)))


PASSING: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "changes in place": in_place,
    "inference_mode": inference,
    "autocast": autocast,
    "classes": lambda x, head: head(x.mean((2, 3))).argmax(1),
    "float16": lambda x, head: head(x.mean((2, 3))).half(),
    "a view that is not contiguous": lambda x, head: head(x.mean((2, 3))).unsqueeze(2).expand(-1, -1, 3).mT,
    "its own input": lambda x, head: x,
    "dropout that heeds the mode": lambda x, head: head(F.dropout(x.mean((2, 3)), 0.5, head.training)),
}


@pytest.mark.parametrize("kind", PASSING)
def test_what_can_be_exported_passes_and_is_left_as_it_is(kind: str) -> None:
    network = Net(PASSING[kind]).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    done = rehearse(network, SHAPE)
    assert not done.notes
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_that_takes_one_input_at_a_time_is_noted() -> None:
    note = rehearse(Net(lambda x, head: head(x.mean((2, 3)).view(1, 8))), SHAPE).notes[0]
    assert "does not accept a batch of 2 (RuntimeError: " in note
    note = rehearse(Net(lambda x, head: head(x.mean((2, 3))[:1])), SHAPE).notes[0]
    assert note.startswith(
        "the network returns (1, 4) for a batch of 2, not (2, 4): lrexport onnx will refuse --batch dynamic"
    )


def test_one_graph_is_exported_once_and_another_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    real = rehearsal.to_onnx
    monkeypatch.setattr(rehearsal, "to_onnx", lambda *given, **named: made.append(given) or real(*given, **named))
    monkeypatch.setattr(rehearsal, "_KNOWN", set())
    for scale in (1, 1, 3):
        rehearse(Net(lambda x, head, scale=scale: scale * head(x.mean((2, 3)))), SHAPE)  # type: ignore[misc]
    assert len(made) == 2

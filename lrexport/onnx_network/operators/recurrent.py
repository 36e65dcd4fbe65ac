"""Recurrent operators in their standard form: default activations, no peepholes, all sequences of one length."""

from __future__ import annotations

import torch
from torch import Tensor

from lrexport.onnx_network.operators.facts import Form, Forms, NodeFacts, NotCoveredError, Operator, Values, at, needed, only

# ONNX has the gates i, o, f, c, and z, r, h; torch i, f, c, o, and r, z, n.
_LSTM, _GRU = (0, 2, 3, 1), (1, 0, 2)
_DIRECTIONS = ("forward", "reverse", "bidirectional")


_ATTRIBUTES = (
    *("activations", "activation_alpha", "activation_beta", "clip", "direction", "hidden_size", "input_forget"),
    "layout",
)
_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}


def _is_standard(facts: NodeFacts, kind: str, direction: str) -> bool:
    odd = ("activation_alpha", "activation_beta", "clip", "input_forget", "layout")
    if direction not in _DIRECTIONS or any(facts.get(name) for name in odd):
        return False
    named = [word.decode() if isinstance(word, bytes) else str(word) for word in facts.get("activations") or ()]
    count = 2 if direction == "bidirectional" else 1
    return not named or tuple(word.lower() for word in named) == _ACTIVATIONS[kind] * count


def _reordered(value: Tensor, order: tuple[int, ...]) -> Tensor:
    """(gates · hidden, …) with the gates in torch's order."""
    gates = value.chunk(len(order), dim=0)
    return torch.cat([gates[place] for place in order])


_Weights = tuple[Tensor, Tensor, Tensor | None]
_Made = tuple[Tensor, tuple[Tensor, ...]]


def _by_torch(kind: str, value: Tensor, weights: _Weights, states: tuple[Tensor, ...]) -> _Made:
    """The outputs (T, N, H) and last states (1, N, H) of one direction."""
    order = {"LSTM": _LSTM, "GRU": _GRU, "RNN": (0,)}[kind]
    into, recurrent, bias = weights
    parameters = [_reordered(into, order), _reordered(recurrent, order)]
    if bias is not None:
        parameters += [_reordered(part, order) for part in bias.chunk(2)]
    settings = (bias is not None, 1, 0.0, False, False, False)
    if kind == "LSTM":
        made, *last = torch.lstm(value, states, parameters, *settings)
    else:
        made, *last = (torch.gru if kind == "GRU" else torch.rnn_tanh)(value, states[0], parameters, *settings)
    return made, tuple(last)


def _by_steps(value: Tensor, weights: _Weights, states: tuple[Tensor, ...]) -> _Made:
    """A GRU that applies its reset gate before the product, which torch has not: outputs (T, N, H), last state (1, N, H)."""
    into, recurrent, bias = weights
    parts = value @ into.T
    if bias is not None:
        parts = parts + bias.chunk(2)[0] + bias.chunk(2)[1]
    gates, last = recurrent.chunk(3), states[0][0]
    made = []
    for update, reset, new in (part.chunk(3, dim=-1) for part in parts):
        share = torch.sigmoid(update + last @ gates[0].T)
        kept = torch.sigmoid(reset + last @ gates[1].T) * last
        last = (1 - share) * torch.tanh(new + kept @ gates[2].T) + share * last
        made.append(last)
    return torch.stack(made), (last.unsqueeze(0),)


def _recurrent(kind: str) -> Form:
    def form(facts: NodeFacts) -> Operator | None:
        direction = facts.text("direction", "forward")
        if not _is_standard(facts, kind, direction):
            return None
        # torch applies a GRU's reset gate after the product, which is linear_before_reset = 1.
        by_steps = kind == "GRU" and not facts.get("linear_before_reset", 0)

        def run(values: Values) -> tuple[Tensor, ...]:
            value, into, recurrent = (needed(each) for each in values[:3])
            _check(values, value)
            bias, count = at(values, 3), into.shape[0]
            zeros = value.new_zeros(count, value.shape[1], recurrent.shape[-1])
            starts = [at(values, place) for place in _STATES[kind]]
            outputs, lasts = [], []
            for number in range(count):
                weights = (into[number], recurrent[number], None if bias is None else bias[number])
                states = tuple((zeros if each is None else each)[number : number + 1].contiguous() for each in starts)
                backwards = direction == "reverse" or number == 1
                turned = value.flip(0) if backwards else value
                made, last = _by_steps(turned, weights, states) if by_steps else _by_torch(kind, turned, weights, states)
                outputs.append(made.flip(0) if backwards else made)
                lasts.append(last)
            return (torch.stack(outputs, dim=1), *(torch.cat(parts) for parts in zip(*lasts, strict=True)))

        return run

    return only(form, *_ATTRIBUTES, *(("linear_before_reset",) if kind == "GRU" else ()))


def _check(values: Values, value: Tensor) -> None:
    """Raises NotCoveredError for sequences of several lengths, and for an LSTM with peepholes."""
    lengths, peepholes = at(values, 4), at(values, 7)
    if lengths is not None and bool((lengths != value.shape[0]).any()):
        raise NotCoveredError("sequences of several lengths")
    if peepholes is not None and bool(peepholes.any()):
        raise NotCoveredError("an LSTM with peepholes")
    if not value.shape[0]:
        raise NotCoveredError("sequences of no length")


FORMS: Forms = {"GRU": _recurrent("GRU"), "LSTM": _recurrent("LSTM"), "RNN": _recurrent("RNN")}

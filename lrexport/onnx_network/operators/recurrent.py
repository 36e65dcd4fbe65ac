"""Recurrent operators in their standard form: default activations, no peepholes, all sequences of one length."""

from __future__ import annotations

import torch
from torch import Tensor

from lrexport.onnx_network.operators.facts import Forms, NodeFacts, NotCoveredError, Operator, Values, at, needed

# ONNX has the gates i, o, f, c, and z, r, h; torch i, f, c, o, and r, z, n.
_LSTM, _GRU = (0, 2, 3, 1), (1, 0, 2)
_DIRECTIONS = ("forward", "reverse", "bidirectional")


def _is_standard(facts: NodeFacts) -> bool:
    odd = ("activations", "activation_alpha", "activation_beta", "clip", "input_forget", "layout")
    return facts.text("direction", "forward") in _DIRECTIONS and not any(facts.get(name) for name in odd)


def _reordered(value: Tensor, order: tuple[int, ...]) -> Tensor:
    """(gates · hidden, …) with the gates in torch's order."""
    gates = value.chunk(len(order), dim=0)
    return torch.cat([gates[place] for place in order])


def _one_direction(
    kind: str, value: Tensor, weights: tuple[Tensor, Tensor, Tensor | None], states: tuple[Tensor, ...], backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    order = _LSTM if kind == "LSTM" else _GRU
    into, recurrent, bias = weights
    hidden = recurrent.shape[-1]
    parameters = [_reordered(into, order), _reordered(recurrent, order)]
    if bias is not None:
        parameters += [_reordered(part, order) for part in bias.split(len(order) * hidden)]
    turned = value.flip(0) if backwards else value
    settings = (bias is not None, 1, 0.0, False, False, False)
    if kind == "LSTM":
        made, *last = torch.lstm(turned, states, parameters, *settings)
    else:
        made, *last = torch.gru(turned, states[0], parameters, *settings)
    return (made.flip(0) if backwards else made), tuple(last)


def _form(kind: str, facts: NodeFacts) -> Operator | None:
    # torch applies r after the product, which is linear_before_reset = 1.
    if not _is_standard(facts) or (kind == "GRU" and not facts.get("linear_before_reset", 0)):
        return None
    direction = facts.text("direction", "forward")

    def run(values: Values) -> tuple[Tensor, ...]:
        value, into, recurrent, bias, lengths = (
            needed(values[0]),
            needed(values[1]),
            needed(values[2]),
            *(at(values, place) for place in (3, 4)),
        )
        if lengths is not None and bool((lengths != value.shape[0]).any()):
            raise NotCoveredError("sequences of several lengths")
        count, hidden = into.shape[0], recurrent.shape[-1]
        zeros = value.new_zeros(count, value.shape[1], hidden)
        starts = [at(values, place) for place in ((5, 6) if kind == "LSTM" else (5,))]
        states = [zeros if start is None else start for start in starts]
        if kind == "LSTM" and at(values, 7) is not None and bool(needed(values[7]).any()):
            raise NotCoveredError("an LSTM with peepholes")
        outputs, lasts = [], []
        for number in range(count):
            weights = (into[number], recurrent[number], None if bias is None else bias[number])
            backwards = direction == "reverse" or number == 1
            own = tuple(state[number : number + 1].contiguous() for state in states)
            made, last = _one_direction(kind, value, weights, own, backwards)
            outputs.append(made)
            lasts.append(last)
        ends = [torch.cat(parts) for parts in zip(*lasts, strict=True)]
        return (torch.stack(outputs, dim=1), *ends)

    return run


FORMS: Forms = {
    "GRU": lambda facts: _form("GRU", facts),
    "LSTM": lambda facts: _form("LSTM", facts),
}

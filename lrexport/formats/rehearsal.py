"""A check before any training that export will succeed: the dense network is exported once, in memory."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lrexport.errors import InputError
from lrexport.formats.declared import Asked, check_written, has_batch
from lrexport.formats.onnx import check_output, strip
from lrexport.formats.opsets import FIRST_OPSET
from lrexport.formats.torch_graph import to_onnx, to_program
from lrexport.formats.verify import check_repeats, compare_with_torch
from lrexport.signature import Signature
from lrexport.text import first_line
from lrexport.torch_tools.batch import InputsLike, call, signature_of
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import named_tensors
from lrexport.torch_tools.tracing import example_input, noise, run_once

_SKIP = "To compress it anyway, for torch only, use --no-export-check."
# Digests of graphs that this process has exported and verified: shared by a sweep's trials, and by tests. Without weights,
# which do not affect what an exporter refuses.
_KNOWN: set[str] = set()


@dataclass(frozen=True)
class Rehearsal:
    """Result for a network that can be exported: a limitation, if any, and the seconds that the check took."""

    seconds: float
    notes: tuple[str, ...] = ()


def rehearse(network: nn.Module, inputs: InputsLike) -> Rehearsal:
    """Export ``network`` for one sample of ``inputs`` and compare the graph with torch; nothing is written.

    The network is not changed. Raises InputError if it draws random numbers in eval mode, uses operators that ONNX lacks,
    branches on values of tensors, loses its batch axis, or if the graph's output differs.
    """
    began, signature = time.perf_counter(), signature_of(inputs, network)
    with _offering_to_skip(), eval_mode(network):
        given = noise(network, signature)
        output = run_once(network, signature, given.clone())
        check_output(output, batch=1)
        check_repeats(network, given)
        example = example_input(network, signature)
        program = to_program(network, example)
        known = _digest(program) if program is not None else None
        if known not in _KNOWN:
            outputs = has_batch(output, 1)
            model = to_onnx(network, example, list(outputs), FIRST_OPSET, program=program)
            check_written(model, Asked(1, FIRST_OPSET, outputs))
            strip(model)
            compare_with_torch(network, model, {"random input, batch 1": given})
            if known is not None:
                _KNOWN.add(known)
        note = _one_at_a_time(network, signature)
    return Rehearsal(time.perf_counter() - began, (note,) if note else ())


@contextmanager
def _offering_to_skip() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        hint = f"{error.hint} {_SKIP}" if error.hint else _SKIP
        raise InputError(f"{error.message} (found by a trial export before any training)", hint) from error


def _digest(program: Any) -> str:
    """Digest of a program's operations with the shapes and types of their results."""
    signature = [str(program.graph)]
    signature += [str(node.meta.get("val")) for node in program.graph.nodes]
    return hashlib.sha256("\n".join(signature).encode()).hexdigest()


@torch.no_grad()
def _one_at_a_time(network: nn.Module, signature: Signature) -> str | None:
    """A note if the network does not treat the inputs of a batch separately, else None."""
    limits = "lrexport onnx will refuse --batch dynamic and batches other than 1"
    both = noise(network, signature, samples=2)
    try:
        alone = [named_tensors(call(network, one.clone())) for one in both.split(1)]
        together = named_tensors(call(network, both.clone()))
    except Exception as error:  # whatever the network's code raises
        return f"the network does not accept a batch of 2 ({type(error).__name__}: {first_line(error)}): {limits}"
    for name, tensor in together.items():
        one = alone[0].get(name)
        if one is not None and one.ndim and len(one) == 1 and tensor.shape != (2, *one.shape[1:]):
            output = "" if len(together) == 1 else f" as output {name!r}"
            expected = (2, *one.shape[1:])
            return f"the network returns {tuple(tensor.shape)} for a batch of 2{output}, not {expected}: {limits}"
    return None

"""What export will refuse, found before any training: the dense network is exported once, in memory."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.formats.onnx import check_output, check_written, strip
from lrexport.formats.opsets import FIRST_OPSET
from lrexport.formats.torch_graph import to_onnx, to_program
from lrexport.formats.verify import check_repeats, compare_with_torch
from lrexport.text import first_line
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.tracing import example_input, noise, run_once

_SKIP = "--no-export-check compresses it all the same, for use in torch alone."
# Of graphs that were exported and verified in this process: a sweep's trials and tests share theirs. Weights are left out,
# as what an exporter refuses does not depend on them.
_KNOWN: set[str] = set()


@dataclass(frozen=True)
class Rehearsal:
    """That a network can be exported, what of it cannot, and how long it took to find out."""

    seconds: float
    notes: tuple[str, ...] = ()


def rehearse(network: nn.Module, input_shape: tuple[int, ...]) -> Rehearsal:
    """Export ``network`` for one input of ``input_shape`` and compare the graph with torch; nothing is written.

    It is left as it is. Raises InputError for a network that draws random numbers in eval mode, uses operators that ONNX
    lacks, decides by values of tensors, loses its batch axis, or gives another output as a graph.
    """
    began = time.perf_counter()
    with _offering_to_skip(), eval_mode(network):
        given = noise(network, input_shape)
        check_output(run_once(network, input_shape, given.clone()), batch=1)
        check_repeats(network, given)
        example = example_input(network, input_shape)
        program = to_program(network, example)
        known = _digest(program) if program is not None else None
        if known not in _KNOWN:
            model = to_onnx(program or network, example, FIRST_OPSET)
            check_written(model, 1, FIRST_OPSET)
            strip(model)
            compare_with_torch(network, model, {"random input, batch 1": given})
            if known is not None:
                _KNOWN.add(known)
        note = _one_at_a_time(network, given)
    return Rehearsal(time.perf_counter() - began, (note,) if note else ())


@contextmanager
def _offering_to_skip() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        hint = f"{error.hint} {_SKIP}" if error.hint else _SKIP
        raise InputError(f"{error.message}. This was found by exporting the network before any training", hint) from error


def _digest(program: Any) -> str:
    """By the operations of a program, with the shapes and types of all that they give."""
    signature = [str(program.graph)]
    signature += [str(node.meta.get("val")) for node in program.graph.nodes]
    return hashlib.sha256("\n".join(signature).encode()).hexdigest()


@torch.no_grad()
def _one_at_a_time(network: nn.Module, given: Tensor) -> str | None:
    """What to say of a network that does not treat the inputs of a batch one by one."""
    limits = "exported with --batch dynamic or with another batch than 1 it will be refused"
    both = torch.cat([given, noise(network, tuple(given.shape[1:]), seed=1)])
    try:
        alone = torch.cat([network(each[None].clone()) for each in both])
        together = network(both.clone())
    except Exception as error:  # whatever its own code raises
        return f"the network does not take a batch of 2 ({type(error).__name__}: {first_line(error)}): {limits}"
    if together.shape != alone.shape:
        return f"the network gives {tuple(together.shape)} for a batch of 2, not {tuple(alone.shape)}: {limits}"
    return None

"""Compiled and scripted parts of a network: taken back to what can be copied, changed and exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from lrexport.torch_tools.modules import replace, type_name


class Scripted(nn.Module):
    """A scripted module without weights, an activation say, as an ordinary one: it can be copied, traced and exported.

    ``inlined`` is what runs while torch.export follows the network, which takes no scripted module.
    """

    def __init__(self, scripted: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.name = type_name(scripted)
        # In eval mode, in which freezing leaves nothing of the module in its graph.
        frozen = cast(Any, torch.jit.freeze(scripted.eval()))
        graph = frozen.graph
        graph.eraseInput(0)
        self.function: Callable[..., Any] = torch._C._create_function_from_graph("forward", graph)
        method = frozen._c._get_method("forward")
        cast(Any, self.function)._torchdynamo_inline = lambda *args: method(*args)

    def forward(self, *args: Any) -> Any:
        return self.function(*args)

    def extra_repr(self) -> str:
        return self.name


def without_compiler(network: nn.Module) -> tuple[nn.Module, list[str]]:
    """The network without torch.compile and with ordinary modules for scripted ones that have no weights, in place.

    Returns the network itself, or the one that torch.compile had wrapped, and the names of compiled parts.
    """
    compiled: list[str] = []
    while (inner := _inside(network)) is not None:
        network, compiled = inner, [""]
    every = dict(network.named_modules())
    for name, module in every.items():
        while (inner := _inside(module)) is not None:
            replace(network, module, inner)
            compiled.append(name)
            module = inner
        if getattr(module, "_compiled_call_impl", None) is not None:  # of module.compile()
            module._compiled_call_impl = None
            compiled.append(name)
        within = isinstance(every.get(name.rpartition(".")[0]), torch.jit.ScriptModule)
        if name and not within and _is_simple_script(module):
            replace(network, module, Scripted(cast(torch.jit.ScriptModule, module)))
    return network, list(dict.fromkeys(compiled))


def _inside(module: nn.Module) -> nn.Module | None:
    """What torch.compile wrapped, known by the attribute, as importing the wrapper's class would load the compiler."""
    return module._modules.get("_orig_mod") if type(module).__name__ == "OptimizedModule" else None


def _is_simple_script(module: nn.Module) -> bool:
    """Whether it is scripted, has no tensors, and does in training what it does in eval mode."""
    if not isinstance(module, torch.jit.ScriptModule) or any(True for _ in (*module.parameters(), *module.buffers())):
        return False
    try:
        return 'name="training"' not in str(cast(Any, module).inlined_graph)
    except (RuntimeError, AttributeError):
        return False

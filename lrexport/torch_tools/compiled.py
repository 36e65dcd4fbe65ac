"""Replace compiled and scripted parts of a network by modules that can be copied, changed and exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from lrexport.torch_tools.modules import replace, type_name


class Scripted(nn.Module):
    """A scripted module without weights, such as an activation, as an ordinary module.

    It can be copied, traced and exported; for torch.export, which accepts no scripted module, the function is inlined.
    """

    def __init__(self, scripted: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.name = type_name(scripted)
        # Freezing in eval mode removes all references to the module from its graph.
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
    """Remove torch.compile, and replace scripted modules without weights by ordinary ones, in place.

    Returns the network, or the one that torch.compile wrapped, and the names of compiled parts.
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
    """The module that torch.compile wrapped, or None; found by name, because importing the class loads the compiler."""
    return module._modules.get("_orig_mod") if type(module).__name__ == "OptimizedModule" else None


def _is_simple_script(module: nn.Module) -> bool:
    """Whether a module is scripted, has no tensors, and computes the same in training and in eval mode."""
    if not isinstance(module, torch.jit.ScriptModule) or any(True for _ in (*module.parameters(), *module.buffers())):
        return False
    try:
        return 'name="training"' not in str(cast(Any, module).inlined_graph)
    except (RuntimeError, AttributeError):
        return False

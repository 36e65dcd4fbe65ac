"""Modules of a network, one by one: replaced wherever they stand, and named."""

from __future__ import annotations

from types import BuiltinFunctionType, FunctionType, ModuleType

from torch import nn

# What modules hold as attributes and that has no parts to look into.
WITHOUT_PARTS = (str, bytes, int, float, complex, bool, type(None), type, FunctionType, BuiltinFunctionType, ModuleType)


def replace(network: nn.Module, module: nn.Module, other: nn.Module) -> None:
    """Put ``other`` in all places of ``module``, in place; it must not be the network itself."""
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child is module:
                setattr(parent, name, other)


def type_name(module: nn.Module) -> str:
    """The name of its class, as its author gave it; of a scripted module that of the class it was made from."""
    return str(getattr(module, "original_name", type(module).__name__))

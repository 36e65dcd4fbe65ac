"""Replace and name single modules of a network."""

from __future__ import annotations

from types import BuiltinFunctionType, FunctionType, ModuleType

from torch import nn

# Types of attributes without parts that need to be inspected.
WITHOUT_PARTS = (str, bytes, int, float, complex, bool, type(None), type, FunctionType, BuiltinFunctionType, ModuleType)


def replace(network: nn.Module, module: nn.Module, other: nn.Module) -> None:
    """Replace ``module``, which must not be the network itself, by ``other`` in all its places."""
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child is module:
                setattr(parent, name, other)


def type_name(module: nn.Module) -> str:
    """The name of a module's class; for a scripted module that of its original class."""
    return str(getattr(module, "original_name", type(module).__name__))

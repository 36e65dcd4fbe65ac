"""Turn a network into one of plain layers with plain weights, which can be factorised, trained and exported."""

from __future__ import annotations

from torch import nn

from lrexport.errors import UsageError
from lrexport.torch_tools.batch import InputsLike
from lrexport.torch_tools.compiled import without_compiler
from lrexport.torch_tools.equivalents import make_layers_plain
from lrexport.torch_tools.refusal import check_workable
from lrexport.torch_tools.reparametrised import fold_reparametrised


def unwrapped(network: nn.Module, where: str) -> tuple[nn.Module, list[str]]:
    """The network without torch.compile and scripted activations, changed in place, and notes for the user.

    Raises UsageError for layers that cannot be changed; ``where`` begins its message.
    """
    _check_is_network(network)
    network, compiled = without_compiler(network)
    check_workable(network, where)
    named = ", ".join(name or "the whole network" for name in compiled[:5]) + (", …" if len(compiled) > 5 else "")
    return network, [f"removed torch.compile from {named}; --compile uses it in training"] if compiled else []


def _check_is_network(network: object) -> None:
    if not isinstance(network, nn.Module):
        raise UsageError(f"invalid network of type {type(network).__name__}: expected a torch.nn.Module")


def make_plain(network: nn.Module, input_shape: InputsLike) -> list[str]:
    """Fold weights that are computed from others, and replace subclasses by equivalent plain layers, in place.

    Returns notes for the user. Weights have to be loaded before, because names change (``weight_g`` and ``weight_v`` become
    ``weight``). ``input_shape`` is that of its one input, or what decompose takes for several.
    """
    _check_is_network(network)
    return fold_reparametrised(network) + make_layers_plain(network, input_shape)

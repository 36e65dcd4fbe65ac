"""``lrexport.rebuild``: the structure of a compressed network, for a state dict to be loaded into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lrexport.artifacts.plan_file import choices_in
from lrexport.errors import UsageError
from lrexport.lowrank.factors.arguments import input_shape_of
from lrexport.lowrank.factors.fold import fold_structure
from lrexport.lowrank.layers.kernels import WEIGHTED
from lrexport.torch_tools.copying import copy_network
from lrexport.torch_tools.equivalents import computes_itself, make_layers_plain
from lrexport.torch_tools.plain_form import unwrapped
from lrexport.torch_tools.reparametrised import fold_reparametrised


def rebuild(
    model: nn.Module,
    plan: Mapping[str, Any] | str | Path,
    example_inputs: Tensor | Sequence[int] | None = None,
) -> nn.Module:
    """The compressed network for a dense ``model``, with pairs by ``plan`` that are not trained; the model is not changed.

    It is in eval mode, as compress returns its network, and its ``load_state_dict`` takes the state dict of the network that
    was compressed by this plan, or of its EMA copy. ``plan`` is ``result.plan``, what its JSON holds, a plan file, or the
    folder of a run. ``example_inputs``, as for compress, are needed where layers are subclasses that compute something
    themselves: those are tried out.

    Raises InputError where plan and network do not belong together or the file is no plan, UsageError without the
    inputs where they are needed.
    """
    network, _ = unwrapped(copy_network(model), "the network")
    fold_reparametrised(network)
    own = [name for name, module in network.named_modules() if isinstance(module, WEIGHTED) and computes_itself(module)]
    if own and example_inputs is None:
        raise UsageError(
            f"rebuild needs example_inputs for this network: layer {own[0]!r} computes its output itself",
            "Give those that lrexport.compress was given.",
        )
    if example_inputs is not None:
        make_layers_plain(network, input_shape_of(example_inputs))
    return fold_structure(network, choices_in(plan)).eval()

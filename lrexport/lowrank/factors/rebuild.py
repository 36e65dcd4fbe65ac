"""``lrexport.rebuild``: the structure of a compressed network, to load a state dict into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lrexport.artifacts.plan_file import choices_in
from lrexport.errors import UsageError
from lrexport.lowrank.factors.fold import fold_structure
from lrexport.lowrank.layers.kernels import WEIGHTED
from lrexport.torch_tools.batch import InputsLike, signature_of
from lrexport.torch_tools.copying import copy_network
from lrexport.torch_tools.equivalents import computes_itself, make_layers_plain
from lrexport.torch_tools.plain_form import unwrapped
from lrexport.torch_tools.reparametrised import fold_reparametrised


def rebuild(
    model: nn.Module,
    plan: Mapping[str, Any] | str | Path,
    example_inputs: InputsLike | None = None,
) -> nn.Module:
    """The compressed network of a dense ``model``, with untrained pairs by ``plan``; the model is not changed.

    It is in eval mode, like the network of compress, and its ``load_state_dict`` accepts the state dict of the network that
    was compressed by this plan, or of its EMA copy. ``plan`` is ``result.plan``, its parsed JSON, a plan file, or the folder
    of a run. ``example_inputs``, as for compress, are only needed if layers are subclasses with their own computation, which
    is then tested.

    Raises InputError if the plan is invalid or does not fit the network, UsageError if ``example_inputs`` are missing.
    """
    network, _ = unwrapped(copy_network(model), "the network")
    fold_reparametrised(network)
    own = [name for name, module in network.named_modules() if isinstance(module, WEIGHTED) and computes_itself(module)]
    if own and example_inputs is None:
        raise UsageError(
            f"rebuild needs example_inputs for this network: layer {own[0]!r} computes its output itself",
            "Give the same ones as to lrexport.compress.",
        )
    if example_inputs is not None:
        make_layers_plain(network, signature_of(example_inputs, network))
    return fold_structure(network, choices_in(plan)).eval()

"""Load the networks of a finished run: lrexport.load and its parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from lrexport.artifacts import tensors
from lrexport.artifacts.run_files import BASELINE, DENSE, MODEL, RECORD
from lrexport.errors import InputError, UsageError, with_hint
from lrexport.lowrank.factors.fold import fold_structure
from lrexport.lowrank.factors.svd_form import fit_ranks
from lrexport.networks.building import ModelRecipe, from_record
from lrexport.plan import Plan
from lrexport.runs.record import Record, load_record, uncompressed
from lrexport.trust import consent
from lrexport.units import format_bytes

# Even without the file of its dense network, a run has a tenth of that network's size, or is small.
_MOST_TIMES, _SMALL_BYTES = 10, 256 << 20


def load(run: str | Path, trust_code: bool = False) -> nn.Module:
    """The folded network of a run, in eval mode, from its record and weights; nothing is unpickled.

    A record may name a callable that builds the network. It is called only if this user made the run or agreed to the
    callable before on this machine, or with ``trust_code``. Raises InputError if it may not be called, or if a file of the
    run is missing, damaged or does not match the record.
    """
    folder = Path(run)
    record = load_record(folder)
    with consent.trusting(trust_code):
        return load_compressed(folder, record)


def load_compressed(run: Path, record: Record) -> nn.Module:
    """:func:`load` with a loaded record."""
    if MODEL not in record.files:
        raise uncompressed(run)
    return _stored(run, record, MODEL, record.plan)


def load_start(run: Path, record: Record) -> nn.Module:
    """The dense network that compression started from, in eval mode."""
    return _stored(run, record, DENSE, Plan())


def load_baseline(run: Path, record: Record) -> nn.Module:
    """The dense network for comparison, in eval mode: after further training if the run has that, else the start."""
    name = BASELINE if BASELINE in record.files else DENSE
    return _stored(run, record, name, Plan())


def _stored(run: Path, record: Record, name: str, plan: Plan) -> nn.Module:
    """The network of the record, with pairs by ``plan`` and the weights of the run's file ``name``."""
    recipe = from_record(record.model, run / RECORD, record)
    check_size(recipe, run, record)
    network = fold_structure(recipe.build(), plan)
    weights = tensors.load(record.check(run, name))
    if weights.keys() != network.state_dict().keys():
        # Older versions of lrexport did not fold computed weights; their names are those of the network as made.
        older = recipe.as_made([])
        if weights.keys() == fold_structure(older, plan).state_dict().keys():
            network = older
    return _put(network, weights, run / name)


def check_size(recipe: ModelRecipe, run: Path, record: Record) -> None:
    """Raise InputError if the record's network is far larger than the run's files, before it is allocated."""
    network_bytes = recipe.bytes_of_weights()
    file_bytes = sum(os.path.getsize(run / name) for name in record.files if os.path.isfile(run / name))
    if network_bytes is not None and network_bytes > _MOST_TIMES * file_bytes + _SMALL_BYTES:
        raise InputError(
            f"{run / RECORD} describes a network of {format_bytes(network_bytes)}, "
            f"but the files of the run have {format_bytes(file_bytes)}",
            "The record was changed: get the run again.",
        )


def fill(network: nn.Module, record: Record, run: Path, name: str) -> nn.Module:
    """Load weights of the run into ``network``, in place. Raises InputError if they do not fit."""
    return _put(network, tensors.load(record.check(run, name)), run / name)


def _put(network: nn.Module, weights: dict[str, Tensor], path: Path) -> nn.Module:
    fit_ranks(network, weights)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the network in its record: {error}") from error
    return network.eval()


@contextmanager
def naming_recorded_data(record: Record, given: str | None) -> Iterator[None]:
    """Inside the block, add a hint to errors of data that the run's record names: --data replaces it.

    ``given`` is the --data of the user, if any; its errors get no hint.
    """
    try:
        yield
    except (InputError, UsageError) as error:
        if given is not None or record.data is None:
            raise
        hint = f"The run was made with --data {record.data.source}; if these images have moved, give --data."
        raise with_hint(error, hint) from error

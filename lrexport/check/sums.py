"""Figures of several models together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from lrexport.budget.facts import Facts, Layer
from lrexport.check.gather_facts import Gathered, gzip_bytes
from lrexport.units import sum_known


def added(parts: Mapping[str, Gathered], with_gzip: bool) -> Facts:
    """The sum of models by name; a file that several of them share, such as external data, counts once.

    A figure that one of them lacks is None; MACs are a lower bound if those of one are.
    """
    facts = [looked.facts for looked in parts.values()]
    files = {path.resolve() for looked in parts.values() for path in looked.files}
    has_files = all(looked.files for looked in parts.values())
    return Facts(
        bytes=sum(file.stat().st_size for file in files) if has_files else sum_known(each.bytes for each in facts),
        gzip_bytes=gzip_bytes(files) if with_gzip and has_files else None,
        macs=sum_known(each.macs for each in facts),
        params=sum_known(each.params for each in facts),
        uncounted=tuple(sorted({operator for each in facts for operator in each.uncounted})),
        layers=_layers(parts),
        graph=_digest([each.graph for each in facts]),
        kind=next((each.kind for each in facts if each.kind), None),
    )


def _layers(parts: Mapping[str, Gathered]) -> dict[str, Layer]:
    return {f"{name}: {layer}": costs for name, looked in parts.items() for layer, costs in looked.facts.layers.items()}


def _digest(graphs: list[str | None]) -> str | None:
    known = [graph for graph in graphs if graph is not None]
    return hashlib.sha256("\n".join(known).encode()).hexdigest() if len(known) == len(graphs) else None

"""A survey of an ONNX file by a child process: costs, operators, opset, bytes.

Neither onnx nor torch is imported here: the child does the work and returns plain numbers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrexport.artifacts import onnx_child
from lrexport.artifacts.onnx_files import ask_child
from lrexport.artifacts.onnx_graphs import bodies, operator_of, opset_of
from lrexport.errors import UsageError
from lrexport.measure.macs.onnx_costs import NodeCost, UncountedNode
from lrexport.measure.macs.onnx_digest import structure_digest
from lrexport.measure.macs.onnx_macs import GraphCost, count_onnx

if TYPE_CHECKING:
    import onnx

# Key of an answer about an error in the shapes, not in the file.
_MISTAKE = "mistake"
# Largest number of values of one input that is passed to the child on its command line.
_MOST_VALUES = 64


@dataclass(frozen=True)
class Survey:
    """Facts about a file. ``operators`` are those of all its graphs, ``domain.Name`` beyond the standard; ``opset`` is the
    standard's.

    ``files`` are the model itself and its external data, ``bytes`` the sum of their sizes. ``repairs`` lists what onnx's
    checker refuses and was repaired in memory before the count. ``structure`` is a digest of the graph without its weights.
    """

    cost: GraphCost
    operators: tuple[str, ...]
    opset: int | None
    files: tuple[Path, ...]
    bytes: int
    structure: str | None = None
    repairs: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Notes about the file for readers of the figures."""
        if not self.repairs:
            return []
        return [f"onnx's checker refuses the file ({'; '.join(self.repairs)}); it was repaired in memory"]


def survey(path: Path, shapes: Mapping[str, Sequence[int]] | None = None, values: Mapping[str, Any] | None = None) -> Survey:
    """Survey an ONNX file; ``shapes`` are sizes by input name, for sizes that the file leaves free.

    ``values`` are arrays by input name, which give shapes; short integer and boolean arrays can also select branches.

    Raises InputError as :func:`ask_child` does, UsageError for shapes that do not fit the file's inputs.
    """
    fed = dict(values or {})
    request = {
        "shapes": {**(shapes or {}), **{name: array.shape for name, array in fed.items()}},
        "values": {name: [array.dtype.str, array.tolist()] for name, array in fed.items() if _is_choice(array)},
    }
    answer = ask_child("lrexport.measure.macs.onnx_survey", path, json.dumps(request))
    if _MISTAKE in answer:
        message, hint = answer[_MISTAKE]
        raise UsageError(f"{path}: {message}", hint)
    files = (path, *(path.parent / name for name in answer[onnx_child.EXTERNAL]))
    cost = answer["cost"]
    nodes = tuple(NodeCost(**{**node, "weight_shape": _tuple(node["weight_shape"])}) for node in cost["nodes"])
    unknown = tuple(UncountedNode(**{**node, "weight_shape": _tuple(node["weight_shape"])}) for node in cost["unknown"])
    inputs = tuple((name, _tuple(shape)) for name, shape in cost["inputs"])
    return Survey(
        cost=GraphCost(nodes, cost["params"], tuple(cost["uncounted"]), inputs, unknown),
        operators=tuple(answer["operators"]),
        opset=answer["opset"],
        files=files,
        bytes=sum(file.stat().st_size for file in files),
        repairs=tuple(answer[onnx_child.REPAIRS]),
        structure=answer["structure"],
    )


def _is_choice(array: Any) -> bool:
    """Whether the computation of a graph may depend on an input's values, not only on its shape."""
    return array.dtype.kind in "iub" and array.size <= _MOST_VALUES


def _tuple(shape: list[Any] | None) -> tuple[Any, ...] | None:
    return None if shape is None else tuple(shape)


def _look(model: onnx.ModelProto, external: list[str]) -> dict[str, Any]:
    operators = {operator_of(node) for body in bodies(model) for node in body.node}
    opset = opset_of(model) or None
    try:
        cost = asdict(_count(model, json.loads(sys.argv[3])))
    except UsageError as error:
        return {_MISTAKE: (error.message, error.hint), onnx_child.EXTERNAL: external}
    answer = {"cost": cost, "operators": sorted(operators), "opset": opset, onnx_child.EXTERNAL: external}
    return {**answer, "structure": structure_digest(model)}  # last, because it clears the weights


def _count(model: onnx.ModelProto, request: dict[str, Any]) -> GraphCost:
    import numpy as np

    values = {name: np.array(numbers, kind) for name, (kind, numbers) in request.get("values", {}).items()}
    return count_onnx(model, request["shapes"], values)


def main() -> None:
    """What the child process does."""
    onnx_child.answer(_look)


if __name__ == "__main__":
    main()

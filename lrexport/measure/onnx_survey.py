"""What an ONNX file holds, looked at in a child process: costs, operators, opset, bytes.

Neither onnx nor torch is imported here: the child does the work, and what it says comes back as plain numbers.
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
from lrexport.errors import UsageError
from lrexport.measure.onnx_macs import GraphCost, count_onnx
from lrexport.measure.onnx_params import bodies
from lrexport.measure.onnx_walk import NodeCost, UncountedNode

if TYPE_CHECKING:
    import onnx

_STANDARD = ("", "ai.onnx")
# Key of an answer that says what is wrong with the shapes, not with the file.
_MISTAKE = "mistake"


@dataclass(frozen=True)
class Survey:
    """``operators`` are those of every graph inside, ``domain.Name`` beyond the standard; ``opset`` is the standard's.

    ``files`` are the model itself and its external data, ``bytes`` the sum of their sizes. ``repairs`` says what onnx's
    checker refuses and was mended in memory before the count.
    """

    cost: GraphCost
    operators: tuple[str, ...]
    opset: int | None
    files: tuple[Path, ...]
    bytes: int
    repairs: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures should know about the file."""
        if not self.repairs:
            return []
        return [f"onnx's checker refuses the file ({'; '.join(self.repairs)}); it was repaired in memory"]


def survey(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Survey:
    """Look into an ONNX file from outside; ``shapes`` are sizes of inputs by name, for those that the file leaves free.

    Raises InputError as :func:`ask_child` does, UsageError for shapes that do not fit the file's inputs.
    """
    found = ask_child("lrexport.measure.onnx_survey", path, json.dumps({"shapes": dict(shapes or {})}))
    if _MISTAKE in found:
        message, hint = found[_MISTAKE]
        raise UsageError(f"{path}: {message}", hint)
    files = (path, *(path.parent / name for name in found[onnx_child.EXTERNAL]))
    cost = found["cost"]
    nodes = tuple(NodeCost(**{**node, "weight_shape": _tuple(node["weight_shape"])}) for node in cost["nodes"])
    unknown = tuple(UncountedNode(**{**node, "weight_shape": _tuple(node["weight_shape"])}) for node in cost["unknown"])
    inputs = tuple((name, _tuple(shape)) for name, shape in cost["inputs"])
    return Survey(
        cost=GraphCost(nodes, cost["params"], tuple(cost["uncounted"]), inputs, unknown),
        operators=tuple(found["operators"]),
        opset=found["opset"],
        files=files,
        bytes=sum(file.stat().st_size for file in files),
        repairs=tuple(found[onnx_child.REPAIRS]),
    )


def _tuple(shape: list[Any] | None) -> tuple[Any, ...] | None:
    return None if shape is None else tuple(shape)


def _look(model: onnx.ModelProto, external: list[str]) -> dict[str, Any]:
    operators = {_operator(node) for body in bodies(model) for node in body.node}
    opset = next((entry.version for entry in model.opset_import if entry.domain in _STANDARD), None)
    try:
        cost = asdict(count_onnx(model, json.loads(sys.argv[3])["shapes"]))
    except UsageError as error:
        return {_MISTAKE: (error.message, error.hint), onnx_child.EXTERNAL: external}
    return {"cost": cost, "operators": sorted(operators), "opset": opset, onnx_child.EXTERNAL: external}


def _operator(node: Any) -> str:
    return node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"


if __name__ == "__main__":
    onnx_child.answer(_look)

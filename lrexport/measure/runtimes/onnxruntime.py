"""ONNX Runtime on the CPU. Self-contained: sent to devices with the runner."""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lrexport.measure.runtimes.base import JsonObject, Loaded, Ports, Runtime

_KERNEL = "_kernel_time"  # the profiler's suffix of computing nodes


def session(path: Any, threads: int = 1, profile_prefix: str | None = None) -> Any:
    """An ONNX Runtime session on the CPU; ``threads`` 0: the runtime's default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised; names of nodes would be printed raw
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class _Session(Loaded):
    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = session.get_inputs()

    def timed(self, feed: JsonObject) -> Callable[[], Any]:
        names = [self._session.get_outputs()[0].name]
        return lambda: self._session.run(names, feed)

    def run(self, feed: JsonObject) -> JsonObject:
        names = [item.name for item in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feed)))

    def profiled(self, run: Callable[[], Any], runs: int) -> list[list[tuple[str, str, float]]]:
        """Nodes are those of the optimised graph, with the runtime's names."""
        for _ in range(runs):
            run()
        with open(self._session.end_profiling(), encoding="utf-8") as events:
            recorded = json.load(events)
        nodes = [event for event in recorded if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)]
        a_run = max(1, len(nodes) // runs)
        passes = [nodes[number * a_run : (number + 1) * a_run] for number in range(runs)]
        return [
            [(node["name"][: -len(_KERNEL)], node["args"]["op_name"], node["dur"] / 1e3) for node in nodes]
            for nodes in passes
        ]


class OnnxRuntime(Runtime):
    """Loads ONNX and .ort files; spinning off, all optimisations on."""

    name = "onnxruntime"
    needs: ClassVar[dict[str, str]] = {"numpy": "numpy", "onnxruntime": "onnxruntime"}
    has_profiler = True

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def load(self, files: Sequence[str], threads: int, ports: Ports | None = None, profile_to: str | None = None) -> Loaded:
        return _Session(session(files[0], threads, profile_to))


RUNTIME = OnnxRuntime()

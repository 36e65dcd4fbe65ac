"""Names of runtimes as their makers write them."""

from __future__ import annotations

_TITLES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "mnn": "MNN",
    "litert": "LiteRT",
    "onnxruntime-web": "ONNX Runtime Web",
    "executorch": "ExecuTorch",
    "coreml": "Core ML",
}


def title_of(runtime: str) -> str:
    """``OpenVINO`` for ``openvino``; a runtime that is not listed writes itself as it is called here, as ncnn does."""
    return _TITLES.get(runtime, runtime)

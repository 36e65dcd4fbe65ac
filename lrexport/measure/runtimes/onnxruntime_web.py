"""ONNX Runtime compiled to WebAssembly, in a browser: run by lrexport/measure/targets/browser, not by the runner."""

from __future__ import annotations

from lrexport.measure.runtimes.base import IN_BROWSER, Runtime


class OnnxRuntimeWeb(Runtime):
    """Loads ONNX and .ort files as they are; its version is the browser's to say."""

    name = IN_BROWSER


RUNTIME = OnnxRuntimeWeb()

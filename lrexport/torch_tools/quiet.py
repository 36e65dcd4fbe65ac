"""Silence for libraries that print progress and advice of their own, where what they made is verified afterwards."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

# The root logger too: onnxruntime's quantiser has none of its own.
_LOGGERS = ("", "torch", "torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir", "torch.export")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log lines, warnings or prints of exporters, simplifiers and quantisers inside; errors are raised as ever."""
    loggers = [logging.getLogger(name or None) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    # Without any handler logging.warning() would give the root logger one for good, which prints from then on.
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

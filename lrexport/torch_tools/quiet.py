"""Silence libraries that print progress and advice, when their result is verified afterwards."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

# Includes the root logger, which onnxruntime's quantiser uses.
_LOGGERS = ("", "torch", "torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir", "torch.export")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside the block, exporters, simplifiers and quantisers print, log and warn nothing; errors are still raised."""
    loggers = [logging.getLogger(name or None) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    # Without a handler, logging.warning() would permanently give the root logger one that prints.
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

"""optuna and filelock, needed for sweeps only."""

from __future__ import annotations

import warnings
from types import ModuleType

from lrexport.errors import DeviceError


def need_optuna() -> ModuleType:
    """optuna with its log silenced: lrexport reports progress. Raises DeviceError if the extra is not installed."""
    try:
        import filelock  # noqa: F401
        import optuna
    except ImportError as error:
        raise DeviceError(f"lrexport sweep needs {error.name}", "Install it with: pip install 'lrexport[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna

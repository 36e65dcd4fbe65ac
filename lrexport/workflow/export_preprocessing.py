"""The preprocessing that the files of an export state or do: the run's, else the data's, else the network's own."""

from __future__ import annotations

from pathlib import Path

from lrexport.artifacts.run_files import RECORD
from lrexport.data.images import ImageData
from lrexport.networks.building import from_record
from lrexport.networks.names import is_import_path
from lrexport.preprocessing import Preprocessing
from lrexport.runs.record import Record


def preprocessing_of(run: Path, record: Record, data: ImageData | None) -> Preprocessing | None:
    """None for a network that takes no picture, and where nobody says how pictures become its input."""
    signature = record.model.signature
    if not signature.takes_images:
        return None
    stored = record.data.preprocessing if record.data is not None else None
    if stored is not None:
        return stored.value
    about = record.data or data
    if about is not None:  # of a run that an older version made
        return Preprocessing.of(signature.shape, {}, data={"mean": about.mean, "std": about.std})
    if is_import_path(record.model.source):
        return None
    said = from_record(record.model, run / RECORD).preprocessing
    return Preprocessing.of(signature.shape, {}, given=said) if said else None

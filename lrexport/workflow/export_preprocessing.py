"""The preprocessing that the files of an export state or do: the run's, else the data's, else the network's own."""

from __future__ import annotations

from pathlib import Path

from lrexport.data.images import ImageData
from lrexport.networks.building import from_record
from lrexport.networks.names import is_import_path
from lrexport.preprocessing import Preprocessing
from lrexport.runs.record import Record


def preprocessing_of(recorded_in: Path, record: Record, data: ImageData | None) -> Preprocessing | None:
    """For the run of the record in the file ``recorded_in``; ``data`` is what the export loaded.

    None for a network that takes no picture, and where nobody says how pictures become its input.
    """
    signature = record.model.signature
    if not signature.takes_images:
        return None
    stored = record.data.preprocessing if record.data is not None else None
    if stored is not None:
        return stored.value
    if data is not None and data.preprocessing is not None:
        return data.preprocessing
    if record.data is not None and record.data.mean:  # of a run that an older version made
        return Preprocessing.of(signature.shape, {}, data={"mean": record.data.mean, "std": record.data.std})
    if is_import_path(record.model.source):
        return None
    said = from_record(record.model, recorded_in).preprocessing
    return Preprocessing.of(signature.shape, {}, given=said) if said else None

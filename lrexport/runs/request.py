"""What one ``compress`` or ``train`` is asked for, from the command to the last stage: made once, changed by nobody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lrexport.config.comparison import SETTLED, SVD_FORM, SVD_TRAINING
from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.events import OnEvent

Config = TypeVar("Config", bound=CompressConfig | TrainConfig)


@dataclass(frozen=True)
class RunRequest(Generic[Config]):
    """``config`` says what to make, in the folder ``run``; ``on_event`` watches.

    ``source`` is the run to start from, None: the model of the configuration. With ``resume`` an interrupted run is resumed
    as long as it was asked for the same, with ``allow_changes`` whatever is asked for, as far as that is possible; one that
    is finished is left as it is, but for ``source`` itself, which is compressed again.
    """

    config: Config
    run: Path
    on_event: OnEvent
    source: Path | None = None
    resume: bool = False
    allow_changes: bool = False

    @property
    def command(self) -> str:
        """The command that makes such a run."""
        return "compress" if isinstance(self.config, CompressConfig) else "train"

    @property
    def train(self) -> TrainConfig:
        """The part of the configuration that training is about."""
        return self.config.train if isinstance(self.config, CompressConfig) else self.config

    @property
    def in_place(self) -> bool:
        """Whether the run starts from what its own folder holds."""
        return self.source is not None and self.run.resolve() == self.source.resolve()

    @property
    def chosen_again(self) -> tuple[str, ...]:
        """Of the options that a dense ``source`` has settled those that are this request's: its SVD training comes now."""
        return SVD_FORM if isinstance(self.config, CompressConfig) else SVD_TRAINING

    @property
    def of_source(self) -> tuple[str, ...]:
        """Options that a finished run has from its ``source``, whatever this request says."""
        if self.source is None:
            return ()
        given = () if isinstance(self.config, CompressConfig) else SVD_TRAINING
        return ("model", *(name for name in SETTLED if name not in given))

    def asked(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """All that decides what comes out, with the digests of what was read for it."""
        source = str(self.source) if self.source else None
        return {"command": self.command, "source": source, **self.config.to_record(), **digests}

"""The immutable request of one ``compress`` or ``train``, from the command to the last stage."""

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
    """The choices ``config``, the folder ``run``, and ``on_event``, which receives events.

    ``source`` is the run to start from, None: the model in ``config``. With ``resume`` an interrupted run is continued if
    its choices are the same, with ``allow_changes`` also with other choices if possible. A finished run is not changed,
    except that ``source`` itself is compressed again.
    """

    config: Config
    run: Path
    on_event: OnEvent
    source: Path | None = None
    resume: bool = False
    allow_changes: bool = False

    @property
    def command(self) -> str:
        """The name of the command."""
        return "compress" if isinstance(self.config, CompressConfig) else "train"

    @property
    def train(self) -> TrainConfig:
        """The training part of the configuration."""
        return self.config.train if isinstance(self.config, CompressConfig) else self.config

    @property
    def in_place(self) -> bool:
        """Whether the run starts from the run in its own folder."""
        return self.source is not None and self.run.resolve() == self.source.resolve()

    @property
    def chosen_again(self) -> tuple[str, ...]:
        """Options that this request decides if ``source`` has only dense training, because SVD training comes now."""
        return SVD_FORM if isinstance(self.config, CompressConfig) else SVD_TRAINING

    @property
    def of_source(self) -> tuple[str, ...]:
        """Options that a finished run takes from its ``source``, not from this request."""
        if self.source is None:
            return ()
        given = () if isinstance(self.config, CompressConfig) else SVD_TRAINING
        return ("model", *(name for name in SETTLED if name not in given))

    def asked(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """Everything that decides the result, with the digests of the files that were read."""
        source = str(self.source) if self.source else None
        return {"command": self.command, "source": source, **self.config.to_record(), **digests}

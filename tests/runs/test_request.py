"""A request: what it says of the run that it is about, and that nobody changes it under way."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.goals import Macs
from lrexport.events import ignore_events
from lrexport.runs.open import OpenRun, Trained
from lrexport.runs.request import RunRequest
from lrexport.runs.starting_point import Start
from lrexport.workflow.stages import Compressed

_TRAIN = TrainConfig("resnet20", data="digits")
_COMPRESS = CompressConfig(train=_TRAIN, goal=Macs(0.5))


@pytest.mark.parametrize("made", [RunRequest, OpenRun, Start, Trained, Compressed])
def test_what_flows_through_the_stages_is_frozen(made: Any) -> None:
    assert is_dataclass(made)
    assert made.__dataclass_params__.frozen  # type: ignore[attr-defined]  # typeshed does not know it


def test_a_request_cannot_be_changed() -> None:
    request = RunRequest(_TRAIN, Path("run"), ignore_events)
    for each in fields(request):
        with pytest.raises(FrozenInstanceError):
            setattr(request, each.name, None)


@pytest.mark.parametrize(("config", "command"), [(_TRAIN, "train"), (_COMPRESS, "compress")])
def test_what_was_asked_is_the_command_the_source_every_option_and_what_was_read(config: Any, command: str) -> None:
    request = RunRequest(config, Path("run"), ignore_events, source=Path("before"))
    asked = request.asked({"plan_sha256": "ab"})
    assert asked == {"command": command, "source": "before", **config.to_record(), "plan_sha256": "ab"}
    assert request.train == _TRAIN


def test_a_run_is_compressed_in_place_however_its_folder_is_written(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert RunRequest(_COMPRESS, tmp_path / "run", ignore_events, tmp_path / "link").in_place
    assert not RunRequest(_COMPRESS, tmp_path / "other", ignore_events, tmp_path / "run").in_place
    assert not RunRequest(_COMPRESS, tmp_path / "run", ignore_events).in_place


def test_what_a_finished_run_has_from_its_source_is_not_asked_of_it_again() -> None:
    assert RunRequest(_COMPRESS, Path("run"), ignore_events).of_source == ()
    compressed = RunRequest(_COMPRESS, Path("run"), ignore_events, Path("dense"))
    assert {"model", "seed", "scheme", "svd_epochs"} <= {*compressed.of_source}
    trained = RunRequest(_TRAIN, Path("run"), ignore_events, Path("dense"))
    assert {*compressed.of_source} - {*trained.of_source} == {*trained.chosen_again}
    assert {*compressed.chosen_again} == {"scheme", "keep", "svd_form"}

"""A dense network that scores far below what it is known to reach: a warning that names the preprocessing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lrexport.data.datasets import load_data
from lrexport.data.images import hold_out
from lrexport.networks.torchvision_zoo import Published, published_of
from lrexport.runs.scores import Accuracy
from lrexport.signature import Signature
from lrexport.tasks.classification import CLASSIFICATION
from lrexport.workflow import expected_score
from lrexport.workflow.expected_score import warn_of_low_score


def warnings(published: Published | None, source: Path | None = None, dense_epochs: int = 0) -> list[str]:
    """For a network that guesses the ten digits."""
    events: list[Any] = []
    splits = hold_out(load_data("digits", Signature.of((1, 8, 8))), 0.2, seed=0)
    run: Any = SimpleNamespace(
        request=SimpleNamespace(source=source),
        recipe=SimpleNamespace(published=published),
        splits=splits,
        task=CLASSIFICATION,
        first=True,
        fabric=SimpleNamespace(device=torch.device("cpu")),
        on_event=events.append,
    )
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    trained: Any = SimpleNamespace(dense=dense, config=SimpleNamespace(dense_epochs=dense_epochs))
    warn_of_low_score(run, trained)
    return [event.text for event in events]


def test_published_weights_far_below_their_score_get_a_warning_with_the_preprocessing() -> None:
    (text,) = warnings(Published({"top-1": 0.9}, 10))
    assert "on the held-out images, its weights were published with 90.00 %: check the preprocessing, which is " in text
    assert "mean 0.5, std 0.5" in text
    assert "--mean, --std, --value-range" in text


@pytest.mark.parametrize(
    "published",
    [None, Published({"top-1": 0.02}, 10), Published({"top-1": 0.9}, 1000), Published({"mIoU": 0.9}, 10)],
    ids=["nothing published", "as low", "other classes", "another metric"],
)
def test_nothing_is_said_where_scores_cannot_be_compared(published: Published | None) -> None:
    assert warnings(published) == []
    assert warnings(Published({"top-1": 0.9}, 10), dense_epochs=3) == []


def test_a_run_that_reached_more_on_the_same_data_is_known_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dense = SimpleNamespace(heldout_accuracy=Accuracy(top1=0.8, top5=1.0, n=10, split="heldout"))
    for source, said in (("digits", 1), ("folder:elsewhere", 0)):
        record = SimpleNamespace(data=SimpleNamespace(source=source), results=SimpleNamespace(dense=dense))
        monkeypatch.setattr(expected_score, "load_record", lambda _, record=record: record)
        assert len(warnings(None, tmp_path)) == said


def test_published_weights_state_their_scores() -> None:
    published = published_of("resnet18", {"weights": "DEFAULT"})
    assert published is not None
    assert (published.classes, published.metrics["top-1"]) == (1000, pytest.approx(0.69758))
    segmentation = published_of("lraspp_mobilenet_v3_large", {"weights": "DEFAULT"})
    assert segmentation is not None
    assert segmentation.metrics["mIoU"] == pytest.approx(0.579)
    assert published_of("resnet18", {}) is None

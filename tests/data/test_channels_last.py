"""Pictures for networks that take them as (H, W, C)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lrexport.data.datasets import load_data
from lrexport.data.images import hold_out

CPU = torch.device("cpu")


def test_a_network_of_channels_last_gets_the_same_pictures_with_their_axes_in_its_order() -> None:
    planes, last = load_data("digits", (1, 8, 8)), load_data("digits", (8, 8, 1))
    (one, labels), (other, same_labels) = (next(iter(each.train.batches(5, CPU))) for each in (planes, last))
    assert last.train.signature.shape == (8, 8, 1)
    assert torch.equal(one.only.permute(0, 2, 3, 1), other.only)
    assert torch.equal(labels, same_labels)
    assert last.preprocessing == planes.preprocessing
    assert len(hold_out(last).heldout) == len(hold_out(planes).heldout)


def test_pictures_of_a_folder_are_cut_to_height_and_width_of_channels_last(tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(np.full((20, 40, 3), 50 * number, np.uint8)).save(tmp_path / f"{number}.png")
    data = load_data(f"images:{tmp_path}", (16, 24, 3))
    (batch, targets) = next(iter(data.train.batches(2, CPU)))
    assert batch.only.shape == (2, 16, 24, 3)
    assert targets is None
    assert data.preprocessing is not None
    assert data.preprocessing.size == (16, 24)

"""Seeding is what torch's own is."""

from __future__ import annotations

import torch

from lrexport.torch_tools.seeds import seed_torch


def test_what_is_drawn_after_a_seed_is_what_torchs_own_seeding_gives() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(5)
    seed_torch(7)
    assert torch.equal(torch.rand(5), wanted)
    assert torch.initial_seed() == 7

"""Random inputs that resemble recordings."""

from __future__ import annotations

import pytest
import torch

from lrexport.signature import Signature
from lrexport.torch_tools.smooth_noise import smooth_noise

ONE = torch.zeros(1)


@pytest.mark.parametrize("shape", [(3, 16, 24), (16, 24, 3), (40,), (2, 8, 9, 10), (3, 4), (), (9, 9, 9, 9)])
def test_noise_has_the_shape_of_the_input_and_is_the_same_for_a_seed(shape: tuple[int, ...]) -> None:
    signature = Signature.of({"x": shape, "y": (5,)})
    batch = smooth_noise(signature, 6, ONE)
    assert [tuple(tensor.shape) for tensor in batch.tensors] == [(6, *shape), (6, 5)]
    assert batch.names == ("x", "y")
    for one, two in zip(batch.tensors, smooth_noise(signature, 6, ONE).tensors, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(batch.tensors[1], smooth_noise(signature, 6, ONE, seed=1).tensors[1])


def test_neighbours_are_alike_along_space_and_channels_have_much_in_common() -> None:
    (pictures,) = smooth_noise(Signature.of((3, 32, 32)), 16, ONE).tensors
    assert pictures.std() == pytest.approx(1, abs=1e-3)
    for change in (pictures.diff(dim=-1), pictures.diff(dim=-2), pictures.diff(dim=1)):
        assert change.square().mean() < 0.7 * 2  # 2 for independent values
    (turned,) = smooth_noise(Signature.of((32, 32, 3)), 16, ONE).tensors
    assert turned.diff(dim=1).square().mean() < 0.7 * 2


def test_noise_keeps_to_a_range_and_to_the_type() -> None:
    signature = Signature.parse(["picture=3,8,8:float16:0..1", "tokens=9:int64:3..5"])
    picture, tokens = smooth_noise(signature, 20, ONE).tensors
    assert (picture.dtype, tokens.dtype) == (torch.float16, torch.int64)
    assert 0 <= picture.min() < 0.2
    assert 0.8 < picture.max() <= 1
    assert set(tokens.unique().tolist()) == {3, 4, 5}

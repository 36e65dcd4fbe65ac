"""Inputs as they are written on the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrexport.errors import UsageError
from lrexport.signature import DTYPES, InputSpec, Signature

NAMES = st.text("abcdefghijklmnopqrstuvwxyz_.0123456789", min_size=1, max_size=12)
RANGES = st.none() | st.tuples(st.integers(-(10**6), 10**6), st.integers(0, 10**6)).map(lambda r: (r[0], r[0] + r[1]))


@given(NAMES, st.lists(st.integers(1, 5000), max_size=5), st.none() | st.sampled_from(DTYPES), RANGES)
def test_an_input_reads_back_as_it_is_written(
    name: str, shape: list[int], dtype: str | None, limits: tuple[int, int] | None
) -> None:
    low, high = limits or (None, None)
    spec = InputSpec(name, tuple(shape), dtype, low, high)
    assert InputSpec.parse(str(spec)) == spec


def test_the_parts_of_an_input() -> None:
    assert InputSpec.parse("image=3,224,224") == InputSpec("image", (3, 224, 224))
    assert InputSpec.parse("16:int64:0..100") == InputSpec("input", (16,), "int64", 0, 100)
    assert InputSpec.parse("x=8::-1..0.5") == InputSpec("x", (8,), None, -1, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image=", "invalid input"),
        ("image", "invalid input"),
        ("image=3,0,4", "expected sizes above 0"),
        ("image=3:int63", "invalid dtype 'int63'"),
        ("image=3:int64:5", "invalid range '5'"),
        ("image=3:int64:5..2", "LOW at most HIGH"),
        ("image=3:int64:0..1e999", "invalid range"),
        ("a=b=3", "invalid input name"),
        ("a=3:int64:0..1:more", "invalid input"),
    ],
)
def test_what_is_not_an_input_is_an_error_with_an_example(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        InputSpec.parse(text)
    assert "image=3,224,224" in str(caught.value.hint)


def test_several_inputs_need_names_of_their_own() -> None:
    with pytest.raises(UsageError, match="two inputs of the name 'input'"):
        Signature.parse(["3,4,4", "2"])

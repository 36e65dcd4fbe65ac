"""What a measurement feeds: sizes for what files leave open, values that no network stumbles over."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrexport.measure.inputs import Inputs, InputsError


class Declared(NamedTuple):
    """An input as ONNX Runtime declares it."""

    name: str
    shape: list[Any]
    type: str = "tensor(float)"


def feed(*declared: Declared, batch: int = 0, shapes: Any = None, values: Any = None) -> tuple[Any, Any, int]:
    return Inputs(values or {}, shapes or {}, batch, 0).feed(declared)


@pytest.mark.parametrize(
    ("declared", "batch", "shapes", "batch_found"),
    [
        ([Declared("x", [1, 3, 8, 8])], 0, [(1, 3, 8, 8)], 1),
        ([Declared("x", [4, 3])], 4, [(4, 3)], 4),
        ([Declared("x", ["N", 3])], 0, [(1, 3)], 1),
        ([Declared("x", [None, 3]), Declared("y", [None, 2])], 5, [(5, 3), (5, 2)], 5),
        ([Declared("x", ["batch", 3]), Declared("state", [2, "batch", 8])], 3, [(3, 3), (2, 3, 8)], 3),
        ([Declared("state", [2, "batch", 8]), Declared("x", ["batch", 3])], 3, [(2, 3, 8), (3, 3)], 3),
        ([Declared("state", [2, "batch_size", 8])], 6, [(2, 6, 8)], 6),
        ([Declared("rate", [], "tensor(int64)"), Declared("x", [7, 2])], 0, [(), (7, 2)], 7),
        ([Declared("rate", [])], 0, [()], 1),
        ([], 0, [], 1),
    ],
)
def test_the_batch_gets_one_size_wherever_it_stands(
    declared: list[Declared], batch: int, shapes: list[tuple[int, ...]], batch_found: int
) -> None:
    arrays, about, size = feed(*declared, batch=batch)
    assert [array.shape for array in arrays.values()] == shapes
    assert [tuple(fed["shape"]) for fed in about.values()] == shapes
    assert size == batch_found


def test_a_symbol_has_the_size_that_the_shape_of_another_input_gives_it() -> None:
    declared = [Declared("ids", ["batch", "length"], "tensor(int64)"), Declared("mask", ["batch", "length"], "tensor(bool)")]
    arrays, about, batch = feed(*declared, shapes={"ids": (2, 7)})
    assert (arrays["mask"].shape, batch) == ((2, 7), 2)
    assert about["mask"] == {"shape": [2, 7], "dtype": "bool", "values": "ones"}
    arrays, about, _ = feed(*declared, values={"mask": np.zeros((3, 5), bool)})
    assert arrays["ids"].shape == (3, 5)
    assert about["mask"]["values"] == "given"


def test_question_marks_are_sizes_without_a_name_of_which_no_two_need_be_alike() -> None:
    arrays, _, batch = feed(Declared("x", ["?", 3, "?", "?"]), shapes={"x": (2, 3, 48, 192)})
    assert (arrays["x"].shape, batch) == ((2, 3, 48, 192), 2)
    with pytest.raises(InputsError, match="without a name"):
        feed(Declared("x", ["?", 3, "?", "?"]))


def test_first_sizes_without_a_name_follow_the_shape_that_is_given_for_one_of_them() -> None:
    arrays, _, batch = feed(Declared("x", [None, 3]), Declared("y", [None, 2]), shapes={"y": (4, 2)})
    assert (arrays["x"].shape, batch) == ((4, 3), 4)


@given(
    st.sampled_from(
        ["float", "float16", "double", *("int8", "uint8", "int16", "uint16", "int32", "uint32"), "int64", "uint64", "bool"]
    ),
    st.lists(st.integers(0, 4), max_size=4),
)
def test_every_type_of_number_is_made_in_the_shape_that_is_declared(kind: str, shape: list[int]) -> None:
    arrays, about, _ = feed(Declared("x", shape, f"tensor({kind})"))
    assert arrays["x"].shape == tuple(shape)
    assert arrays["x"].dtype.name == about["x"]["dtype"] == {"float": "float32", "double": "float64"}.get(kind, kind)
    assert np.isfinite(arrays["x"].astype(float)).all()
    if kind in ("int32", "int64", "bool"):  # what Gather takes, and masks
        assert (arrays["x"] == 1).all()


@pytest.mark.parametrize(
    ("declared", "options", "words"),
    [
        ([Declared("x", ["N", 3, "H", None])], {}, "size 'H' of input 'x' with shape N,3,H,? is open: give all its sizes"),
        ([Declared("x", ["N", 3, None, "W"])], {}, "size without a name of input"),
        ([Declared("x", ["N", "L"])], {"shapes": {"x": (1, 2, 3)}}, "has shape N,L, but the given shape is 1,2,3"),
        ([Declared("x", ["N", 3])], {"shapes": {"x": (1, 4)}}, "has shape N,3, but the given shape is 1,4"),
        ([Declared("x", [1, 3])], {"values": {"x": np.ones((2, 3), "f4")}}, "has shape 1,3, but the given array is 2,3"),
        ([Declared("x", [1])], {"values": {"x": np.ones(1)}}, "is float32, but the given array is float64"),
        (
            [Declared("x", ["L"]), Declared("y", ["L"])],
            {"shapes": {"x": (1,), "y": (2,)}},
            "size 'L' is 1 in input 'x' and 2 in",
        ),
        ([Declared("x", ["N", 3])], {"shapes": {"x": (2, 3)}, "batch": 3}, "has a batch of 2, but the batch size is 3"),
        ([Declared("x", [1, 3])], {"batch": 3}, "has a fixed batch of 1, not 3"),
        ([Declared("x", [1], "tensor(string)")], {}, "is text: give its values"),
    ],
)
def test_what_does_not_fit_a_file_is_said_with_what_would(declared: list[Declared], options: Any, words: str) -> None:
    with pytest.raises(InputsError) as caught:
        feed(*declared, **options)
    assert words in str(caught.value)


def test_an_input_that_is_not_a_tensor_is_not_a_matter_of_options() -> None:
    with pytest.raises(ValueError, match=r"'x' is seq\(tensor\(float\)\): expected a tensor") as caught:
        feed(Declared("x", [], "seq(tensor(float))"))
    assert not isinstance(caught.value, InputsError)


def test_an_input_whose_rank_the_file_leaves_open_takes_any_shape() -> None:
    assert feed(Declared("x", []), shapes={"x": (2, 3)})[0]["x"].shape == (2, 3)


def test_text_is_fed_as_it_is_given() -> None:
    arrays, about, _ = feed(Declared("words", ["N"], "tensor(string)"), values={"words": np.array(["a", "bc"])})
    assert arrays["words"].tolist() == ["a", "bc"]
    assert about["words"] == {"shape": [2], "dtype": "string", "values": "given"}


def test_names_that_no_file_has_are_known_once_all_were_fed() -> None:
    inputs = Inputs({"y": np.ones(1, "f4")}, {"x": (1,), "z": (1,)}, 0, 0)
    inputs.feed([Declared("x", [1])])
    assert inputs.unused() == ["y", "z"]
    inputs.feed([Declared("y", [1])])
    assert inputs.unused() == ["z"]

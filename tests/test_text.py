"""Names made safe to print."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrexport.text import markdown, number_of, plain, plain_lines


@settings(deadline=None)
@given(st.text())
def test_a_plain_name_is_one_printable_line_and_no_command_of_a_ci_log(text: str) -> None:
    found = plain(text)
    assert found.isprintable()
    assert "::" not in found
    assert "##[" not in found


@settings(deadline=None)
@given(st.text(alphabet=st.characters(categories=["L", "N", "Zs"], max_codepoint=0x7F)))
def test_an_ordinary_name_stays_as_it_is(text: str) -> None:
    assert plain(text) == text
    assert plain("layer1.0.conv1-x_2/y") == "layer1.0.conv1-x_2/y"


def test_what_cannot_be_seen_is_shown_by_its_code() -> None:
    assert plain("a\n::error::b\x1b[31m\u202e\udc80\U000e0001") == r"a\x0a:\x3aerror:\x3ab\x1b[31m\u202e\udc80\U000e0001"
    assert plain_lines("one\n  ::two\r::x##[y") == "one\n  :\\x3atwo\\x0d::x#\\x23[y"


@settings(deadline=None)
@given(st.text())
def test_no_line_of_a_message_begins_with_a_command_of_a_ci_log_or_holds_one(text: str) -> None:
    found = plain_lines(text)
    assert found.count("\n") == text.count("\n")
    assert not any(line.strip().startswith("::") or "##[" in line for line in found.split("\n"))
    assert plain_lines("operator torchvision::nms") == "operator torchvision::nms"


@settings(deadline=None)
@given(st.text())
def test_no_sign_that_markdown_or_html_know_is_left_in_markdown(text: str) -> None:
    bare = re.sub(r"&#\d+;|<!-- -->", "", markdown(text))
    assert not re.search(r"[\\`*_\[\]<>#!|~@:$&\n]|www\.", bare, re.IGNORECASE)


def test_markdown_shows_the_name_once_rendered() -> None:
    import html

    name = "a|b `c` <img src=x> @me #1 **x** [l](http://e) $x$ & www.e.com"
    assert html.unescape(markdown(name)).replace("<!-- -->", "") == name.replace("::", "")


@pytest.mark.parametrize(("number", "shown"), [(0, "0 layers"), (1, "1 layer"), (2, "2 layers")])
def test_a_number_of_things_is_in_the_plural_unless_it_is_one(number: int, shown: str) -> None:
    assert number_of(number, "layer") == shown

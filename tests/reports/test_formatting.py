"""Numbers read well, and a stranger's text cannot act."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import formatting
from reports.formatting import ABSENT, visible

NUMBER_FORMATS = [
    formatting.percent,
    formatting.percentage,
    formatting.compact_count,
    formatting.round_count,
    formatting.exact_count,
    formatting.byte_size,
    formatting.duration,
    formatting.decimal,
    formatting.round_decimal,
    formatting.learning_rate,
    formatting.ratio,
]


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (formatting.percent, 0.9984, "99.8 %"),
        (formatting.percent, 1.0, "100.0 %"),
        (formatting.percent, 0.99996, ">99.9 %"),
        (formatting.percent, 0.00001, "<0.1 %"),
        (formatting.percent, 0.0, "0.0 %"),
        (formatting.compact_count, 12_345, "12.3k"),
        (formatting.compact_count, 999.7, "1.00k"),
        (formatting.compact_count, 999_999, "1.00M"),
        (formatting.compact_count, 42, "42"),
        (formatting.compact_count, 0.5, "0.5"),
        (formatting.round_count, 1000, "1k"),
        (formatting.round_count, 2_500_000, "2.5M"),
        (formatting.exact_count, 12_345, "12,345"),
        (formatting.byte_size, 4_404_019, "4.2 MiB"),
        (formatting.byte_size, 512, "512 B"),
        (formatting.byte_size, 1024, "1 KiB"),
        (formatting.duration, 0.00321, "3.21 ms"),
        (formatting.duration, 2.5e-6, "2.50 µs"),
        (formatting.duration, 12.34, "12.3 s"),
        (formatting.duration, 0.9999, "1.00 s"),
        (formatting.duration, 125, "2 min 5 s"),
        (formatting.duration, 7_320, "2 h 2 min"),
        (formatting.decimal, 1.3624, "1.362"),
        (formatting.ratio, 1.2345, "1.23×"),
        (formatting.ratio, 1024, "1,024×"),
        (formatting.learning_rate, 0.003, "0.003"),
    ],
)
def test_numbers_read_well(write: Callable[[float | None], str], value: float, expected: str) -> None:
    assert write(value) == expected


@pytest.mark.parametrize("write", NUMBER_FORMATS)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_absent(write: Callable[[float | None], str], value: float | None) -> None:
    assert write(value) == ABSENT


@given(st.floats(1e-12, 1e15), st.sampled_from(NUMBER_FORMATS))
def test_no_number_is_written_with_an_exponent_too_long_to_read(
    value: float, write: Callable[[float | None], str]
) -> None:
    assert 0 < len(write(value)) <= 25


@given(st.text())
def test_visible_text_is_one_line_of_characters_that_can_be_seen(text: str) -> None:
    shown = visible(text)
    assert not [character for character in shown if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_terminal_escapes_and_direction_overrides_are_spelled_out() -> None:
    assert visible("\x1b[31mred") == "\\u{1b}[31mred"
    assert visible("a\u202eb") == "a\\u{202e}b"
    assert visible("two\nlines\tand a tab") == "two lines and a tab"


def test_names_are_listed_and_long_lists_are_cut() -> None:
    assert formatting.listed([]) == ""
    assert formatting.listed(["a"]) == "a"
    assert formatting.listed(["a", "b", "c"]) == "a, b and c"
    assert formatting.listed(["a", "b", "c"], at_most=2) == "a, b and 1 more"

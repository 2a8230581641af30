"""Dims are polynomials: their arithmetic is that of integers, and their text is theirs alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_passes.inference.dims import Dim, Size, at_least, divide, evaluate, parse, product, symbol, symbols

NAMES = ["batch_size", "sequence_length", "past_sequence_length", "a", "Max(1, s0)", "x`y"]
LENGTHS = st.fixed_dictionaries({name: st.integers(1, 9) for name in NAMES})


def polynomials(depth: int = 3) -> st.SearchStrategy[Size]:
    leaves = st.one_of(st.integers(-5, 5), st.sampled_from(NAMES).map(symbol))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] - p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] * p[1]),
        ),
        max_leaves=depth * 2,
    )


@given(polynomials(), polynomials(), LENGTHS)
def test_arithmetic_is_that_of_the_numbers_that_dims_stand_for(
    a: Size, b: Size, lengths: dict[str, int]
) -> None:
    x, y = evaluate(a, lengths), evaluate(b, lengths)
    assert evaluate(a + b, lengths) == x + y
    assert evaluate(a - b, lengths) == x - y
    assert evaluate(a * b, lengths) == x * y
    if at_least(a, b):
        assert x >= y


@given(polynomials(), polynomials())
def test_the_text_is_read_back_and_tells_dims_apart(a: Size, b: Size) -> None:
    assert parse(str(a)) == a
    assert (str(a) == str(b)) == (a == b)
    assert a != b or hash(a) == hash(b)


@given(polynomials(), polynomials(), LENGTHS)
def test_division_is_exact_or_refused(a: Size, b: Size, lengths: dict[str, int]) -> None:
    if b != 0:
        assert divide(a * b, b) == a
    found = divide(a, b)
    if found is not None:
        assert found * b == a
        assert b == 0 or evaluate(b, lengths) == 0 or evaluate(a, lengths) % evaluate(b, lengths) == 0


def test_sums_that_cancel_are_numbers() -> None:
    s, p = symbol("sequence_length"), symbol("past_sequence_length")
    assert s + p - s - p == 0
    assert isinstance(s - s + 3, int)
    assert isinstance(s + p, Dim)
    assert str(p + s) == "past_sequence_length + sequence_length" == str(s + p)
    assert product([2, s, 3]) == 6 * s
    assert symbols(s * p + 1) == {"sequence_length", "past_sequence_length"}


@pytest.mark.parametrize(
    ("a", "b", "certain"),
    [
        ("sequence_length", "1", True),
        ("past_sequence_length", "1", False),
        ("past_sequence_length", "0", True),
        ("past_sequence_length + sequence_length", "sequence_length", True),
        ("past_sequence_length + sequence_length", "past_sequence_length + 1", True),
        ("batch_size*sequence_length", "1", True),
        ("batch_size", "sequence_length", False),
        ("-1", "-sequence_length", True),
    ],
)
def test_what_is_certain_of_every_length(a: str, b: str, certain: bool) -> None:
    assert at_least(parse(a), parse(b)) is certain


@pytest.mark.parametrize("text", ["floor(a/2)", "a**2", "a +", "+ a", "1 2", "a b"])
def test_other_text_is_one_symbol(text: str) -> None:
    assert parse(text) == symbol(text)
    assert parse(str(parse(text))) == symbol(text)


def test_a_product_that_wastes_memory_is_refused() -> None:
    size: Size = symbol("a") + symbol("b")
    with pytest.raises(ValueError, match="too often"):
        for _ in range(40):
            size = size * size

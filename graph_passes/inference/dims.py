"""Lengths that are known by name: polynomials with integer coefficients over symbols, exact.

A dim is a plain ``int`` where it is a number, and a `Dim` where it is not: ``past_sequence_length +
sequence_length``, ``3*batch_size``. Symbols stand for lengths: none is negative, those of `POSITIVE` are at
least 1, and all are small enough for every integer type. The printed text of a dim is unique, so two `onnx_ir`
dims are equal exactly if their texts are; `parse` reads it back.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

Monomial = tuple[str, ...]
"""Names of the symbols that are multiplied, sorted; the constant term has none."""


BATCH, SEQUENCE, PAST = "batch_size", "sequence_length", "past_sequence_length"
"""The symbols of a decoder's graph: rows, tokens of the call, tokens in the cache before it."""

POSITIVE = frozenset([BATCH, SEQUENCE])
"""Symbols that are never 0."""


LARGEST = 4096
"""Terms times degree that a product may have: a graph that somebody made to waste memory has more."""


class Dim:
    """A polynomial that is no number. Immutable; sums, differences and products of dims are dims or ints.

    Raises:
        ValueError: for a product of more than `LARGEST`.
    """

    __slots__ = ("_hash", "_text", "terms")

    terms: tuple[tuple[Monomial, int], ...]
    """Coefficients by monomial, in graded lexicographic order, the constant last. None is zero."""

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)
        self._text = ""

    def __add__(self, other: Size) -> Size:
        return _combined(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Size) -> Size:
        return _combined(self, other, -1)

    def __rsub__(self, other: Size) -> Size:
        return _combined(-self, other, 1)

    def __neg__(self) -> Dim:
        return Dim(tuple((monomial, -coefficient) for monomial, coefficient in self.terms))

    def __mul__(self, other: Size) -> Size:
        found: dict[Monomial, int] = {}
        others = _terms(other)
        if others and len(self.terms) * len(others) * len(self.terms[0][0] + others[0][0]) > LARGEST:
            raise ValueError(f"{str(self)[:80]} is multiplied too often to be a length")
        for a, x in self.terms:
            for b, y in others:
                monomial = tuple(sorted(a + b))
                found[monomial] = found.get(monomial, 0) + x * y
        return _dim(found)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        if not self._text:
            first, *rest = (_print(monomial, coefficient) for monomial, coefficient in self.terms)
            signed = [f" - {term[1:]}" if term.startswith("-") else f" + {term}" for term in rest]
            self._text = "".join([first, *signed])
        return self._text

    def __repr__(self) -> str:
        return f"Dim({str(self)!r})"


Size = int | Dim


def symbol(name: str) -> Dim:
    """A length that is known by its name only."""
    return Dim((((name,), 1),))


def divide(a: Size, b: Size) -> Size | None:
    """The quotient of two dims where nothing is left over for any values of the symbols, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    divisor = _terms(b)
    if not divisor:
        return None
    lead, scale = divisor[0]
    rest, quotient = dict(_terms(a)), dict[Monomial, int]()
    while rest:
        monomial = min(rest, key=_order)
        factor = _without(monomial, lead)
        if factor is None or rest[monomial] % scale:
            return None
        quotient[factor] = rest[monomial] // scale
        for other, coefficient in divisor:
            product = tuple(sorted(other + factor))
            rest[product] = rest.get(product, 0) - coefficient * quotient[factor]
            if not rest[product]:
                del rest[product]
    return _dim(quotient)


def at_least(a: Size, b: Size) -> bool:
    """Whether ``a ≥ b`` for certain: for every length that the symbols may stand for."""
    difference = a - b
    if isinstance(difference, int) or all(coefficient >= 0 for _, coefficient in difference.terms):
        return isinstance(difference, Dim) or difference >= 0
    return all(coefficient >= 0 for _, coefficient in _terms(_above_one(difference)))


def _above_one(size: Dim) -> Size:
    """The polynomial in what each symbol of `POSITIVE` exceeds 1 by."""
    total: Size = 0
    for monomial, coefficient in size.terms:
        total = total + coefficient * product(symbol(name) + (name in POSITIVE) for name in monomial)
    return total


def product(sizes: Iterable[Size]) -> Size:
    """The product of dims; 1 of none."""
    result: Size = 1
    for size in sizes:
        result = result * size
    return result


def symbols(size: Size) -> frozenset[str]:
    """Names of the symbols in a dim."""
    return frozenset(name for monomial, _ in _terms(size) for name in monomial)


def evaluate(size: Size, lengths: Mapping[str, int]) -> int:
    """The number that a dim is where its symbols have the given lengths.

    Raises:
        KeyError: a symbol has none.
    """
    total = 0
    for monomial, coefficient in _terms(size):
        for name in monomial:
            coefficient *= lengths[name]
        total += coefficient
    return total


@functools.lru_cache(maxsize=1 << 14)
def parse(text: str) -> Size:
    """Read a dim: what `str` prints, in any order and spacing. Other text is the name of one symbol."""
    found: dict[Monomial, int] = {}
    at = 0
    while at < len(text):
        term = _TERM.match(text, at)
        if term is None or ((at > 0) != bool(term[1]) and not (at == 0 and term[1] == "-")):
            return symbol(text)
        monomial, coefficient = [], -1 if term[1] == "-" else 1
        for number, quoted, name in _FACTOR.findall(term[2]):
            if number:
                coefficient *= int(number)
            else:
                monomial.append(quoted.replace("``", "`") or name)
        key = tuple(sorted(monomial))
        found[key] = found.get(key, 0) + coefficient
        at = term.end()
    return _dim(found)


_NAME = r"[^\W\d][^\s`*+-]*"
_ATOM = rf"(?:\d+|`(?:[^`]|``)+`|{_NAME})"
_TERM = re.compile(rf"\s*([+-]?)\s*({_ATOM}(?:\s*\*\s*{_ATOM})*)\s*(?=[+-]|$)")
_FACTOR = re.compile(rf"(\d+)|`((?:[^`]|``)+)`|({_NAME})")
_PLAIN = re.compile(_NAME)


def _print(monomial: Monomial, coefficient: int) -> str:
    names = [name if _PLAIN.fullmatch(name) else "`" + name.replace("`", "``") + "`" for name in monomial]
    if not names:
        return str(coefficient)
    sign = {1: "", -1: "-"}.get(coefficient, f"{coefficient}*")
    return sign + "*".join(names)


def _terms(size: Size) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(size, Dim):
        return size.terms
    return (((), size),) if size else ()


def _order(monomial: Monomial) -> tuple[int, Monomial]:
    """Graded lexicographic: the leading monomial first. Products keep the order, as division needs."""
    return -len(monomial), monomial


def _dim(coefficients: dict[Monomial, int]) -> Size:
    kept = [(monomial, value) for monomial, value in coefficients.items() if value]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    kept.sort(key=lambda term: _order(term[0]))
    return Dim(tuple(kept))


def _combined(a: Dim, b: Size, sign: int) -> Size:
    found = dict(a.terms)
    for monomial, coefficient in _terms(b):
        found[monomial] = found.get(monomial, 0) + sign * coefficient
    return _dim(found)


def _without(monomial: Monomial, part: Monomial) -> Monomial | None:
    """The monomial divided by another one; None where that does not divide it."""
    left = list(monomial)
    for name in part:
        if name not in left:
            return None
        left.remove(name)
    return tuple(left)

"""Expressions that a rule is written in: operators on values whose dims have names.

A term is a picture of a piece of graph. The same picture is matched against a graph (`matcher`), and turned
into nodes (`emit`), so both sides of a rule can be run.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias
from typing import Literal as Choice

import numpy as np

Number: TypeAlias = float | int | bool
Kind: TypeAlias = Choice["value", "constant", "attribute"]


class Term:
    """A value. Arithmetic on terms makes terms; identity is equality: a term used twice is one value."""

    def __add__(self, other: Operand) -> Term:
        return Apply("Add", (self, lift(other)))

    def __radd__(self, other: Operand) -> Term:
        return Apply("Add", (lift(other), self))

    def __sub__(self, other: Operand) -> Term:
        return Apply("Sub", (self, lift(other)))

    def __rsub__(self, other: Operand) -> Term:
        return Apply("Sub", (lift(other), self))

    def __mul__(self, other: Operand) -> Term:
        return Apply("Mul", (self, lift(other)))

    def __rmul__(self, other: Operand) -> Term:
        return Apply("Mul", (lift(other), self))

    def __truediv__(self, other: Operand) -> Term:
        return Apply("Div", (self, lift(other)))

    def __rtruediv__(self, other: Operand) -> Term:
        return Apply("Div", (lift(other), self))

    def __matmul__(self, other: Term) -> Term:
        return Apply("MatMul", (self, other))

    def __neg__(self) -> Term:
        return Apply("Neg", (self,))

    def __abs__(self) -> Term:
        return Apply("Abs", (self,))

    # While a rule is read its constants and attributes have no value yet: conditions on them hold, numbers are 1.

    def __lt__(self, other: Any) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __lt__


Operand: TypeAlias = Term | Number | list[int]


@dataclasses.dataclass(frozen=True, eq=False)
class Variable(Term):
    """What a rule is about: a value of the graph with its element type and dims, a constant, or an attribute."""

    name: str
    dims: str = ""
    kind: Kind = "value"
    element: str = "float"
    optional: bool = False

    def __float__(self) -> float:
        return 1.0

    def __iter__(self) -> Iterator[Any]:
        return iter(())


@dataclasses.dataclass(frozen=True, eq=False)
class Literal(Term):
    """A constant written into the rule."""

    value: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Apply(Term):
    """A node; as a value, its first output. An input may be None (left out)."""

    op_type: str
    inputs: tuple[Term | None, ...]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    domain: str = ""
    outputs: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Output(Term):
    """A further output of a node."""

    of: Apply
    index: int


@dataclasses.dataclass(frozen=True, eq=False)
class Reshaped(Term):
    """The same elements in another shape: Reshape, Unsqueeze, Squeeze or Flatten."""

    input: Term
    dims: str


@dataclasses.dataclass(frozen=True, eq=False)
class Expanded(Term):
    """Broadcast to a shape."""

    input: Term
    dims: str


@dataclasses.dataclass(frozen=True, eq=False)
class Sliced(Term):
    """Part of an axis, from start (included) to end (excluded). Bounds are numbers or dims; None is the end."""

    input: Term
    axis: int
    start: int | str
    end: int | str | None
    step: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Either(Term):
    """One of several spellings. Only in what a rule looks for."""

    options: tuple[Term, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Shared(Term):
    """A value that others may use as well: it is computed once for many and stays where others need it."""

    input: Term


def lift(operand: Operand | None) -> Term:
    """A number or a list of integers as a term: numbers take the type of what they meet."""
    if isinstance(operand, Term):
        return operand
    if isinstance(operand, list):
        return Literal(np.array(operand, np.int64))
    if isinstance(operand, bool | int | float):
        return Literal(np.array(operand))
    raise TypeError(f"{operand!r} is neither a term, a number nor a list of integers")


def within(term: Term) -> Iterator[Term]:
    """A term and all that it is made of, in every spelling."""
    yield term
    match term:
        case Apply():
            for i in term.inputs:
                if i is not None:
                    yield from within(i)
        case Output():
            yield from within(term.of)
        case Reshaped() | Expanded() | Sliced() | Shared():
            yield from within(term.input)
        case Either():
            for option in term.options:
                yield from within(option)


# Dims -------------------------------------------------------------------------------------------------------

Dim: TypeAlias = int | str
"""A dim of a graph: a number, or the text of a symbolic one."""


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Which dims the names of a rule stand for. A name with a star stands for any number of dims."""

    named: Mapping[str, Dim | tuple[Dim, ...]]

    def dim(self, text: str) -> Dim:
        """The dim that ``H``, ``64``, ``H*D`` or ``D/2`` stands for.

        Raises:
            KeyError: for a name not bound yet. ValueError: for arithmetic on a dim that is no number.
        """
        if text.isdigit():
            return int(text)
        if text.isidentifier():
            found = self.named[text]
            assert not isinstance(found, tuple)
            return found
        left, operator, right = re.split(r"([*/])", text, maxsplit=1)
        a, b = self.dim(left), self.dim(right)
        if not isinstance(a, int) or not isinstance(b, int):
            raise ValueError(f"{text} of dims {a} and {b}")
        if operator == "*":
            return a * b
        if a % b:
            raise ValueError(f"{a} is no multiple of {b}")
        return a // b

    def resolve(self, dims: str) -> tuple[Dim, ...]:
        """The shape that ``*B H S D`` stands for."""
        parts: list[tuple[Dim, ...]] = []
        for token in dims.split():
            found = self.named[token] if token.startswith("*") else (self.dim(token),)
            parts.append(found if isinstance(found, tuple) else (found,))
        return tuple(itertools.chain.from_iterable(parts))


class Op:
    """Makes nodes: ``op.Softmax(x, axis=-1)``. What has a shape or part of one has a method of its own.

    Args:
        shapes: what dims are known; None while a rule is being read.
    """

    def __init__(self, shapes: Shapes | None = None) -> None:
        self._shapes = shapes

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def make(*inputs: Operand | None, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
            terms = tuple(None if i is None else lift(i) for i in inputs)
            node = Apply(op_type, terms, attributes, domain, outputs)
            return node if outputs == 1 else (node, *(Output(node, i) for i in range(1, outputs)))

        return make

    def Reshape(self, x: Term, dims: str) -> Term:
        return Reshaped(x, dims)

    def Expand(self, x: Term, dims: str) -> Term:
        return Expanded(x, dims)

    def Slice(self, x: Term, start: int | str, end: int | str | None, axis: int = -1, step: int = 1) -> Term:
        return Sliced(x, axis, start, end, step)

    def either(self, *options: Term) -> Term:
        return Either(options)

    def shared(self, x: Term) -> Term:
        return Shared(x)

    def dim(self, text: str) -> Any:
        """The number that a dim stands for. While a rule is read there is none: 1 stands in."""
        return 1 if self._shapes is None else self._shapes.dim(text)

    def require(self, condition: bool, what: str) -> None:
        """A condition beyond the shape of the graph. It is asked once a match is known.

        Raises:
            Refused: where it does not hold.
        """
        if self._shapes is not None and not condition:
            raise Refused(what)


class Refused(Exception):  # noqa: N818 (it is an answer, not a defect)
    """A match that a rule does not take, and why."""

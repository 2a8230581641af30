"""A rewrite rule is an equation: what it looks for, and what that equals.

    @rule
    def rms_norm(op, x: "*B D", γ: "D", ε: "constant"):
        \"\"\"x · (mean(x²) + ε)^-½ · γ  ⇒  RMSNormalization(x, γ; ε)\"\"\"
        yield x * op.Reciprocal(op.Sqrt(op.ReduceMean(x * x, [-1]) + ε)) * γ
        return op.RMSNormalization(x, γ, epsilon=ε, axis=-1)

Every ``yield`` is one spelling of the left side; ``return`` gives the right. A side with several outputs is a
tuple, the most downstream first. The function is run once to read the left sides, and once for every match
with numbers in place of its constants, so its right side may compute with them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Literal, TypeAlias, overload

from graph_passes.engine.terms import (
    Apply,
    Either,
    Expanded,
    Op,
    Output,
    Reshaped,
    Shapes,
    Shared,
    Sliced,
    Term,
    Variable,
    within,
)

Side: TypeAlias = tuple[Term, ...]
Equation: TypeAlias = Generator[Term | Side, None, Term | Side]

RESHAPES = ("Reshape", "Unsqueeze", "Squeeze", "Flatten")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One equation.

    Attributes:
        name: of the function.
        statement: its docstring, the equation in words or symbols.
        kind: ``exact`` or ``fp``, as of a pass.
        variables: what it is about, in the order of the function's parameters.
        function: the equation itself.
        example: dims, constants and attributes at which it can be tried; all others are `graph_passes.engine.trial`'s.
    """

    name: str
    statement: str
    kind: Literal["exact", "fp"]
    variables: tuple[Variable, ...]
    function: Callable[..., Equation]
    example: Mapping[str, Any]

    @functools.cached_property
    def left(self) -> tuple[Side, ...]:
        """The spellings that it looks for."""
        return _read(self.function(Op(), **{v.name: v for v in self.variables}))[0]

    def sides(self, values: Mapping[str, Any], shapes: Shapes) -> tuple[tuple[Side, ...], Side]:
        """Both sides with constants known.

        Args:
            values: a number for every constant and attribute, a term for every other variable.

        Raises:
            Refused: where a condition of the rule does not hold.
        """
        return _read(self.function(Op(shapes), **values))

    @functools.cached_property
    def roots(self) -> tuple[tuple[str, int], ...]:
        """Op types at which a match can begin, each with the spelling's number."""
        return tuple((op, i) for i, side in enumerate(self.left) for op in sorted(set(_ops(side[0]))))

    @functools.cached_property
    def ops(self) -> frozenset[str]:
        """All op types that its left sides speak of."""
        terms = (term for side in self.left for output in side for term in within(output))
        return frozenset(term.op_type for term in terms if isinstance(term, Apply))

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Nodes of every spelling, the fewest that it can have."""
        return tuple(len(set(_nodes(side))) for side in self.left)


@overload
def rule(function: Callable[..., Equation]) -> Rule: ...


@overload
def rule(
    *, kind: Literal["exact", "fp"] = "fp", example: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., Equation]], Rule]: ...


def rule(
    function: Callable[..., Equation] | None = None,
    *,
    kind: Literal["exact", "fp"] = "fp",
    example: Mapping[str, Any] | None = None,
) -> Any:
    """Make a rule of an equation; the arguments are those of `Rule`."""
    make = functools.partial(_rule, kind=kind, example=example or {})
    return make if function is None else make(function)


def _rule(
    function: Callable[..., Equation], kind: Literal["exact", "fp"], example: Mapping[str, Any]
) -> Rule:
    parameters = list(inspect.signature(function).parameters.items())[1:]
    variables = tuple(_declared(name, str(parameter.annotation)) for name, parameter in parameters)
    return Rule(function.__name__, inspect.getdoc(function) or "", kind, variables, function, example)


ELEMENTS = ("float", "int", "bool", "any")


def _declared(name: str, annotation: str) -> Variable:
    """``"*B D"``, ``"int B S"``: dims of a value; ``"maybe …"``: one that may be left out; ``"constant"``: a scalar;
    ``"attribute"``."""
    words = annotation.strip("'\"").split()
    if words == ["constant"]:
        return Variable(name, kind="constant")
    if words == ["attribute"]:
        return Variable(name, kind="attribute")
    optional = words[0] == "maybe"
    words = words[optional:]
    element = words[0] if words[0] in ELEMENTS else "float"
    dims = " ".join(words[words[0] in ELEMENTS :])
    return Variable(name, dims, element=element, optional=optional)


def _read(equation: Equation) -> tuple[tuple[Side, ...], Side]:
    left: list[Side] = []
    while True:
        try:
            left.append(_side(next(equation)))
        except StopIteration as end:
            return tuple(left), _side(end.value)


def _side(side: Term | Side) -> Side:
    return side if isinstance(side, tuple) else (side,)


def _ops(term: Term) -> Iterator[str]:
    match term:
        case Apply():
            yield term.op_type
        case Output():
            yield term.of.op_type
        case Reshaped():
            yield from RESHAPES
        case Expanded():
            yield "Expand"
        case Sliced():
            yield "Slice"
        case Either():
            for option in term.options:
                yield from _ops(option)
        case Shared():
            yield from _ops(term.input)
        case _:
            raise TypeError(f"a rule cannot begin at {term}")


def _nodes(terms: Side) -> Iterator[Term]:
    for term in terms:
        match term:
            case Apply():
                yield term
                yield from _nodes(tuple(i for i in term.inputs if i is not None))
            case Output():
                yield from _nodes((term.of,))
            case Reshaped() | Expanded() | Sliced():
                yield term
                yield from _nodes((term.input,))
            case Shared():
                yield from _nodes((term.input,))
            case Either():
                yield from min((set(_nodes((option,))) for option in term.options), key=len)
            case _:
                pass

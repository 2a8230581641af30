"""Does a piece of graph look like the left side of a rule, and where not?

A search over goals, each "this term is that value". Commutative operators and alternatives are tried in turn;
what was assumed is undone by a trail. Names never count, constants are compared once their size fits, and a
weight is never read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from exporter.control import END
from graph_passes.engine.rule import RESHAPES, Rule, Side
from graph_passes.engine.terms import (
    Apply,
    Dim,
    Either,
    Expanded,
    Literal,
    Output,
    Reshaped,
    Shapes,
    Shared,
    Sliced,
    Term,
    Variable,
    within,
)
from graph_passes.inference.facts import dims
from graph_passes.matching import constant, counted_from_front, slice_of

COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Equal"})


@dataclasses.dataclass(frozen=True)
class Match:
    """What a rule found.

    Attributes:
        values: of the rule's variables: a value of the graph, a number or an attribute; None where left out.
        shapes: what its dims stand for.
        roots: values that the sides of the rule stand for, the most downstream first.
        nodes: the nodes that only this match uses, and which go.
        shared: nodes that others may use as well, which go with the last of them.
    """

    values: dict[str, Any]
    shapes: Shapes
    roots: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]
    shared: tuple[ir.Node, ...]


@dataclasses.dataclass(frozen=True)
class Miss:
    """The furthest that a rule came.

    Attributes:
        nodes: that fitted.
        at: the node or value where it stopped.
        why: the condition that failed there.
    """

    nodes: tuple[ir.Node, ...]
    at: str
    why: str


Goals: TypeAlias = "tuple[tuple[Term, ir.Value | None], Goals] | None"


def match(rule: Rule, spelling: int, value: ir.Value) -> Match | Miss:
    """Match one spelling of a rule with what makes a value."""
    side = rule.left[spelling]
    search = _Search(side)
    if search.solve(((side[0], value), None)):
        values: dict[str, Any] = {v.name: search.bound.get(v) for v in rule.variables}
        mine = search.exclusive()
        others = tuple(node for node in dict.fromkeys(search.nodes.values()) if node not in mine)
        return Match(values, Shapes(dict(search.dims)), search.roots(), mine, others)
    return search.miss or Miss((), "", "")


class _Search:
    """One attempt. ``bound`` holds values of terms, ``nodes`` the nodes of ops, ``dims`` what names stand for."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.bound: dict[Term, Any] = {}
        self.nodes: dict[Term, ir.Node] = {}
        self.shared: set[Term] = set()
        self.dims: dict[str, Dim | tuple[Dim, ...]] = {}
        self.trail: list[tuple[dict[Any, Any], Any]] = []
        self.later: dict[Callable[[], str | None], None] = {}
        self.miss: Miss | None = None

    def solve(self, goals: Goals) -> bool:
        """Whether all goals can be met together; what is bound then is the first way found."""
        if goals is None:
            failed = self.failed_at_the_end()
            if failed is not None:
                self.note(*failed)
            return failed is None
        (term, value), rest = goals
        if term in self.bound:
            if self.bound[term] is value or _is_number(value, self.bound[term]):
                return self.solve(rest)
            return self.fail(value, "it is not the value that the rest of the pattern uses")
        mark = len(self.trail)
        for more in self.ways(term, value):
            if not isinstance(more, str):
                if self.solve(_push(more, rest)):
                    return True
            else:
                self.fail(value, more)
            self.undo(mark)
        return False

    # One goal -----------------------------------------------------------------------------------------------

    def ways(self, term: Term, value: ir.Value | None) -> Iterator[list[tuple[Term, ir.Value | None]] | str]:
        """The ways in which a value can be a term, each with what else must hold; or why it cannot."""
        match term:
            case Either():
                for option in term.options:
                    self.put(self.bound, term, value)
                    yield [(option, value)]
            case Shared():
                self.put(self.bound, term, value)
                self.shared.update(within(term.input))
                yield [(term.input, value)]
            case Variable():
                yield self.variable(term, value)
            case Literal():
                yield self.literal(term, value)
            case _ if value is None:
                yield "an input is left out"
            case Output():
                yield from self.output(term, value)
            case Apply():
                yield from self.apply(term, value)
            case Reshaped() | Expanded():
                yield self.moved(term, value)
            case Sliced():
                yield self.sliced(term, value)

    def variable(self, term: Variable, value: ir.Value | None) -> list[Any] | str:
        if value is None:
            self.put(self.bound, term, None)
            return [] if term.optional else "an input is left out"
        if term.kind == "constant":
            array = constant(value)
            if array is None or array.size != 1:
                return "it is no scalar constant"
            self.put(self.bound, term, array.reshape(-1)[0].item())
            return []
        if not _is_of(value, term.element):
            return f"it holds {value.dtype}, not {term.element}"
        failed = self.unify(term.dims, value) if term.dims else None
        if failed is not None:
            return failed
        self.put(self.bound, term, value)
        return []

    def literal(self, term: Literal, value: ir.Value | None) -> list[Any] | str:
        array = constant(value)
        if array is None or (array.shape != term.value.shape if term.value.ndim else array.size != 1):
            return f"it is not the constant {term.value}"
        if array.dtype.kind in "iub":
            equal = bool((array.reshape(-1) == term.value.reshape(-1)).all())
        else:
            equal = np.allclose(
                array.astype(np.float64).reshape(-1), term.value.reshape(-1), rtol=1e-5, atol=0
            )
        return (
            [] if equal else f"it is the constant {_printed(array.reshape(-1)[0].item())}, not {term.value}"
        )

    def output(self, term: Output, value: ir.Value) -> Iterator[list[tuple[Term, ir.Value | None]] | str]:
        node = value.producer()
        if node is None or len(node.outputs) <= term.index or node.outputs[term.index] is not value:
            yield f"it is not output {term.index} of {term.of.op_type}"
            return
        self.put(self.bound, term, value)
        yield [(term.of, node.outputs[0])]

    def apply(self, term: Apply, value: ir.Value) -> Iterator[list[tuple[Term, ir.Value | None]] | str]:
        node = value.producer()
        if node is None or node.op_type != term.op_type or node.domain != term.domain:
            yield f"it is {_made_by(value)}, not {term.op_type}"
            return
        if node.outputs[0] is not value:
            yield f"it is a further output of {node.op_type}"
            return
        inputs = list(node.inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        if len(inputs) > len(term.inputs):
            yield f"{node.op_type} has {len(inputs)} inputs, not {len(term.inputs)}"
            return
        self.put(self.bound, term, value)
        self.put(self.nodes, term, node)
        failed = self.attributes(term, node, value)
        if failed is not None:
            yield failed
            return
        inputs += [None] * (len(term.inputs) - len(inputs))
        pairs = list(zip(term.inputs, inputs, strict=True))
        if any(wanted is None and found is not None for wanted, found in pairs):
            yield f"{node.op_type} has an input that the pattern leaves out"
            return
        mark = len(self.trail)
        yield [(wanted, found) for wanted, found in pairs if wanted is not None]
        if term.op_type in COMMUTATIVE:
            self.undo(mark)
            self.put(self.bound, term, value)
            self.put(self.nodes, term, node)
            (a, x), (b, y) = pairs
            assert a is not None and b is not None
            yield [(a, y), (b, x)]

    def attributes(self, term: Apply, node: ir.Node, value: ir.Value) -> str | None:
        """Attributes that a term does not name have their default, or the node means something else."""
        for name in {*term.attributes, *node.attributes}:
            found = node.attributes[name].value if name in node.attributes else None
            found = _default(node.op_type, node.domain, name) if found is None else found
            wanted = term.attributes.get(name, _default(node.op_type, node.domain, name))
            if isinstance(wanted, Variable):
                self.put(self.bound, wanted, found)
            elif not _same(name, found, wanted, value):
                return f"{node.op_type} has {name}={_printed(found)}, not {_printed(wanted)}"
        return None

    def moved(self, term: Reshaped | Expanded, value: ir.Value) -> list[tuple[Term, ir.Value | None]] | str:
        node = value.producer()
        ops = RESHAPES if isinstance(term, Reshaped) else ("Expand",)
        if node is None or node.op_type not in ops or node.domain != "":
            return f"it is {_made_by(value)}, not {ops[0]}"
        self.put(self.bound, term, value)
        self.put(self.nodes, term, node)
        failed = self.unify(term.dims, value)
        return [(term.input, node.inputs[0])] if failed is None else failed

    def sliced(self, term: Sliced, value: ir.Value) -> list[tuple[Term, ir.Value | None]] | str:
        node = value.producer()
        if node is None or node.op_type != "Slice":
            return f"it is {_made_by(value)}, not Slice"
        bounds = slice_of(node)
        whole = node.inputs[0]
        shape = dims_of(whole) if whole is not None else None
        if bounds is None or shape is None:
            return "Slice is not of one axis, by constants"
        axis, start, end, step = bounds
        if step != term.step:
            return f"Slice goes by steps of {step}, not {term.step}"
        if axis % len(shape) != term.axis % len(shape):
            return f"Slice cuts axis {axis}, not {term.axis}"
        size = shape[axis]

        def check() -> str | None:
            try:
                first, last = (self.number(b) for b in (term.start, term.end))
            except (KeyError, ValueError) as error:
                return str(error)
            if first == _within_size(start, size) and (last or END) == _within_size(end, size):
                return None
            if (
                isinstance(size, int)
                and last is None
                and _within_size(end, size) == size
                and first == start % size
            ):
                return None
            return f"Slice cuts {start} to {end}, not {first} to {last}"

        self.put(self.bound, term, value)
        self.put(self.nodes, term, node)
        self.put(self.later, check, None)
        return [(term.input, whole)]

    def number(self, bound: int | str | None) -> int | None:
        if bound is None or isinstance(bound, int):
            return bound
        found = Shapes(self.dims).dim(bound)
        if not isinstance(found, int):
            raise ValueError(f"{bound} is {found}, no number")
        return found

    # Dims ---------------------------------------------------------------------------------------------------

    def unify(self, names: str, value: ir.Value) -> str | None:
        """Give names of dims their meaning, or say why a value does not have these dims."""
        shape = dims_of(value)
        if shape is None:
            return "its shape is not known"
        tokens = names.split()
        starred = [i for i, token in enumerate(tokens) if token.startswith("*")]
        if starred:
            (at,) = starred
            count = len(shape) - len(tokens) + 1
            if count < 0:
                return f"it has shape [{_spelled(shape)}], not [{names}]"
            parts: list[Any] = [*shape[:at], shape[at : at + count], *shape[at + count :]]
        else:
            parts = list(shape)
        if len(parts) != len(tokens):
            return f"it has shape [{_spelled(shape)}], not [{names}]"
        for token, part in zip(tokens, parts, strict=True):
            if not self.unify_dim(token, part):
                return f"it has shape [{_spelled(shape)}], not [{names}]"
        return None

    def unify_dim(self, token: str, part: Dim | tuple[Dim, ...]) -> bool:
        if token.isdigit():
            return part == int(token)
        if token in self.dims:
            return self.dims[token] == part
        if token.isidentifier() or token.startswith("*"):
            self.put(self.dims, token, part)
            return True

        def check() -> str | None:
            try:
                holds = Shapes(self.dims).dim(token) == part
            except (KeyError, ValueError) as error:
                return f"dim {token}: {error}"
            return None if holds else f"a dim is {part}, not {token}"

        self.put(self.later, check, None)
        return True

    # The end ------------------------------------------------------------------------------------------------

    def failed_at_the_end(self) -> tuple[Any, str] | None:
        """What can only be asked once everything is bound: arithmetic on dims, and that nothing escapes."""
        for check in self.later:
            why = check()
            if why is not None:
                return self.bound[self.side[0]], why
        roots = self.roots()
        mine = set(self.exclusive())
        for node in mine:
            for value in node.outputs:
                others = [user for user, _ in value.uses() if user not in mine]
                if value is roots[0] or (value in roots and not others):
                    continue
                if others or value.is_graph_output():
                    return (
                        value,
                        f"{node.op_type} is also used by {others[0].op_type if others else 'the caller'}",
                    )
        return None

    def roots(self) -> tuple[ir.Value, ...]:
        return tuple(
            self.nodes[term.of].outputs[term.index] if isinstance(term, Output) else self.bound[term]
            for term in self.side
        )

    def exclusive(self) -> tuple[ir.Node, ...]:
        return tuple(dict.fromkeys(node for term, node in self.nodes.items() if term not in self.shared))

    # Book-keeping -------------------------------------------------------------------------------------------

    def put(self, where: dict[Any, Any], key: Any, value: Any) -> None:
        if key not in where:
            self.trail.append((where, key))
        where[key] = value

    def undo(self, mark: int) -> None:
        while len(self.trail) > mark:
            where, key = self.trail.pop()
            del where[key]

    def fail(self, value: ir.Value | None, why: str) -> bool:
        self.note(value, why)
        return False

    def note(self, value: ir.Value | None, why: str) -> None:
        if self.miss is None or len(self.nodes) > len(self.miss.nodes):
            node = value.producer() if value is not None else None
            place = node.name if node is not None else value.name if value is not None else None
            self.miss = Miss(tuple(self.nodes.values()), place or "", why)


def dims_of(value: ir.Value) -> tuple[Dim, ...] | None:
    """A value's dims as numbers and texts; None where its rank is not known."""
    found = dims(value)
    return None if found is None else tuple(dim if isinstance(dim, int) else str(dim) for dim in found)


def _spelled(shape: tuple[Dim, ...]) -> str:
    return ", ".join(map(str, shape))


def _is_number(value: ir.Value | None, number: Any) -> bool:
    array = constant(value) if isinstance(number, int | float) else None
    return array is not None and array.size == 1 and array.item() == number


def _is_of(value: ir.Value, element: str) -> bool:
    if element == "any" or value.dtype is None:
        return True
    if element == "bool":
        return value.dtype == ir.DataType.BOOL
    return value.dtype.is_integer() if element == "int" else value.dtype.is_floating_point()


def _push(more: list[tuple[Term, ir.Value | None]], rest: Goals) -> Goals:
    for goal in reversed(more):
        rest = (goal, rest)
    return rest


def _within_size(bound: int, size: Any) -> int:
    return counted_from_front(bound, size) if isinstance(size, int) else bound


def _made_by(value: ir.Value) -> str:
    node = value.producer()
    if node is None:
        return "an input of the graph" if value.is_graph_input() else "a weight or constant"
    return node.op_type


def _same(name: str, found: Any, wanted: Any, value: ir.Value) -> bool:
    if isinstance(found, float) and isinstance(wanted, int | float):
        return bool(np.isclose(found, wanted, rtol=1e-6, atol=0))
    if name == "axis" and isinstance(found, int) and isinstance(wanted, int):
        rank = len(dims_of(value) or ())
        return found == wanted or (rank > 0 and found % rank == wanted % rank)
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return list(found) == list(wanted)
    return bool(found == wanted)


def _printed(number: Any) -> str:
    """As few digits as float32 has."""
    return f"{number:.6g}" if isinstance(number, float) else str(number)


@functools.cache
def _default(op_type: str, domain: str, name: str) -> Any:
    """An attribute's default by the standard; None where there is none."""
    if not onnx.defs.has(op_type, domain):
        return None
    declared = onnx.defs.get_schema(op_type, domain=domain).attributes.get(name)
    if declared is None or not declared.default_value.ByteSize():
        return None
    found = onnx.helper.get_attribute_value(declared.default_value)
    return found.decode() if isinstance(found, bytes) else found

"""Terms → nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.control import END
from graph_passes.engine.matcher import dims_of
from graph_passes.engine.rule import Side
from graph_passes.engine.terms import (
    Apply,
    Dim,
    Either,
    Expanded,
    Literal,
    Output,
    Refused,
    Reshaped,
    Shapes,
    Shared,
    Sliced,
    Term,
    Variable,
)
from graph_passes.inference.facts import infer_node
from graph_passes.matching import initializer


class Emitter:
    """Makes the nodes of terms, each once, with types and shapes.

    Args:
        graph: takes the constants that are needed; nodes are left to the caller, in ``nodes``.
        values: of variables.
        shapes: what dims stand for.
        element: type of numbers that meet nothing whose type is known.
        choose: which spelling of several is made.
    """

    def __init__(
        self,
        graph: ir.Graph,
        values: Mapping[str, Any],
        shapes: Shapes,
        element: ir.DataType,
        choose: Callable[[Either], Term] = lambda term: term.options[0],
    ) -> None:
        self.graph = graph
        self.values = values
        self.shapes = shapes
        self.element = element
        self.choose = choose
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self._made: dict[Term, ir.Value] = {}

    def side(self, side: Side) -> tuple[ir.Value, ...]:
        """The values of a side's outputs.

        Raises:
            Refused: where a shape cannot be written down.
        """
        return tuple(self.value(term) for term in side)

    def value(self, term: Term) -> ir.Value:
        if isinstance(term, Variable):
            found: ir.Value = self.values[term.name]
            return found
        if term not in self._made:
            self._made[term] = self._make(term)
        return self._made[term]

    def _make(self, term: Term) -> ir.Value:
        match term:
            case Shared():
                return self.value(term.input)
            case Either():
                return self.value(self.choose(term))
            case Output():
                node = self.value(term.of).producer()
                assert node is not None
                return node.outputs[term.index]
            case Literal():
                return self._literal(term, self.element)
            case Apply():
                return self._apply(term)
            case Reshaped():
                x = self.value(term.input)
                return self._node("Reshape", [x, self._ints(self._target(x, term.dims))])
            case Expanded():
                x = self.value(term.input)
                return self._node("Expand", [x, self._ints(self._broadcast(x, term.dims))])
            case Sliced():
                return self._sliced(term)
        raise TypeError(f"{term} is no node")

    def _apply(self, term: Apply) -> ir.Value:
        inputs = [None if i is None or isinstance(i, Literal) else self._optional(i) for i in term.inputs]
        for at, given in enumerate(term.inputs):
            if isinstance(given, Literal):
                inputs[at] = self._literal(given, self._met(given, inputs))
        while inputs and inputs[-1] is None:
            inputs.pop()
        return self._node(term.op_type, inputs, term.domain, term.outputs, term.attributes)

    def _optional(self, term: Term) -> ir.Value | None:
        left_out = isinstance(term, Variable) and self.values[term.name] is None
        return None if left_out else self.value(term)

    def _met(self, literal: Literal, inputs: Sequence[ir.Value | None]) -> ir.DataType:
        """The type that a number takes: that of its neighbours, where they hold numbers of its kind."""
        types = [v.dtype for v in inputs if v is not None and v.dtype is not None]
        if literal.value.dtype.kind == "f":
            types = [dtype for dtype in types if dtype.is_floating_point()]
        return types[0] if types else self.element

    def _node(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        domain: str = "",
        outputs: int = 1,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        given = {name: value for name, value in (attributes or {}).items() if value is not None}
        node = ir.node(op_type, inputs, given, domain=domain, num_outputs=outputs)
        infer_node(node)
        self.nodes.append(node)
        return node.outputs[0]

    def _literal(self, term: Literal, dtype: ir.DataType) -> ir.Value:
        array = term.value if term.value.ndim else term.value.astype(dtype.numpy())
        return self._constant(array)

    def _ints(self, values: list[int]) -> ir.Value:
        return self._constant(np.array(values, np.int64))

    def _constant(self, array: np.ndarray) -> ir.Value:
        value = initializer(self.graph, ir.tensor(array, name="constant"))
        self.constants.append(value)
        return value

    def _sliced(self, term: Sliced) -> ir.Value:
        x = self.value(term.input)
        start, end = (b if not isinstance(b, str) else self.shapes.dim(b) for b in (term.start, term.end))
        if isinstance(start, str) or isinstance(end, str):
            raise Refused(f"{term.start} to {term.end} are no numbers")
        axis = term.axis % len(_known(x))
        bounds = [start or 0, END if end is None else end, axis, *([term.step] if term.step > 1 else [])]
        return self._node("Slice", [x, *(self._ints([bound]) for bound in bounds)])

    def _target(self, x: ir.Value, dims: str) -> list[int]:
        """What Reshape is to be given: 0 copies a dim, and one may be left to it as −1."""
        have = _known(x)
        target = [
            dim if isinstance(dim, int) else 0 if i < len(have) and have[i] == dim else -1
            for i, dim in enumerate(self.shapes.resolve(dims))
        ]
        if target.count(-1) > 1:
            raise Refused(f"more than one dim of [{dims}] is not known")
        return target

    def _broadcast(self, x: ir.Value, dims: str) -> list[int]:
        """What Expand is to be given: 1 keeps a dim."""
        have = _known(x)
        want = self.shapes.resolve(dims)
        have = (1,) * (len(want) - len(have)) + have
        target = [1 if h == w else w for h, w in zip(have, want, strict=True)]
        if any(isinstance(dim, str) for dim in target):
            raise Refused(f"a dim of [{dims}] is not known")
        return [int(dim) for dim in target]


def _known(value: ir.Value) -> tuple[Dim, ...]:
    found = dims_of(value)
    if found is None:
        raise Refused(f"the shape of {value.name} is not known")
    return found

"""A rule tried: each of its spellings is built as a graph, rewritten, and run before and after.

    try_rule(rms_norm)            # raises where it does not fire, or where both sides differ

The answer before is also taken in float64, so that what the rewrite may cost is measured and not chosen: the
error after is at most four times the error before.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graph_passes.engine.emit import Emitter
from graph_passes.engine.rewriting import rewrite
from graph_passes.engine.rule import Rule, Side
from graph_passes.engine.terms import Either, Shapes, Variable, within
from graph_passes.inference.facts import annotate
from graph_passes.proof.evaluate import evaluate, evaluate_float64
from graph_passes.proof.subgraph import Subgraph

DIMS: Mapping[str, Any] = {
    **{"B": 2, "S": 3, "P": 4, "T": 7, "H": 4, "K": 2, "G": 2, "D": 8, "E": 6, "R": 3, "A": 5, "C": 9},
    **{"*A": (2, 3, 4), "*B": (2, 3), "*C": (6, 4), "*M": (1, 1), "*X": (1, 1)},
}
"""What dims stand for where a rule's example says nothing: T = P + S, and H = K · G."""

ULPS = 2e-6
"""Error, relative to the largest value, that float32 may always make."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One spelling of a rule as a graph, with data."""

    model: ir.Model
    feeds: Mapping[ir.Value, np.ndarray]

    def run(self) -> list[np.ndarray]:
        return evaluate(self._all(), self.feeds)

    def run_float64(self) -> list[np.ndarray]:
        return evaluate_float64(self._all(), self.feeds)

    def _all(self) -> Subgraph:
        return Subgraph.cut(self.model, list(self.model.graph.outputs))


def try_rule(rule: Rule) -> int:
    """Try every spelling of a rule with every combination of its alternatives.

    Returns:
        How many there were.

    Raises:
        AssertionError: naming the spelling that does not fire or does not hold.
    """
    tried = 0
    for spelling in range(len(rule.left)):
        for choice in choices(rule, spelling):
            _try(rule, spelling, choice)
            tried += 1
    return tried


def choices(rule: Rule, spelling: int) -> Iterator[tuple[int, ...]]:
    """Every combination of a spelling's alternatives, by number."""
    yield from itertools.product(*(range(len(term.options)) for term in _alternatives(rule.left[spelling])))


def example(rule: Rule, spelling: int = 0, choice: Sequence[int] = ()) -> Example:
    """A spelling of a rule as a graph; alternatives are the first ones, or as chosen."""
    return _build(rule, spelling, choice)


def _try(rule: Rule, spelling: int, choice: Sequence[int]) -> None:
    it = example(rule, spelling, choice)
    where = f"{rule.name}, spelling {spelling}, alternatives {tuple(choice)}"
    before, exact = it.run(), it.run_float64()
    done = rewrite(it.model, [rule])
    if not done.fired:
        raise AssertionError(f"{where}: does not fire: {'; '.join(map(str, done.misses))}")
    for now, was, true in zip(it.run(), before, exact, strict=True):
        if rule.kind == "exact":
            if not np.array_equal(now, was):
                raise AssertionError(f"{where}: the sides differ in bits")
            continue
        size = max(float(np.abs(true).max()), 1e-30)
        allowed = 4 * float(np.abs(was - true).max()) / size + ULPS
        error = float(np.abs(now - true).max()) / size
        if not error <= allowed:
            raise AssertionError(f"{where}: the sides differ by {error:.1e}, {allowed:.1e} is allowed")


def _alternatives(side: Side) -> list[Either]:
    """In the order in which the rule wrote them, whichever of them is made."""
    terms = itertools.chain.from_iterable(map(within, side))
    return list(dict.fromkeys(term for term in terms if isinstance(term, Either)))


def _build(rule: Rule, spelling: int, choice: Sequence[int]) -> Example:
    rng = np.random.default_rng(5)
    given = {**DIMS, **rule.example}
    shapes = Shapes(given)
    values: dict[str, Any] = {}
    terms: dict[str, Any] = {}
    feeds: dict[ir.Value, np.ndarray] = {}
    for variable in rule.variables:
        if variable.kind == "value":
            array = _array(variable, shapes, given["P"], rng)
            dtype = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            value = ir.Value(name=variable.name, type=dtype, shape=ir.Shape(array.shape))
            values[variable.name], terms[variable.name], feeds[value] = value, variable, array
        else:
            default = float(rng.uniform(0.2, 1.0)) if variable.kind == "constant" else None
            values[variable.name] = terms[variable.name] = given.get(variable.name, default)
    graph = ir.Graph(list(feeds), [], nodes=[], opset_imports={"": 23}, name=rule.name)
    left = rule.sides(terms, shapes)[0][spelling]
    chosen = dict(zip(_alternatives(left), choice, strict=False))
    emitter = Emitter(
        graph, values, shapes, ir.DataType.FLOAT, lambda term: term.options[chosen.get(term, 0)]
    )
    outputs = emitter.side(left)
    graph.extend(emitter.nodes)
    graph.outputs.extend(outputs)
    model = ir.Model(graph, ir_version=10)
    annotate(model)
    return Example(model, feeds)


def _array(variable: Variable, shapes: Shapes, rows: int, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(int(dim) for dim in shapes.resolve(variable.dims))
    if variable.element == "int":
        return rng.integers(0, rows, shape)
    if variable.element == "bool":
        array: np.ndarray = rng.random(shape) < 0.7
        array[..., 0] = True  # a query that sees nothing has no answer
        return array
    return rng.normal(size=shape).astype(np.float32)

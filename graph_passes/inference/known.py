"""What is known of values, and a node with what is known of its inputs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from graph_passes.inference.dims import Size, symbol

Shape = tuple[Size, ...]
Contents = tuple[Size | None, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """What is known of a value.

    Attributes:
        dtype: None where it is not a tensor, or not known.
        shape: None where not even the rank is known.
        contents: elements of a small integer tensor in row-major order, each None where it is not known.
    """

    dtype: ir.DataType | None = None
    shape: Shape | None = None
    contents: Contents | None = None


UNKNOWN = Fact()
_UNNAMED = itertools.count()
Rule = Callable[["KnownNode"], Sequence[Fact]]


@dataclasses.dataclass(frozen=True, slots=True)
class KnownNode:
    """A node, and what is known of its inputs."""

    ir_node: ir.Node
    facts: tuple[Fact, ...]

    def attribute(self, name: str, default: Any = None) -> Any:
        found = self.ir_node.attributes.get(name)
        return default if found is None else found.value

    def has(self, i: int) -> bool:
        return i < len(self.ir_node.inputs) and self.ir_node.inputs[i] is not None

    def fact(self, i: int) -> Fact:
        return self.facts[i] if i < len(self.facts) else UNKNOWN

    def shape(self, i: int) -> Shape | None:
        return self.fact(i).shape

    def dtype(self, i: int) -> ir.DataType | None:
        return self.fact(i).dtype

    def unknown(self, axis: int, output: int = 0) -> Size:
        """The symbol of a dim that nothing tells."""
        return symbol(f"{self.ir_node.outputs[output].name or next(_UNNAMED)}#{axis}")

    def ints(self, i: int, attribute: str) -> tuple[int, ...] | None:
        """Integers that are an input in newer opsets and an attribute in older ones; None if not known."""
        if self.has(i):
            return known_ints(self.fact(i))
        found = self.attribute(attribute)
        return None if found is None else tuple(found)

    def names_ints(self, i: int, attribute: str) -> bool:
        """Whether those integers are given at all."""
        return self.has(i) or attribute in self.ir_node.attributes


def known_ints(fact: Fact) -> tuple[int, ...] | None:
    """Contents that are numbers all over."""
    if fact.contents is None or not all(isinstance(size, int) for size in fact.contents):
        return None
    return tuple(size for size in fact.contents if isinstance(size, int))


def broadcast(node: KnownNode, shapes: Sequence[Shape | None]) -> Shape | None:
    """The shape of an elementwise op's result. A dim of two different symbols is a new one."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes) or not known:
        return None
    if all(shape == known[0] for shape in known):
        return known[0]
    rank = max(map(len, known))
    result: list[Size] = []
    for axis in range(-rank, 0):
        sizes = {shape[axis] for shape in known if len(shape) >= -axis} - {1}
        numbers = [size for size in sizes if isinstance(size, int)]
        if len(sizes) <= 1:
            result.append(sizes.pop() if sizes else 1)
        else:  # a number other than 1 wins over symbols, which must be that or 1
            result.append(numbers[0] if len(numbers) == 1 else node.unknown(rank + axis))
    return tuple(result)

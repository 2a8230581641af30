"""When two pieces of a graph are the same but for names: keys of their structure, equal exactly then."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from exporter.weight_tensor import WeightTensor
from exporter.weights import Weight
from graph_passes.inference.facts import dims
from graph_passes.inference.known import Shape
from graph_passes.matching import SMALL
from graph_passes.proof.subgraph import NodeSnapshot, live_snapshots, upwards

FLOATS = frozenset([ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE])


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a value when the witness is taken; a pass may change it later."""

    dtype: ir.DataType | None
    dims: Shape | None

    @classmethod
    def of(cls, value: ir.Value) -> Facts:
        return cls(value.dtype, dims(value))

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def is_known(self) -> bool:
        return self.dtype is not None and self.dims is not None


Describe = Callable[[ir.Value], Hashable]


def key_of(
    sides: Sequence[tuple[Sequence[NodeSnapshot], Sequence[ir.Value]]],
    facts: Mapping[ir.Value, Facts],
    describe: Describe | None = None,
) -> Hashable:
    """Ops, attributes, topology, types and dims of pieces that read the same values, and small constants' contents.

    Args:
        sides: the pieces.
        facts: of what they read and give.
        describe: says more of a value that they read; None where it has no more to say.
    """
    numbers: dict[ir.Value, int] = {}
    leaves: dict[object, int] = {}
    described: list[Hashable] = []

    def number(value: ir.Value | None) -> int:
        if value is None:
            return -1
        if value not in numbers:
            numbers[value] = len(numbers)
            more = None if describe is None else describe(value)
            described.append(_description(value, facts.get(value), leaves) if more is None else more)
        return numbers[value]

    def key(snapshot: NodeSnapshot) -> Hashable:
        inputs = (tuple(map(number, snapshot.inputs)), tuple(map(number, snapshot.reads())))
        for value in snapshot.outputs:
            numbers.setdefault(value, len(numbers))
        return (*_operation(snapshot), *inputs)

    pieces = tuple((tuple(map(key, snapshots)), tuple(map(number, outputs))) for snapshots, outputs in sides)
    known = tuple(facts[value] for _, outputs in sides for value in outputs)
    return pieces, tuple(described), known


def _operation(snapshot: NodeSnapshot) -> tuple[Hashable, ...]:
    attributes = tuple(sorted((a.name, str(a.type), attribute_key(a)) for a in snapshot.attributes))
    blank = tuple(value.name == "" for value in snapshot.outputs)
    return snapshot.domain, snapshot.op_type, snapshot.overload, attributes, blank


class Digests:
    """How values follow from the graph's inputs, as one number for each.

    They are kept: a pass may spell a value in another way later, and proves that it is the same value.

    Args:
        ends: whether to look no further up than a value.
    """

    def __init__(self, ends: Callable[[ir.Value], bool]) -> None:
        self._ends = ends
        self._known: dict[ir.Value, int] = {}

    def __getitem__(self, value: ir.Value) -> int:
        if value not in self._known:
            _, snapshots = upwards([value], lambda v: v in self._known or self._ends(v), live_snapshots())
            for snapshot in snapshots:
                of_shape = snapshot.domain == "" and snapshot.op_type in ("Shape", "Size")
                inputs = tuple(None if v is None else self._leaf(v, of_shape) for v in snapshot.inputs)
                inner = tuple(self._leaf(v, False) for v in snapshot.reads() if v not in snapshot.inputs)
                digest = hash((*_operation(snapshot), inputs, inner))
                self._known.update({output: hash((digest, i)) for i, output in enumerate(snapshot.outputs)})
            if not snapshots:
                self._known[value] = hash(self._leaf(value, False))
        return self._known[value]

    def _leaf(self, value: ir.Value, of_shape: bool) -> Hashable:
        """A value that is read: its digest, its contents, the name of an integer input; of another float its shape
        where only that counts, else which one it is."""
        if value in self._known:
            return self._known[value]
        if value.producer() is None and value.const_value is not None and not value.is_graph_input():
            return _description(value, None, {}), None if value.const_value.nbytes <= SMALL else id(value)
        if value.dtype in FLOATS and not of_shape:
            return id(value)
        return Facts.of(value), str(value.name) if value.dtype not in FLOATS else ""


def _description(value: ir.Value, facts: Facts | None, leaves: dict[object, int]) -> Hashable:
    """Of a value that a piece reads and does not make: an initializer's contents, else what is known of it."""
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or value.producer() is not None:
        named = value.is_graph_input() and value.dtype not in FLOATS
        return facts, str(value.name) if named else ""
    if isinstance(tensor, WeightTensor):
        return tensor.transpose, expression_key(tensor.weight, leaves)
    if tensor.nbytes <= SMALL and not isinstance(tensor, ir.LazyTensor):
        return str(tensor.dtype), tuple(tensor.shape), tensor.tobytes()
    return str(tensor.dtype), tuple(map(str, tensor.shape)), leaves.setdefault(id(tensor), len(leaves))


def expression_key(weight: Weight, leaves: dict[object, int]) -> Hashable:
    """How a weight is made of others; those are told apart, and not named."""
    if not parts_of(weight):
        return leaves.setdefault(leaf_id(weight), len(leaves)), weight.shape
    assert dataclasses.is_dataclass(weight)
    entries: list[Hashable] = [type(weight).__name__]
    for field in dataclasses.fields(weight):
        value = getattr(weight, field.name)
        if isinstance(value, Weight):
            entries.append(expression_key(value, leaves))
        elif isinstance(value, tuple) and value and isinstance(value[0], Weight):
            entries.append(tuple(expression_key(part, leaves) for part in value))
        else:
            entries.append(value.tobytes() if isinstance(value, np.ndarray) else repr(value))
    return tuple(entries)


def parts_of(weight: Weight) -> tuple[Weight, ...]:
    """The weights that a weight is an expression of; none of a leaf."""
    if not dataclasses.is_dataclass(weight):
        return ()
    values = [getattr(weight, field.name) for field in dataclasses.fields(weight)]
    single = [value for value in values if isinstance(value, Weight)]
    several = [value for value in values if isinstance(value, tuple)]
    return (*single, *(part for parts in several for part in parts if isinstance(part, Weight)))


def leaf_id(weight: Weight) -> object:
    """Equal for two leaves that are the same tensor of the same file, or the same object."""
    return weight if isinstance(weight, Hashable) else id(weight)


def attribute_key(attribute: ir.Attr) -> Hashable:
    """An attribute's value, in a form that can be compared."""
    if attribute.type in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
        return repr(attribute.value)
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return repr(tuple(attribute.value))
    return repr(ir.serde.serialize_attribute(attribute).SerializeToString())

"""A float32 graph as one that computes in float16, with float32 islands; weights stay unread.

Hidden states, what is made of them and the weights that they meet become float16. What is computed from positions and
lengths stays float32: an integer above 2048 is no float16. So does what lies in an island; a value that goes in or out
of one is cast there, once. Logits are given out as float32, and the key/value cache is float16 unless one of the nodes
that keep it is in an island.

    x₁₆ → f₁₆ → g₃₂ → h₁₆   ⇒   x → f → Cast₃₂ → g → Cast₁₆ → h
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Collection
from typing import IO

import numpy as np
import onnx_ir as ir

from exporter.errors import rejected, unsupported
from graph_passes.matching import MICROSOFT, SMALL, attribute, make, role_of

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
HALF_MAX = 65504.0
"""The largest finite float16."""
CACHE = ("past_key_values.", "present.")
LOOKUPS = frozenset([("", "Gather"), (MICROSOFT, "GatherBlockQuantized")])
"""Ops by which tokens become hidden states."""
ON_WEIGHTS = frozenset(["Cast", "Unsqueeze", "Reshape", "Transpose", "Identity", "DequantizeLinear"])
"""Ops on constants whose result is as good in float16 as their constants are."""
STAYS = {(MICROSOFT, "GroupQueryAttention"): (12, 13)}
"""Inputs that are float32 whatever the others are: the scales of an int8 cache."""


@dataclasses.dataclass(frozen=True)
class Halved:
    """What was done.

    Attributes:
        nodes: nodes that compute in float16.
        islands: roles, or names, of the nodes that hidden states go through in float32.
        casts: nodes that were added between the two.
        cache: whether keys and values are kept as float16.
    """

    nodes: int
    islands: tuple[str, ...]
    casts: int
    cache: bool


def half(model: ir.Model, islands: Collection[str] = (), *, cache: bool = True) -> Halved:
    """Let a finished graph compute in float16, in place: products, lookups and codes of weights as they are.

    Args:
        islands: patterns of roles (of names, where a node has no role) that stay float32.
        cache: keep keys and values as float16; without, the attentions that keep them stay float32.

    Raises:
        OnnxGptError: ``cannot-halve`` for a graph with branches or loops.
    """
    return _Halving(model, islands, cache).apply()


def matches(node: ir.Node, islands: Collection[str]) -> bool:
    """Whether a node is in an island."""
    return any(fnmatch.fnmatchcase(role_of(node), pattern) for pattern in islands)


class HalfTensor(ir.LazyTensor):
    """A float32 tensor rounded to float16 while it is written; what it is made of stays unread until then.

    Raises:
        OnnxGptError: ``weights-beyond-float16`` when it is read, for a weight that float16 cannot hold. A small
            constant, as masks are made of, becomes the largest float16 of its sign.
    """

    def __init__(self, base: ir.TensorProtocol) -> None:
        super().__init__(self._whole, HALF, ir.Shape(base.shape.numpy()), name=base.name)
        self.base = base

    def _whole(self) -> ir.TensorProtocol:
        return ir.tensor(self._rounded(self.base.numpy()), name=self.name)

    def tofile(self, file: IO[bytes]) -> None:
        """As the base streams itself, piece by piece."""
        if isinstance(self.base, ir.LazyTensor):
            self.base.tofile(_Rounding(file, self._rounded))
        else:
            file.write(np.ascontiguousarray(self._rounded(self.base.numpy())).data.cast("B"))

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        if self.base.nbytes <= SMALL:
            values = np.clip(values, -HALF_MAX, HALF_MAX)
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16)
        if not np.isfinite(rounded).all():
            raise rejected(
                "weights-beyond-float16",
                f"{self.name} holds {np.abs(values).max():.6g}, and float16 ends at {HALF_MAX:g}",
                "leave this model in float32, or quantize its weights",
            )
        return rounded


class _Rounding:
    """A file that takes float32 and passes float16 on."""

    def __init__(self, file: IO[bytes], rounded: Callable[[np.ndarray], np.ndarray]) -> None:
        self._file, self._rounded = file, rounded
        self._rest = b""

    def write(self, data: bytes | memoryview) -> int:
        whole = self._rest + bytes(data) if self._rest else data
        end = len(whole) // 4 * 4
        self._rest = bytes(whole[end:])
        self._file.write(self._rounded(np.frombuffer(whole[:end], np.float32)).data.cast("B"))
        return len(data)


class _Halving:
    """One graph being changed. ``kinds`` says of each node what it computes in."""

    def __init__(self, model: ir.Model, islands: Collection[str], cache: bool) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = list(model.graph)
        if any(node.graph is not model.graph for node in ir.traversal.RecursiveGraphIterator(model.graph)):
            raise unsupported(
                "cannot-halve",
                "the graph has branches or loops, whose values this does not follow",
                "leave it in float32",
            )
        self.floats = _floats(self.nodes)
        self.hidden = self._hidden()
        keepers = [node for node in self.nodes if self._keeps_cache(node)]
        self.cache = cache and not any(matches(node, islands) for node in keepers)
        wide = set() if self.cache else set(keepers)
        self.kinds = {
            node: FLOAT if node in wide or matches(node, islands) or not self._may(node) else HALF
            for node in self.nodes
        }
        self.stored: dict[ir.Value, ir.Value] = {}
        self.cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.types: dict[ir.Value, ir.DataType] = {}

    def apply(self) -> Halved:
        self._interface()
        for node in self.nodes:
            if node.graph is not None:
                self._node(node)
        self._logits()
        self._sweep()
        wide = [n for n in self.nodes if self.kinds[n] == FLOAT and self._of_hidden(n) and n.graph]
        halves = sum(1 for n in self.nodes if self.kinds[n] == HALF and self._of_hidden(n) and n.graph)
        casts = [value.producer() for value in self.cast.values()]
        alive = sum(1 for node in casts if node is not None and node.graph is self.graph)
        return Halved(halves, tuple(map(role_of, wide)), alive, self.cache)

    # What computes in what --------------------------------------------------------------------------------

    def _hidden(self) -> set[ir.Value]:
        """Float values that are made of tokens, or of the cache."""
        found = {v for v in self.graph.inputs if v in self.floats}
        for node in self.nodes:
            looks_up = (node.domain, node.op_type) in LOOKUPS
            if looks_up or any(value in found for value in node.inputs):
                found.update(value for value in node.outputs if value in self.floats)
        return found

    def _of_hidden(self, node: ir.Node) -> bool:
        return any(value in self.hidden for value in node.outputs)

    def _may(self, node: ir.Node) -> bool:
        """Whether a node may compute in float16 at all."""
        if self._of_hidden(node):
            return True
        constant = all(v is None or v.is_initializer() or self._constant(v) for v in node.inputs)
        return constant and node.op_type in ON_WEIGHTS and any(v in self.floats for v in node.outputs)

    def _constant(self, value: ir.Value) -> bool:
        node = value.producer()
        return node is not None and all(
            v is None or (v.is_initializer() and not v.is_graph_input()) or self._constant(v)
            for v in node.inputs
        )

    def _keeps_cache(self, node: ir.Node) -> bool:
        values = [*node.inputs, *node.outputs]
        return any(v in self.floats and str(v.name).startswith(CACHE) for v in values if v is not None)

    # The change -------------------------------------------------------------------------------------------

    def _interface(self) -> None:
        for value in self.graph.inputs:
            if value in self.floats:
                self.types[value] = HALF if self.cache else FLOAT
                value.type = ir.TensorType(self.types[value])

    def _node(self, node: ir.Node) -> None:
        kind = self.kinds[node]
        if node.op_type == "Cast" and node.outputs[0] in self.floats and kind == HALF:
            self._recast(node)
            return
        stays = STAYS.get((node.domain, node.op_type), ())
        makes_floats = any(value in self.floats for value in node.outputs)
        for i, value in enumerate(node.inputs):
            if value is None or i in stays or not self._is_float(value):
                continue
            if makes_floats or len([v for v in node.inputs if v is not None and self._is_float(v)]) > 1:
                node.replace_input_with(i, self._as(value, kind))
        for value in node.outputs:
            if value in self.floats:
                self._give(value, kind)

    def _recast(self, node: ir.Node) -> None:
        """A cast to float32 becomes one to float16, and goes where it has nothing to do."""
        (source,) = node.inputs
        assert source is not None
        output = node.outputs[0]
        dtype = source.const_value.dtype if source.const_value is not None else source.dtype
        if (self.types.get(source, dtype) or dtype) == HALF and not output.is_graph_output():
            output.replace_all_uses_with(source)
            self.types[source] = HALF
            self.floats.add(source)
            self.graph.remove(node, safe=True)
            return
        node.attributes["to"] = ir.AttrInt64("to", int(HALF))
        self._give(output, HALF)

    def _give(self, value: ir.Value, kind: ir.DataType) -> None:
        self.types[value] = kind
        value.type = ir.TensorType(kind)

    def _is_float(self, value: ir.Value) -> bool:
        return value in self.floats or _dtype(value) == FLOAT

    def _as(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """A value in the type that a node wants it in."""
        has = self.types.get(value, FLOAT)
        if value.is_initializer() and not value.is_graph_input() and value.const_value is not None:
            if _dtype(value) != FLOAT:
                has = HALF
            elif kind == HALF or (value in self.stored and value.const_value.nbytes > SMALL):
                value, has = self._halved(value), HALF
        if has == kind:
            return value
        if (value, kind) not in self.cast:
            node = make("Cast", [value], f"{value.name}.{kind.name.lower()}", to=int(kind))
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(kind), value.shape
            maker = value.producer()
            if maker is None:
                self.graph.insert_before(self.graph[0], node)
            else:
                self.graph.insert_after(maker, node)
            self.cast[value, kind] = node.outputs[0]
        return self.cast[value, kind]

    def _halved(self, value: ir.Value) -> ir.Value:
        """The constant in float16, beside the one in float32 until nothing uses that."""
        if value not in self.stored:
            tensor = value.const_value
            assert tensor is not None
            new = ir.Value(
                name=f"{value.name}.half",
                type=ir.TensorType(HALF),
                shape=value.shape,
                const_value=HalfTensor(tensor),
            )
            self.graph.register_initializer(new)
            self.stored[value] = new
            self.floats.add(new)
            self.types[new] = HALF
        return self.stored[value]

    def _logits(self) -> None:
        """Whatever is given out beside the cache is float32."""
        for i, value in enumerate(self.graph.outputs):
            if self.types.get(value) != HALF or str(value.name).startswith(CACHE):
                continue
            name, value.name = value.name, f"{value.name}.half"
            node = make("Cast", [value], str(name), to=int(FLOAT))
            given = node.outputs[0]
            given.type, given.shape = ir.TensorType(FLOAT), value.shape
            self.graph.append(node)
            self.graph.outputs[i] = given

    def _sweep(self) -> None:
        """Constants that are float16 now take the place, and the name, of those that they were made of."""
        for old, new in self.stored.items():
            if old.uses() and old.const_value is not None and old.const_value.nbytes > SMALL:
                cast = self._as(old, FLOAT)
                old.replace_all_uses_with(cast)
            if not old.uses():
                del self.graph.initializers[str(old.name)]
                new.name = str(old.name)
                assert new.const_value is not None
                new.const_value.name = new.name


def float_values(model: ir.Model) -> list[ir.Value]:
    """What a float32 graph computes from tokens: the values that would become float16, in graph order, caches apart."""
    made = _Halving(model, (), cache=True).hidden
    computed = [value for node in model.graph for value in node.outputs if value in made]
    return [value for value in computed if value.name and not value.name.startswith(CACHE)]


def _floats(nodes: list[ir.Node]) -> set[ir.Value]:
    """Inputs and computed values that are float32. A type that nobody has said is that of a node's first float."""
    found = {
        v
        for node in nodes
        for v in node.inputs
        if v is not None and v.is_graph_input() and _dtype(v) == FLOAT
    }
    for node in nodes:
        for value in node.outputs:
            dtype = value.dtype
            if node.op_type == "Cast":
                dtype = ir.DataType(attribute(node, "to", int(FLOAT)))
            elif dtype is None:
                floats = [v for v in node.inputs if v is not None and (v in found or _dtype(v) == FLOAT)]
                dtype = FLOAT if floats else None
            if dtype == FLOAT:
                found.add(value)
    return found


def _dtype(value: ir.Value) -> ir.DataType | None:
    return value.const_value.dtype if value.const_value is not None else value.dtype

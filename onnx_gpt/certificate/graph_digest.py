"""A graph's identity: independent of protobuf bytes, of the order of nodes and initializers, and of inner names.

Every value has a digest of how it is computed. A graph input's is of its name, type and dims, which are a contract; a
node's outputs' are of its operator, attributes and its inputs' digests; an initializer's is of its type and dims, and
of its contents where it is a small array of indices, or one number: those are the graph's own (a target shape, an
epsilon), the others are weights. The graph's digest is that of its outputs in order, of its nodes as a bag, so that
dead ones count, of its functions and of its operator sets.

With ``weights`` every initializer counts by its contents: two graphs then agree only if they compute the same with the
same weights in the same places, whatever those are called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

SMALL = 1024
"""Bytes up to which an array of indices belongs to the graph and not to the weights."""

INDICES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


def graph_digest(model: ir.Model, weights: Mapping[str, str] | None = None) -> str:
    """The digest of a model's graph, SHA-256 in hexadecimal.

    Args:
        weights: descriptions of the initializers with their contents' digests (`tensors.tensor_digests`).
    """
    functions = {
        identifier: _Scope({}, weights).function(function) for identifier, function in model.functions.items()
    }
    main = _Scope(functions, weights).graph(model.graph)
    opsets = [f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(model.opset_imports.items())]
    bodies = sorted(_hash(str(identifier), body) for identifier, body in functions.items())
    return _hash("model", main, *opsets, "functions", *bodies).hex()


class _Scope:
    """Values seen so far, of one graph and those inside it."""

    def __init__(
        self, functions: Mapping[tuple[str, str, str], bytes], weights: Mapping[str, str] | None
    ) -> None:
        self.functions = functions
        self.weights = weights
        self.known: dict[ir.Value, bytes] = {}

    def graph(self, graph: ir.Graph) -> bytes:
        for value in graph.inputs:
            default = self._initializer(value) if value.is_initializer() else b""
            self.known[value] = _hash("input", str(value.name), _type(value), default)
        nodes = sorted(self._node(node) for node in graph)
        outputs = [_hash(str(value.name), _type(value), self._value(value)) for value in graph.outputs]
        unused = sorted(self._value(v) for v in graph.initializers.values() if not v.uses())
        return _hash("graph", *outputs, "nodes", *nodes, "unused", *unused)

    def function(self, function: ir.Function) -> bytes:
        """The body of a function: its inputs count by their places."""
        for i, value in enumerate(function.inputs):
            self.known[value] = _hash("parameter", str(i))
        nodes = sorted(self._node(node) for node in function)
        outputs = [self._value(value) for value in function.outputs]
        opsets = [f"{domain} {version}" for domain, version in sorted(function.opset_imports.items())]
        attributes = sorted(f"{name}={attribute.value}" for name, attribute in function.attributes.items())
        return _hash("function", *outputs, "nodes", *nodes, *attributes, *opsets)

    def _node(self, node: ir.Node) -> bytes:
        inputs = [b"absent" if value is None else self._value(value) for value in node.inputs]
        attributes = [self._attribute(node.attributes[name]) for name in sorted(node.attributes)]
        body = self.functions.get(node.op_identifier(), b"")
        made = _hash(
            f"{node.domain}::{node.op_type}", body, str(len(node.outputs)), *attributes, "inputs", *inputs
        )
        for i, value in enumerate(node.outputs):
            self.known[value] = _hash("output", str(i), made)
        return made

    def _value(self, value: ir.Value) -> bytes:
        if value not in self.known:
            # What no node and no input gives is an initializer; a graph that is read has no other.
            self.known[value] = self._initializer(value)
        return self.known[value]

    def _initializer(self, value: ir.Value) -> bytes:
        tensor = value.const_value
        if tensor is None:
            return _hash("unknown", str(value.name))
        if self.weights is not None and str(value.name) in self.weights:
            return _hash("weight", self.weights[str(value.name)])
        indices = tensor.dtype in INDICES and tensor.nbytes <= SMALL
        return _tensor(tensor, contents=indices or tensor.size == 1)

    def _attribute(self, attribute: ir.Attr) -> bytes:
        name, kind = attribute.name, attribute.type.name
        if attribute.is_ref():
            return _hash(name, "ref", str(attribute.ref_attr_name))
        return _hash(name, kind, *self._contents(attribute))

    def _contents(self, attribute: ir.Attr) -> Iterable[str | bytes]:
        value = attribute.value
        match attribute.type:
            case ir.AttributeType.GRAPH:
                yield self.graph(value)
            case ir.AttributeType.GRAPHS:
                yield from (self.graph(graph) for graph in value)
            case ir.AttributeType.TENSOR:
                yield _tensor(value, contents=True)
            case ir.AttributeType.TENSORS:
                yield from (_tensor(tensor, contents=True) for tensor in value)
            case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS:
                numbers = value if isinstance(value, Sequence) else [value]
                yield np.asarray(numbers, "<f4").tobytes()  # what a protobuf holds, however it was written
            case _:
                items = value if isinstance(value, list | tuple) else [value]
                yield from (item if isinstance(item, bytes) else str(item) for item in items)


def _tensor(tensor: ir.TensorProtocol, *, contents: bool) -> bytes:
    dims = ",".join(map(str, tensor.shape.numpy()))
    data = hashlib.sha256(tensor.tobytes()).digest() if contents else b""
    return _hash("tensor", tensor.dtype.name, dims, data)


def _type(value: ir.Value) -> str:
    dims = "?" if value.shape is None else ",".join(str(dim) for dim in value.shape)
    return f"{value.dtype.name if value.dtype is not None else '?'}[{dims}]"


def _hash(*parts: str | bytes) -> bytes:
    """SHA-256 over the parts, each after its length, so that no two lists of parts run into one."""
    hasher = hashlib.sha256()
    for part in _encoded(parts):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def _encoded(parts: Iterable[str | bytes]) -> Iterator[bytes]:
    return (part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in parts)

"""What makes a message a graph: every value has one maker, before its users; every op exists and has what it takes.

onnx's own checker says so, told of a copy without large tensors, and of onnxruntime's operators by their domain.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import onnx

from exporter.errors import rejected, unsupported
from exporter.onnx_format.external import tensors_of

STANDARD = ("", "ai.onnx")
"""ONNX's own domain, which has two names."""
OLDEST = 11
"""The first operator set that is taken: older ones keep sizes in attributes, and nobody writes them any more."""
RUNTIME_DOMAIN = "com.microsoft"
"""Domain of the operators that onnxruntime brings itself."""

RUNTIME_NORM = "SimplifiedLayerNormalization"
"""An operator of onnxruntime's that its builder writes without a domain."""


def check_structure(model: onnx.ModelProto) -> None:
    """Check that a model can be computed.

    Raises:
        OnnxGptError: ``onnx-invalid`` with what the checker says; ``onnx-feature`` (exit 3) for operators that neither
            ONNX nor onnxruntime has.
    """
    version = min((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=OLDEST)
    if version < OLDEST:
        raise unsupported(
            "onnx-feature",
            f"the graph is of operator set {version}, older than {OLDEST}",
            f"export the model again, with operator set {OLDEST} or a newer one",
        )
    functions = {function.domain for function in model.functions}
    for node in nodes_of(model):
        names = (node.name, node.op_type, node.domain, *node.input, *node.output)
        if not all(isinstance(name, str) for name in (*names, *(a.name for a in node.attribute))):
            raise rejected(  # protobuf gives bytes where they are no UTF-8
                "onnx-invalid", f"names of node {node.name!r} are not text", "export the model again"
            )
        if node.domain not in (*STANDARD, RUNTIME_DOMAIN, *functions):
            raise unsupported(
                "onnx-feature",
                f"node {node.name!r} is a {node.op_type} of the domain {node.domain!r}, which nobody here knows",
                "export the model without custom operators",
            )
    try:
        onnx.checker.check_model(_without_tensors(model))
    except (onnx.checker.ValidationError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise rejected(
            "onnx-invalid", f"the graph cannot be computed: {' '.join(lines)[:400]}", "export the model again"
        ) from error


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put a graph's nodes after what they read, the others left in their order; a cycle is left for the checker.

    ONNX asks for this, onnxruntime does not, and its own converter to float16 writes casts at the end.
    """
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    reads = [{makers[name] for name in _read_by(node) if name in makers} for node in graph.node]
    if all(maker < i for i, before in enumerate(reads) for maker in before):
        return
    readers: list[list[int]] = [[] for _ in reads]
    for i, before in enumerate(reads):
        for maker in before:
            readers[maker].append(i)
    waiting = [len(before) for before in reads]
    ready = [i for i, count in enumerate(waiting) if count == 0]
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for reader in readers[i]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) == len(reads):
        nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(nodes)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, in its bodies too."""
    for inner in _with_bodies([node]):
        yield from inner.input


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, those of bodies and functions too."""
    yield from _with_bodies(model.graph.node)
    for function in model.functions:
        yield from _with_bodies(function.node)


def _with_bodies(nodes: object) -> Iterator[onnx.NodeProto]:
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _with_bodies(body.node)


def _without_tensors(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose external tensors are empty, so that the checker looks for no file."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in tensors_of(copy):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.dims[:] = [0]
            tensor.raw_data = b""
    for value in (*copy.graph.input, *copy.graph.output):  # a rank that is not stated is no error elsewhere
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    for node in nodes_of(copy):
        if node.op_type == RUNTIME_NORM:
            node.domain = RUNTIME_DOMAIN
    if all(entry.domain != RUNTIME_DOMAIN for entry in copy.opset_import):
        copy.opset_import.add(domain=RUNTIME_DOMAIN, version=1)
    return copy

"""What is known of a graph's values: type, shape on symbolic dims, and contents of small integer tensors.

`annotate` finds it out for a whole graph in one walk, `infer_node` for one new node. Types and shapes are kept where
`onnx_ir` has them, so that passes read them there; dims are spelled as `graph_passes.inference.dims` prints them. The
graph's inputs and outputs stay spelled as the file declares them, and `dims` says what they are. No weight is read.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from graph_passes.inference.contents import contents_of, whole_numbers
from graph_passes.inference.contract import input_dims
from graph_passes.inference.dims import Size, parse, symbol
from graph_passes.inference.known import UNKNOWN, Contents, Fact, KnownNode, Shape, known_ints
from graph_passes.inference.shapes import RULES
from graph_passes.matching import SMALL
from graph_passes.refusal import refusing

OPSET = 23
"""Opset of a node that is in no graph yet."""

_DIMS, _CONTENTS = "onnx_gpt.dims", "onnx_gpt.contents"


def annotate(model: ir.Model) -> None:
    """Find out what is known of every value of a model. What the file says of intermediate values is not trusted.

    Raises:
        OnnxGptError: ``onnx-invalid`` (exit 4) for a node whose inputs or attributes make no sense.
    """
    for value, sizes in input_dims(model.graph.inputs).items():
        value.meta[_DIMS] = sizes
    _annotate_nodes(model.graph)


def infer_node(node: ir.Node) -> None:
    """Find out what is known of a node's outputs. What is known already stays where this tells less."""
    known = KnownNode(node, tuple(UNKNOWN if value is None else fact_of(value) for value in node.inputs))
    rule = RULES.get((node.domain, node.op_type))
    facts = rule(known) if rule is not None else _by_onnx(known)
    for i, (value, fact) in enumerate(zip(node.outputs, facts, strict=False)):
        _write(value, fact, contents_of(known, fact) if i == 0 else None)


def dims(value: ir.Value) -> Shape | None:
    """The dims of a value; None where not even its rank is known. Dims of no name are not equal to any other."""
    found: Shape | None = value.meta.get(_DIMS)
    if found is not None:
        return found
    if value.shape is None and _CONTENTS not in value.meta:
        _infer_late(value)
    if value.shape is None:
        return None
    return tuple(
        dim if isinstance(dim, int) else parse(dim.value) if dim.value else symbol(f"{value.name}#{axis}")
        for axis, dim in enumerate(value.shape)
    )


def declare(value: ir.Value, shape: ir.Shape | None) -> None:
    """Spell a value's shape as the graph's interface does; what its dims are stays known."""
    sizes = dims(value)
    value.shape = shape
    if sizes is not None:
        value.meta[_DIMS] = sizes


def contents(value: ir.Value) -> Contents | None:
    """Elements of a small integer (or whole float) tensor in row-major order, None for one that is not known."""
    if _CONTENTS not in value.meta:
        tensor = value.const_value
        if value.is_initializer() and tensor is not None:
            given = value.is_graph_input() or isinstance(tensor, ir.LazyTensor) or tensor.nbytes > SMALL
            value.meta[_CONTENTS] = None if given else whole_numbers(tensor)
        else:
            value.meta[_CONTENTS] = None
            _infer_late(value)
    found: Contents | None = value.meta[_CONTENTS]
    return found


def fact_of(value: ir.Value) -> Fact:
    """All that is known of a value."""
    tensor = value.const_value
    if value.is_initializer() and tensor is not None and not value.is_graph_input():
        return Fact(tensor.dtype, tuple(tensor.shape.numpy()), contents(value))
    shape = dims(value)
    return Fact(value.dtype, shape, contents(value))


def _infer_late(value: ir.Value) -> None:
    """Infer the node that makes a value, and before it whatever it needs."""
    waiting = [value.producer()]
    while waiting:
        node = waiting[-1]
        if node is None or (
            node.outputs and _CONTENTS in node.outputs[0].meta and node is not value.producer()
        ):
            waiting.pop()
            continue
        before = [
            source.producer()
            for source in node.inputs
            if source is not None and _CONTENTS not in source.meta and source.producer() is not None
        ]
        if before:
            waiting.extend(before)
        else:
            infer_node(node)
            waiting.pop()


def _annotate_nodes(graph: ir.Graph) -> None:
    for node in graph:
        trusted = (node.domain, node.op_type) in RULES
        for value in node.outputs:
            value.meta.pop(_DIMS, None)
            value.meta.pop(_CONTENTS, None)
            if value.shape is not None and not value.is_graph_output():
                value.shape = (
                    None if trusted else ir.Shape([d if isinstance(d, int) else None for d in value.shape])
                )
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _annotate_body(node, attribute.as_graph())
        with refusing(node):
            infer_node(node)
        if node.op_type == "GroupQueryAttention":
            _settle_width(node)


def _settle_width(node: ir.Node) -> None:
    """A cache is as wide as the heads that an attention puts into it, where the file does not say how wide."""
    for past, present in zip(node.inputs[3:5], node.outputs[1:3], strict=False):
        given, made = (None if value is None else dims(value) for value in (past, present))
        if past is not None and past.is_graph_input() and given and made and isinstance(made[3], int):
            past.meta[_DIMS] = (*given[:3], made[3])


def _annotate_body(node: ir.Node, body: ir.Graph) -> None:
    """A branch or loop body: of its own inputs only what cannot change is believed."""
    for i, value in enumerate(body.inputs):
        carried = node.inputs[i] if node.op_type == "Loop" and i >= 2 and i < len(node.inputs) else None
        if value.type is None and carried is not None and carried.type is not None:
            value.type = carried.type
        if value.shape is not None:
            value.meta[_DIMS] = tuple(
                dim if isinstance(dim, int) else symbol(f"{value.name}#{axis}")
                for axis, dim in enumerate(value.shape)
            )
    _annotate_nodes(body)


def _write(value: ir.Value, fact: Fact, found: Contents | None) -> None:
    value.meta[_CONTENTS] = found
    if fact.dtype is not None and (value.type is None or not value.is_graph_output()):
        value.type = ir.TensorType(fact.dtype)
    if fact.shape is None:
        return
    sizes = fact.shape
    if value.is_graph_output() and value.shape is not None:
        value.meta[_DIMS] = sizes
        return
    known = value.shape
    if known is not None and len(known) == len(sizes):
        sizes = tuple(
            _better(f"{value.name}#{axis}", size, dim)
            for axis, (size, dim) in enumerate(zip(sizes, known, strict=True))
        )
    value.shape = ir.Shape([size if isinstance(size, int) else str(size) for size in sizes])


def _better(own: str, size: Size, known: int | ir.SymbolicDim) -> Size:
    """A dim as inferred, unless that is no more than a name of its own."""
    if size != symbol(own) or known is None:
        return size
    if isinstance(known, int):
        return known
    return size if known.value is None else parse(known.value)


# Other ops ------------------------------------------------------------------------------------------------


def _by_onnx(known: KnownNode) -> list[Fact]:
    """Types and shapes as onnx infers them for one node; what branches agree on."""
    node = known.ir_node
    if node.op_type == "If" and node.domain == "":
        return _of_branches(known)
    if node.op_type == "Loop" and node.domain == "":
        return [Fact(fact.dtype) for fact in known.facts[2:]]
    version = node.graph.opset_imports.get(node.domain, OPSET) if node.graph is not None else OPSET
    if not onnx.defs.has(node.op_type, version, node.domain) or any(
        fact.dtype is None for value, fact in zip(node.inputs, known.facts, strict=True) if value is not None
    ):
        return []
    names = ["" if value is None else f"x{i}" for i, value in enumerate(node.inputs)]
    outputs = [f"y{i}" for i in range(len(node.outputs))]
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, input=names, output=outputs)
    proto.attribute.extend(ir.to_proto(a) for a in node.attributes.values())
    types = {name: _type_of(fact) for name, fact in zip(names, known.facts, strict=True) if name}
    data = {
        name: _tensor_of(fact) for name, fact in zip(names, known.facts, strict=True) if _is_numbers(fact)
    }
    try:
        found = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, version, node.domain),
            proto,
            types,
            data,
            opset_imports=[onnx.helper.make_opsetid(node.domain, version)],
        )
    except onnx.shape_inference.InferenceError:
        return []
    return [_fact_of_type(known, i, found.get(name)) for i, name in enumerate(outputs)]


def _of_branches(known: KnownNode) -> list[Fact]:
    branches = [a.as_graph() for a in known.ir_node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    found = []
    for i, values in enumerate(zip(*(branch.outputs for branch in branches), strict=True)):
        a, b = map(fact_of, values)
        shape = None
        if a.shape is not None and b.shape is not None and len(a.shape) == len(b.shape):
            pairs = enumerate(zip(a.shape, b.shape, strict=True))
            shape = tuple(x if x == y else known.unknown(axis, i) for axis, (x, y) in pairs)
        found.append(Fact(a.dtype if a.dtype == b.dtype else None, shape))
    return found


def _type_of(fact: Fact) -> onnx.TypeProto:
    shape = None if fact.shape is None else [s if isinstance(s, int) else str(s) for s in fact.shape]
    return onnx.helper.make_tensor_type_proto(int(fact.dtype or 0), shape)


def _is_numbers(fact: Fact) -> bool:
    return known_ints(fact) is not None and fact.shape is not None and fact.dtype == ir.DataType.INT64


def _tensor_of(fact: Fact) -> onnx.TensorProto:
    array = np.array(known_ints(fact), np.int64).reshape([s for s in fact.shape or () if isinstance(s, int)])
    return onnx.numpy_helper.from_array(array)


def _fact_of_type(known: KnownNode, output: int, found: onnx.TypeProto | None) -> Fact:
    if found is None or not found.HasField("tensor_type"):
        return UNKNOWN
    tensor, shape = found.tensor_type, None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value
            if dim.HasField("dim_value")
            else parse(dim.dim_param)
            if dim.dim_param
            else known.unknown(axis, output)
            for axis, dim in enumerate(tensor.shape.dim)
        )
    return Fact(ir.DataType(tensor.elem_type) if tensor.elem_type else None, shape)

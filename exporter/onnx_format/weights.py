"""Float tensors of somebody's graph as weights: expressions that are read when they are written.

A tensor is a weight by what reads it: the right operand of a product, the table of a lookup, a gain or a bias. Products
keep their matrix ``[in, out]``, weights are ``[out, in]``, so that a matrix becomes the transpose of what is stored and
everything downstream works on it as on a checkpoint's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from exporter.control import KEEP
from exporter.errors import unsupported
from exporter.stored_weights import Stored, require_finite
from exporter.weight_expressions import Transposed, transposed
from exporter.weight_tensor import WeightTensor
from exporter.weights import Array, Weight

LARGE = 4096
"""Bytes above which a constant in a node becomes an initializer, and below which a tensor is held in memory."""

STORED = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.BFLOAT16: "BF16"}

VECTOR_USERS = {
    "Add": (0, 1),
    "Mul": (0, 1),
    "Gemm": (2,),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4),
    "SkipSimplifiedLayerNormalization": (2, 3),
}
"""Where a vector is a gain or a bias."""

PIECE = 4 << 20
"""Bytes of two tables that are compared at a time."""
PROBE = 4
"""Rows by which two tables are compared before all of them are read."""


def take_weights(model: ir.Model) -> None:
    """Make weights of a model's float initializers, in place. Reads no more than tied tables take to be found.

    Raises:
        OnnxGptError: ``weights-dtype`` (exit 3) for weights in float64.
    """
    graph = model.graph
    _drop_inputs_of_weights(graph)
    _lift_constants(graph)
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None:
            continue
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= LARGE:
            tensor = value.const_value = ir.Tensor(np.array(tensor.numpy()), name=value.name)
        kind = _kind(value, tensor)
        if kind is not None:
            weight = _weight(tensor, str(value.name))
            if kind == "matrix":
                _hold(value, transposed(weight), turned=True)
            else:
                _hold(value, weight, turned=False)
    for node in [node for node in graph if _turns_a_weight(node)]:
        _without_turn(graph, node)
    _merge_ties(graph)


def _hold(value: ir.Value, weight: Weight, *, turned: bool) -> None:
    value.const_value = WeightTensor(str(value.name), weight, transpose=turned)
    value.dtype = ir.DataType.FLOAT
    value.shape = value.const_value.shape


def _drop_inputs_of_weights(graph: ir.Graph) -> None:
    """Old files list every initializer among the inputs; only the contract's own optional input stays one."""
    for value in [value for value in graph.inputs if value.is_initializer() and value.name != KEEP]:
        graph.inputs.remove(value)


def _lift_constants(graph: ir.Graph) -> None:
    """Large Constant nodes as initializers."""
    for node in [node for node in graph if node.op_type == "Constant" and node.domain == ""]:
        attribute = node.attributes.get("value")
        if attribute is None or attribute.value.nbytes <= LARGE:
            continue
        old = node.outputs[0]
        if old.is_graph_output():
            continue
        value = ir.Value(
            name=old.name, type=ir.TensorType(attribute.value.dtype), shape=attribute.value.shape
        )
        value.const_value = attribute.value
        old.name = f"{old.name}.node"
        graph.register_initializer(value)
        ir.convenience.replace_all_uses_with(old, value)
        graph.remove(node, safe=True)


def _kind(value: ir.Value, tensor: ir.TensorProtocol) -> str | None:
    """``matrix``, ``table`` or ``vector`` where a float tensor is used as one."""
    if tensor.dtype not in (*STORED, ir.DataType.DOUBLE) or value.is_graph_output() or not value.uses():
        return None
    uses = [(use.node, use.idx) for use in value.uses()]
    rank = len(tensor.shape)
    if rank == 2 and all(_multiplies(node, index) for node, index in uses):
        return "matrix"
    if rank == 2 and all(_reads_matrix(node, index) for node, index in uses):
        return "table"
    if rank == 1 and tensor.size > 1 and all(i in VECTOR_USERS.get(node.op_type, ()) for node, i in uses):
        return "vector"
    return None


def _multiplies(node: ir.Node, index: int) -> bool:
    if node.op_type == "Gemm" and index == 1:
        return not _flag(node, "transB")
    return node.op_type == "MatMul" and index == 1


def _looks_up(node: ir.Node, index: int) -> bool:
    return index == 0 and node.op_type == "Gather" and not _flag(node, "axis")


def _reads_matrix(node: ir.Node, index: int) -> bool:
    """Whether a node reads a matrix that is no mask and no table of angles."""
    turned = node.op_type in ("Gemm", "FusedMatMul") and index == 1 and _flag(node, "transB")
    return turned or node.op_type == "Transpose" or _looks_up(node, index) or _multiplies(node, index)


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].value)


def _weight(tensor: ir.TensorProtocol, name: str) -> Weight:
    if tensor.dtype not in STORED:
        raise unsupported(
            "weights-dtype", f"{name!r} is stored as {tensor.dtype.name}", "export the model in float32"
        )
    if isinstance(tensor, ir.ExternalTensor):
        shape = tuple(int(dim) for dim in tensor.shape.numpy())
        return Stored(Path(tensor.path), tensor.offset or 0, STORED[tensor.dtype], shape, name)
    return Array(require_finite(tensor.numpy(), name))


# Turned matrices ------------------------------------------------------------------------------------------


def _turns_a_weight(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    matrix = node.inputs[0] if node.op_type == "Transpose" else None
    return matrix is not None and _is_matrix(matrix) and (perm is None or tuple(perm.value) == (1, 0))


def _without_turn(graph: ir.Graph, node: ir.Node) -> None:
    """Turn a stored matrix where it is read and not in the graph; the one turn that stays is a tied table's.

    A head whose transpose is looked up becomes a table whose transpose is multiplied by.
    """
    matrix, out = node.inputs[0], node.outputs[0]
    assert matrix is not None
    looked_up = any(_looks_up(user, index) for user, index in matrix.uses())
    if out.is_graph_output() or looked_up or not out.uses():
        return
    name, weight = str(matrix.name), _weight_of(matrix)
    if all(_looks_up(user, index) for user, index in out.uses()):
        table = _initializer(graph, f"{name}.table", transposed(weight), turned=False)
        ir.convenience.replace_all_uses_with(out, table)
    elif all(_multiplies(user, index) for user, index in out.uses()):
        table = _initializer(graph, f"{name}.turned", weight, turned=True)
        ir.convenience.replace_all_uses_with(out, table)
    else:
        return
    graph.remove(node, safe=True)
    if not matrix.uses():
        del graph.initializers[name]
    elif not _tensor(matrix).transpose and all(_multiplies(user, index) for user, index in matrix.uses()):
        _hold(matrix, transposed(weight), turned=True)


def _initializer(graph: ir.Graph, name: str, weight: Weight, *, turned: bool) -> ir.Value:
    taken = {value.name for node in graph for value in node.outputs} | graph.initializers.keys()
    value = ir.Value(name=next(n for n in _names(name) if n not in taken))
    _hold(value, weight, turned=turned)
    graph.register_initializer(value)
    return value


def _names(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}.{i}" for i in itertools.count(1))


# Ties -----------------------------------------------------------------------------------------------------


def _merge_ties(graph: ir.Graph) -> None:
    """Store once what is the same table twice: a lookup's, and a product's that is its transpose."""
    matrices = [value for value in graph.initializers.values() if _is_matrix(value)]
    groups: dict[tuple[int, ...], list[ir.Value]] = {}
    for value in matrices:
        groups.setdefault(_weight_of(value).shape, []).append(value)
    for same in groups.values():
        tables = [value for value in same if not _tensor(value).transpose]
        for first, second in itertools.combinations(tables, 2):
            if first.uses() and second.uses() and _equal(_weight_of(first), _weight_of(second)):
                ir.convenience.replace_all_uses_with(second, first)
        for table, matrix in itertools.product(tables, same):
            turned = _tensor(matrix).transpose and matrix.uses()
            if turned and _is_looked_up(table) and _equal(_weight_of(table), _weight_of(matrix)):
                _turn_in_graph(graph, table, matrix)
    for value in matrices:
        if not value.uses():
            del graph.initializers[str(value.name)]


def _is_matrix(value: ir.Value) -> bool:
    return isinstance(value.const_value, WeightTensor) and len(value.const_value.shape) == 2


def _is_looked_up(value: ir.Value) -> bool:
    return any(_looks_up(node, index) for node, index in value.uses())


def _tensor(value: ir.Value) -> WeightTensor:
    assert isinstance(value.const_value, WeightTensor)
    return value.const_value


def _weight_of(value: ir.Value) -> Weight:
    return _tensor(value).weight


def _equal(a: Weight, b: Weight) -> bool:
    """Whether two weights of one shape hold the same numbers: by where they lie, by a few rows, then by all."""
    if _place(a) is not None and _place(a) == _place(b):
        return True
    probes = ((0, min(PROBE, a.shape[0])), *a.pieces(PIECE))
    return all(np.array_equal(a.rows(*rows), b.rows(*rows)) for rows in probes)


def _place(weight: Weight) -> tuple[object, ...] | None:
    turned = isinstance(weight, Transposed)
    base = weight.base if isinstance(weight, Transposed) else weight
    return (base.path, base.offset, base.dtype, turned) if isinstance(base, Stored) else None


def _turn_in_graph(graph: ir.Graph, table: ir.Value, matrix: ir.Value) -> None:
    """Let the users of a matrix read the table, turned round by a node."""
    users = [use.node for use in matrix.uses()]
    first = next(node for node in graph if node in users)
    out = ir.Value(name=f"{matrix.name}.turned", type=ir.TensorType(ir.DataType.FLOAT), shape=matrix.shape)
    turn = ir.node("Transpose", [table], {"perm": [1, 0]}, outputs=[out], name=out.name)
    graph.insert_before(first, turn)
    ir.convenience.replace_all_uses_with(matrix, out)

"""f(constants) ⇒ constant; equal expressions are computed once; Identity and dead code go.

Only what is small on both sides is evaluated (`SMALL` bytes), and only by ops that give the same bits
everywhere: integers, shapes, copies and single IEEE operations. Weights are never read. Known dims of a shape
are constants.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from onnx_ir.passes import common

from graph_passes.matching import SMALL, attribute, constant, initializer
from graph_passes.outcome import Outcome

KIND = "exact"

FOLDED = frozenset(
    """
    Abs Add And Cast Concat ConstantOfShape Div Equal Expand Flatten Gather Greater GreaterOrEqual Identity
    Less LessOrEqual Max Min Mul Neg Not Or Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Shape Size
    Slice Sqrt Squeeze Sub Tile Transpose Unsqueeze Where Xor
    """.split()  # noqa: SIM905 (a table)
)
"""Ops that numpy and every runtime compute to the same bits, with the exceptions of `_is_inexact`."""


def apply(model: ir.Model) -> Outcome:
    graph = model.graph
    fired = 0
    for node in list(graph):
        value = _constant_of(node) if node.op_type == "Constant" else _value_of(node, graph)
        if value is not None:
            _become(node, value)
            fired += 1
    before = graph.num_nodes()
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return Outcome(fired + before - graph.num_nodes())


def _constant_of(node: ir.Node) -> ir.TensorProtocol | None:
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    return tensor if tensor is not None and tensor.dtype != ir.DataType.STRING else None


def _value_of(node: ir.Node, graph: ir.Graph) -> ir.TensorProtocol | None:
    """The single output of a node whose inputs are known, where it is small."""
    if node.domain != "" or node.op_type not in FOLDED or len(node.outputs) != 1:
        return None
    if node.op_type == "Shape":
        return _known_dims(node)
    if not node.inputs:
        return None
    arrays = [None if value is None else constant(value) for value in node.inputs]
    if any(a is None and v is not None for a, v in zip(arrays, node.inputs, strict=True)):
        return None
    if _is_inexact(node, [array for array in arrays if array is not None]) or _is_big(node, arrays):
        return None
    result = _evaluate(node, arrays, graph.opset_imports[""])
    return ir.tensor(result) if result.nbytes <= SMALL else None


def _known_dims(node: ir.Node) -> ir.TensorProtocol | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    dims = list(source.shape)[attribute(node, "start", 0) : attribute(node, "end", None)]
    return ir.tensor(np.array(dims, np.int64)) if all(isinstance(dim, int) for dim in dims) else None


def _is_inexact(node: ir.Node, arrays: list[np.ndarray]) -> bool:
    """Sums of floats, whose order is free; divisions and casts on which implementations differ."""
    if node.op_type in ("ReduceSum", "ReduceProd"):
        return arrays[0].dtype.kind == "f"
    if node.op_type == "Div" and arrays[0].dtype.kind in "iu":
        return bool((arrays[0] < 0).any() or (arrays[1] <= 0).any())
    if node.op_type == "Cast":
        return arrays[0].dtype.kind not in "iub" and attribute(node, "to", 0) != ir.DataType.FLOAT
    return False


def _is_big(node: ir.Node, arrays: list[np.ndarray | None]) -> bool:
    """Whether the output could be far larger than the inputs say."""
    if node.op_type in ("ConstantOfShape", "Expand", "Tile"):
        shape = arrays[0] if node.op_type == "ConstantOfShape" else arrays[1]
        return shape is None or bool(np.prod(np.maximum(shape, 1), dtype=np.float64) > SMALL)
    if node.op_type == "Range":
        start, limit, delta = (0 if a is None else a.item() for a in arrays)
        return bool(delta == 0 or abs(limit - start) > SMALL * abs(delta))
    return False


def _evaluate(node: ir.Node, arrays: list[np.ndarray | None], opset: int) -> np.ndarray:
    """Run one node by onnx's reference implementation."""
    feeds = {f"x{i}": array for i, array in enumerate(arrays) if array is not None}
    names = [f"x{i}" if array is not None else "" for i, array in enumerate(arrays)]
    proto = onnx.NodeProto(op_type=node.op_type, input=names, output=["y"])
    proto.attribute.extend(ir.to_proto(attr) for attr in node.attributes.values())
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    graph = onnx.helper.make_graph([proto], "one", inputs, [onnx.ValueInfoProto(name="y")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    (result,) = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    return np.asarray(result)


def _become(node: ir.Node, tensor: ir.TensorProtocol) -> None:
    """Put a constant in a node's place. A graph output keeps its node: a constant cannot take its name."""
    output = node.outputs[0]
    graph = node.graph
    if graph is None or output.is_graph_output():
        return
    tensor.name = output.name
    ir.convenience.replace_all_uses_with(output, initializer(graph, tensor))
    graph.remove(node, safe=True)

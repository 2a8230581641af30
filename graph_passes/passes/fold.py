"""f(constants) ⇒ constant; equal values are computed once; Identity and dead code go.

Values that follow from shapes are known as dims (`graph_passes.inference.facts`): where those are numbers the value
is a constant, and where they are not, one value stands for all that hold the same dims. Else only what is small on
both sides is evaluated (`SMALL` bytes), and only by ops that give the same bits everywhere: integers, copies
and single IEEE operations. Weights are never read.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from onnx_ir.passes import common

from graph_passes.inference.dims import Dim
from graph_passes.inference.facts import contents, dims
from graph_passes.matching import SMALL, attribute, constant, held_by, replace
from graph_passes.outcome import Outcome
from graph_passes.refusal import refusing
from graph_passes.structure.constants import Constants, tensor_key
from graph_passes.structure.identities import bridge_identities

KIND = "exact"

FOLDED = frozenset(
    """
    Abs Add And Cast Concat ConstantOfShape CumSum Div Equal Expand Flatten Gather Greater GreaterOrEqual Identity
    Less LessOrEqual Max Min Mul Neg Not Or Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Shape Size
    Slice Sqrt Squeeze Sub Tile Transpose Trilu Unsqueeze Where Xor
    """.split()  # noqa: SIM905 (a table)
)
"""Ops that numpy and every runtime compute to the same bits, with the exceptions of `_is_inexact`."""

ADDED = 1 << 19
"""Bytes of constants that one run adds at most, all together."""

RANDOM = frozenset(
    """
    Bernoulli Dropout Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike
    """.split()  # noqa: SIM905 (a table)
)
"""Ops that need not give the same twice."""


def apply(model: ir.Model) -> Outcome:
    before = model.graph.num_nodes()
    known = _Known(model.graph)
    for node in list(model.graph):
        known.fold(node)
    bridge_identities(model)
    common.RemoveUnusedNodesPass()(model)
    return Outcome(known.fired + max(0, before - known.fired - model.graph.num_nodes()))


class _Known:
    """Values by what they are, while one walk goes through a graph in topological order."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.fired = 0
        self.added = 0
        self.constants = Constants(graph)
        self.dims: dict[Hashable, ir.Value] = {}
        self.calls: dict[Hashable, ir.Node] = {}

    def fold(self, node: ir.Node) -> None:
        """Put what a node gives in its place, where that is known. A graph output keeps its node: neither a
        constant nor a value of another name can be one."""
        if any(output.is_graph_output() for output in node.outputs):
            self.calls.setdefault(_call_key(node), node)
            return
        with refusing(node):
            found = self._values(node)
        if found is None:
            return
        if node.op_type == "Constant":
            ir.convenience.replace_all_uses_with(node.outputs[0], found[0])
            self.graph.remove(node, safe=True)
        else:
            replace(node, [node], [], list(zip(node.outputs, found, strict=True)))
        self.fired += 1

    def _values(self, node: ir.Node) -> list[ir.Value] | None:
        output = node.outputs[0]
        if node.op_type == "Identity" and node.domain == "" and node.inputs[0] is not None:
            return [node.inputs[0]]
        tensor = _constant_of(node) if node.op_type == "Constant" else _value_of(node, self.graph)
        if tensor is not None and self.added + tensor.nbytes <= ADDED:
            self.added += tensor.nbytes
            tensor.name = output.name
            return [self.constants.of(tensor)]
        if len(node.outputs) == 1:
            key = _dims_key(output)
            first = output if key is None else self.dims.setdefault(key, output)
            if first is not output:
                return [first]
        same = self.calls.setdefault(_call_key(node), node)
        return None if same is node else list(same.outputs)


def _dims_key(value: ir.Value) -> Hashable | None:
    """What an integer tensor holds, where all of it is known."""
    held = contents(value)
    if held is None or None in held or value.dtype is None or value.dtype.is_floating_point():
        return None
    return value.dtype, dims(value), held


def _call_key(node: ir.Node) -> Hashable:
    """Equal for nodes that compute the same."""
    attributes: list[Hashable] = []
    for name, given in sorted(node.attributes.items()):
        if given.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) or given.is_ref():
            return id(node)
        plain = tuple(given.value) if isinstance(given.value, list) else given.value
        attributes.append((name, tensor_key(plain) if isinstance(plain, ir.TensorProtocol) else repr(plain)))
    if node.op_type in RANDOM:
        return id(node)
    outputs = tuple(output.name == "" for output in node.outputs)
    return node.domain, node.op_type, node.overload, tuple(map(id, node.inputs)), outputs, tuple(attributes)


def _constant_of(node: ir.Node) -> ir.TensorProtocol | None:
    """What a Constant node holds, where that is small: a weight that is stored as one stays."""
    tensor = held_by(node)
    if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes > SMALL:
        return None
    return tensor


def _value_of(node: ir.Node, graph: ir.Graph) -> ir.TensorProtocol | None:
    """The single output of a node whose inputs are known, where it is small."""
    if node.domain != "" or len(node.outputs) != 1:
        return None
    held, dtype, shape = contents(node.outputs[0]), node.outputs[0].dtype, dims(node.outputs[0])
    if held is not None and dtype is not None and not dtype.is_floating_point():
        if any(element is None or isinstance(element, Dim) for element in held):
            return None
        return ir.tensor(
            np.array(held, dtype.numpy()).reshape([s for s in shape or () if isinstance(s, int)])
        )
    if node.op_type not in FOLDED or not node.inputs:
        return None
    arrays = [None if value is None else constant(value) for value in node.inputs]
    if any(a is None and v is not None for a, v in zip(arrays, node.inputs, strict=True)):
        return None
    if _is_inexact(node, [array for array in arrays if array is not None]) or _is_big(node, arrays):
        return None
    result = _evaluate(node, arrays, graph.opset_imports[""])
    return ir.tensor(result) if result is not None and result.nbytes <= SMALL else None


def _is_inexact(node: ir.Node, arrays: list[np.ndarray]) -> bool:
    """Sums of floats, whose order is free; divisions and casts on which implementations differ."""
    if node.op_type in ("ReduceSum", "ReduceProd", "CumSum"):
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


def _evaluate(node: ir.Node, arrays: list[np.ndarray | None], opset: int) -> np.ndarray | None:
    """Run one node by onnx's reference implementation; None where that refuses it."""
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
    try:
        (result,) = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    except (LookupError, RuntimeError, TypeError, ValueError):
        return None  # it will say why when the graph is run
    return np.asarray(result)

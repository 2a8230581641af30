"""Nodes that multiply by codes, or look them up, as nodes of floats: one function for each way that codes are kept.

MatMulNBits(x, codes, s) (+ Σx · shift)              ⇒  x · Wᵀ
DQ(Q(x)) · DQ(codes)                                 ⇒  x · Wᵀ
|x| · MatMulIntegerToFloat(Q(x / |x|), codes, s)     ⇒  x · W in blocks of channels
GatherBlockQuantized(codes, i, s) (+ shift)          ⇒  rows of W in blocks of columns
Gather(DQ(codes), i),  s · Cast(Gather(codes, i))    ⇒  rows of W
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporter.weight_tensor import WeightTensor
from exporter.weights import Weight
from graph_passes.matching import MICROSOFT, initializer, make, producer, replace
from onnx_gpt.certificate.tracing.operands import shift_added
from onnx_gpt.certificate.tracing.stored import ColumnBlocks
from onnx_gpt.parity.coded import Coded


class Floats:
    """Float weights of one graph, each kept once for all that read it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._kept: dict[tuple[int, tuple[int, ...]], ir.Value] = {}

    def table(self, weight: Weight) -> ir.Value:
        """``[N, K]``"""
        return self._once(weight, (), WeightTensor("float.weight", weight))

    def in_blocks(self, weight: Weight, dims: tuple[int, ...]) -> ir.Value:
        """The same as ``[C, (G,) K/G, n]`` (`calibration.dynamic.blocks`)."""
        blocks, *groups, width, size = dims

        def made() -> ir.Tensor[np.ndarray]:
            rows = weight.read()
            rows = np.pad(rows, ((0, blocks * size - len(rows)), (0, 0)))
            channels = rows.reshape(blocks, size, *groups, width)
            return ir.Tensor(np.ascontiguousarray(np.moveaxis(channels, 1, -1)), name="float.blocks")

        tensor = ir.LazyTensor(made, ir.DataType.FLOAT, ir.Shape(dims), name="float.blocks")
        return self._once(weight, dims, tensor)

    def _once(self, weight: Weight, form: tuple[int, ...], tensor: ir.LazyTensor) -> ir.Value:
        key = (id(weight), form)
        if key not in self._kept:
            self._kept[key] = initializer(self.graph, tensor)
        return self._kept[key]


def multiply(floats: Floats, one: Coded, weight: Weight) -> None:
    """Let one node multiply by floats, or look them up."""
    node = one.node
    if isinstance(one.stored, ColumnBlocks):
        dims = tuple(int(dim) for dim in one.stored.codes.const_value.shape.numpy())  # type: ignore[union-attr]
        (_blocks_lookup if one.kind == "lookup" else _blocks_product)(node, floats.in_blocks(weight, dims))
    elif node.op_type == "Gather":
        node.replace_input_with(0, floats.table(weight))
    elif one.kind == "lookup":
        _lookup(floats.graph, one, floats.table(weight), weight.shape[1])
    else:
        _product(one, floats.table(weight))


def _product(one: Coded, table: ir.Value) -> None:
    node = one.node
    bias = node.inputs[5] if len(node.inputs) > 5 else None
    name = f"{node.name}.twin"
    inputs = [_unrounded(node.inputs[0]), table]
    product = make("FusedMatMul", inputs, name, domain=MICROSOFT, role=one.role, transB=1)
    new, output = [product], product.outputs[0]
    if bias is not None:
        new.append(make("Add", [output, bias], f"{name}.biased"))
        output = new[-1].outputs[0]
    added = shift_added(node)
    replace(node, [node], new, [(node.outputs[0], output)])
    if added is not None:
        replace(added[0], [added[0]], [], [(added[0].outputs[0], output)])


def _lookup(graph: ir.Graph, one: Coded, table: ir.Value, columns: int) -> None:
    """Rows of the table in blocks, ``[…, K/block, block]``, the last one padded, as the codes came."""
    node = one.node
    name = f"{node.name}.twin"
    rows = make("Gather", [table, node.inputs[1]], name, role=one.role, axis=0)
    new, output = [rows], rows.outputs[0]
    blocks = -(-one.shape[1] // one.block)
    missing = blocks * one.block - columns
    if missing:
        pads = initializer(
            graph, ir.tensor(np.array([0, 0, 0, 0, 0, missing], np.int64), name=f"{name}.pads")
        )
        new.append(make("Pad", [output, pads], f"{name}.padded"))
        output = new[-1].outputs[0]
    shape = initializer(graph, ir.tensor(np.array([0, 0, blocks, one.block], np.int64), name=f"{name}.shape"))
    new.append(make("Reshape", [output, shape], f"{name}.blocks"))
    added = shift_added(node)
    replace(node, [node], new, [(node.outputs[0], new[-1].outputs[0])])
    if added is not None:
        replace(added[0], [added[0]], [], [(added[0].outputs[0], new[-1].outputs[0])])


def _blocks_product(node: ir.Node, blocks: ir.Value) -> None:
    """Inputs as they were before they were divided by their largest one; nothing is to be multiplied by that then."""
    rounding = producer(node.inputs[0], "QuantizeLinear")
    share = producer(rounding.inputs[0], "Div") if rounding is not None else None
    assert share is not None, f"{node.name} rounds its inputs in a way that is not known here"
    (use,) = node.outputs[0].uses()
    assert use.node.op_type == "Mul" and use.node.inputs[1 - use.idx] is share.inputs[1]
    product = make("MatMul", [share.inputs[0], blocks], f"{node.name}.twin")
    replace(use.node, [node, use.node], [product], [(use.node.outputs[0], product.outputs[0])])


def _blocks_lookup(node: ir.Node, blocks: ir.Value) -> None:
    flat = producer(node.inputs[0], "Reshape")
    (use,) = node.outputs[0].uses()
    (scaling,) = use.node.outputs[0].uses()
    assert flat is not None and use.node.op_type == "Cast" and scaling.node.op_type == "Mul"
    flat.replace_input_with(0, blocks)
    flat.outputs[0].type = node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    replace(scaling.node, [scaling.node], [], [(scaling.node.outputs[0], use.node.outputs[0])])


def _unrounded(value: ir.Value | None) -> ir.Value | None:
    """What lies before a pair of Quantize and Dequantize."""
    wide = producer(value, "DequantizeLinear")
    rounding = producer(wide.inputs[0], "QuantizeLinear") if wide is not None else None
    return value if rounding is None else rounding.inputs[0]

"""Quantized weights in standard ONNX: the same integers by DequantizeLinear in blocks, and the way back.

    MatMulNBits(x, codes, scale, b)                 ⇔  x · DequantizeLinear(codesᵀ, scaleᵀ; axis 0) + b
    the same with a table that is looked up too     ⇔  x · Transpose(DequantizeLinear(codes, scale; axis 1))
    reshape(GatherBlockQuantized(codes, i, scale))  ⇔  Gather(DequantizeLinear(codes, scale; axis 1), i)

Codes are unsigned and packed in blocks on the left (`pack`), signed INT4 or INT8 on the right (opset 21 on); scales are
the same numbers. onnxruntime turns the first line back into MatMulNBits when it loads the graph, but dequantizes the
whole table of the last at every step: the right side is for runtimes that have no operators of onnxruntime's, such as
OpenVINO. `to_qdq` goes from left to right, `calibration.quantization.blocks.to_nbits` back.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir as ir

from calibration.quantization.pack import packed_shape, unpack
from exporter.errors import OnnxGptError, unsupported
from graph_passes.matching import MICROSOFT, attribute, initializer, make, producer, replace, role_of

BLOCKED_OPSET = 21
"""The first in which DequantizeLinear takes blocks, and tensors of four bits."""
SIGNED = {4: ir.DataType.INT4, 8: ir.DataType.INT8}


def to_qdq(model: ir.Model) -> int:
    """Write every MatMulNBits and GatherBlockQuantized in standard operators, in place; how many those were.

    No weight is read: codes are rearranged when they are written. After an error the graph is as it was.

    Raises:
        OnnxGptError: ``cannot-twin`` for 2 bits, zero points, a group index or an older opset.
    """
    if model.graph.opset_imports.get("", 0) < BLOCKED_OPSET:
        raise _cannot("the graph", f"its opset has no blocks (it needs {BLOCKED_OPSET})")
    nodes = [node for node in model.graph if node.domain == MICROSOFT]
    products = [_Product.of(node) for node in nodes if node.op_type == "MatMulNBits"]
    lookups = [_Lookup.of(node) for node in nodes if node.op_type == "GatherBlockQuantized"]
    return _ToQdq(model.graph).apply(products, lookups)


@dataclasses.dataclass(frozen=True)
class _Codes:
    """A weight ``[N, K]`` in blocks, as the left side has it."""

    codes: ir.Value
    scale: ir.Value
    bits: int
    block: int
    rows: int
    columns: int


@dataclasses.dataclass(frozen=True)
class _Product:
    node: ir.Node
    codes: _Codes
    bias: ir.Value | None

    @classmethod
    def of(cls, node: ir.Node) -> _Product:
        _, codes, scale, zero, order, bias = [*node.inputs, None, None, None][:6]
        if zero is not None or order is not None:
            raise _cannot(role_of(node), "it has zero points or a group index")
        return cls(node, _codes(node, codes, scale, attribute(node, "N", 0), attribute(node, "K", 0)), bias)


@dataclasses.dataclass(frozen=True)
class _Lookup:
    """A GatherBlockQuantized with what `lowering` puts behind it: ``nodes`` are replaced, the last gives the rows."""

    node: ir.Node
    codes: _Codes
    nodes: tuple[ir.Node, ...]

    @classmethod
    def of(cls, node: ir.Node) -> _Lookup:
        scale, reshape = producer(node.inputs[2], "Unsqueeze"), only_user(node, "Reshape")
        if scale is None or reshape is None or len(node.inputs) > 3:
            raise _cannot(role_of(node), "its blocks do not lie along a row")
        shape = reshape.inputs[1]
        assert shape is not None and shape.const_value is not None and node.inputs[0] is not None
        width = int(shape.const_value.numpy()[-1])
        nodes = [node, reshape]
        cut = only_user(reshape, "Slice")
        if cut is not None and cut.inputs[2] is not None and cut.inputs[2].const_value is not None:
            width = int(cut.inputs[2].const_value.numpy().item())
            nodes.append(cut)
        table = node.inputs[0].const_value
        rows = table.shape.numpy()[0] if table is not None else 0
        return cls(node, _codes(node, node.inputs[0], scale.inputs[0], rows, width), tuple(nodes))


def _codes(node: ir.Node, codes: ir.Value | None, scale: ir.Value | None, rows: int, columns: int) -> _Codes:
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size", 0)
    cast = producer(scale, "Cast")
    stored = cast.inputs[0] if cast is not None else scale
    if bits not in SIGNED or codes is None or codes.const_value is None or stored is None:
        raise _cannot(role_of(node), f"{bits}-bit codes, or none that are constants")
    if stored.const_value is None:
        raise _cannot(role_of(node), "its scales are no constants")
    return _Codes(codes, stored, bits, block, rows, columns)


class _ToQdq:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.wide: dict[tuple[ir.Value, bool], ir.Node] = {}
        self.new: list[ir.Node] = []

    def apply(self, products: list[_Product], lookups: list[_Lookup]) -> int:
        tables = {lookup.codes.codes for lookup in lookups}
        for lookup in lookups:
            rows = self.dequantized(lookup.codes, turned=False)
            indices = lookup.node.inputs[1]
            gather = make("Gather", [rows, indices], str(lookup.node.name), role=role_of(lookup.node), axis=0)
            self.put(lookup.nodes, gather.outputs[0], [gather])
        for product in products:
            node, role = product.node, role_of(product.node)
            turned = product.codes.codes not in tables
            weight = self.dequantized(product.codes, turned=turned)
            new = []
            if not turned:
                new.append(make("Transpose", [weight], f"{node.name}.turned", perm=[1, 0]))
                weight = new[-1].outputs[0]
            new.append(make("MatMul", [node.inputs[0], weight], str(node.name), role=role))
            if product.bias is not None:
                new.append(make("Add", [new[-1].outputs[0], product.bias], f"{node.name}.biased"))
            self.put((node,), new[-1].outputs[0], new)
        return len(products) + len(lookups)

    def dequantized(self, codes: _Codes, *, turned: bool) -> ir.Value:
        """``[K, N]``, or ``[N, K]`` of what is a table too; made once."""
        if (codes.codes, turned) not in self.wide:
            tensor, scale = codes.codes.const_value, codes.scale.const_value
            assert tensor is not None and scale is not None
            name = str(codes.codes.name).removesuffix(".codes")
            stored = initializer(self.graph, _signed(tensor, codes, turned, f"{name}.signed"))
            step = initializer(self.graph, turned_scales(scale, turned, f"{name}.steps"))
            if scale.dtype != ir.DataType.FLOAT:
                self.new.append(make("Cast", [step], f"{name}.steps_float", to=int(ir.DataType.FLOAT)))
                step = self.new[-1].outputs[0]
            axis = 0 if turned else 1
            node = make("DequantizeLinear", [stored, step], f"{name}.wide", axis=axis, block_size=codes.block)
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            self.new.append(node)
            self.wide[codes.codes, turned] = node
        return self.wide[codes.codes, turned].outputs[0]

    def put(self, old: tuple[ir.Node, ...], output: ir.Value, nodes: list[ir.Node]) -> None:
        sources = [value for node in old for value in node.inputs]
        replace(old[0], old, [*self.new, *nodes], [(old[-1].outputs[0], output)])
        self.new = []
        for value in sources:
            remove_unused(self.graph, value)


def _signed(packed: ir.TensorProtocol, codes: _Codes, turned: bool, name: str) -> ir.LazyTensor:
    """Codes of `pack` as signed numbers, ``[K, N]`` or ``[N, K]``."""
    shape = (codes.columns, codes.rows) if turned else (codes.rows, codes.columns)

    def made() -> ir.TensorProtocol:
        flat = packed.numpy().reshape(packed_shape(codes.rows, codes.columns, codes.bits, codes.block))
        numbers = unpack(flat, codes.bits, codes.columns)
        signed = (numbers.astype(np.int16) - (1 << (codes.bits - 1))).astype(np.int8)
        signed = np.ascontiguousarray(signed.T) if turned else signed
        if codes.bits == 8:
            return ir.Tensor(signed, name=name)
        return ir.Tensor(signed.astype(ml_dtypes.int4), dtype=ir.DataType.INT4, name=name)

    return ir.LazyTensor(made, SIGNED[codes.bits], ir.Shape(shape), name=name)


def turned_scales(scale: ir.TensorProtocol, turned: bool, name: str) -> ir.TensorProtocol:
    """Scales ``[N, K/block]`` as the left side has them, or the other way round."""
    rows, blocks = scale.shape.numpy()[:2]

    def made() -> ir.TensorProtocol:
        array = scale.numpy().reshape(rows, blocks)
        return ir.Tensor(np.ascontiguousarray(array.T) if turned else array, name=name)

    return ir.LazyTensor(made, scale.dtype, ir.Shape((blocks, rows) if turned else (rows, blocks)), name=name)


def only_user(node: ir.Node, op_type: str) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    alone = len(uses) == 1 and uses[0].node.op_type == op_type and not node.outputs[0].is_graph_output()
    return uses[0].node if alone else None


def remove_unused(graph: ir.Graph, value: ir.Value | None) -> None:
    """Take away a constant, or what was computed from constants, that nothing reads any more."""
    if value is None or value.uses() or value.is_graph_output():
        return
    node = value.producer()
    if node is None:
        if value.is_initializer() and not value.is_graph_input():
            graph.initializers.pop(str(value.name), None)
        return
    if node.graph is not graph or node.op_type not in ("Cast", "Unsqueeze", "Transpose", "DequantizeLinear"):
        return
    sources = list(node.inputs)
    graph.remove(node, safe=True)
    for source in sources:
        remove_unused(graph, source)


def _cannot(role: str, why: str) -> OnnxGptError:
    return unsupported(
        "cannot-twin",
        f"{role} cannot be written with DequantizeLinear: {why}",
        "quantize to 4 or 8 bits, symmetrically, which is what int4 and int8 do",
    )

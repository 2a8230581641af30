"""What a node multiplies by, looks up or adds: told by its operator and what lies under its inputs."""

from __future__ import annotations

import onnx_ir as ir

from calibration.dynamic.blocks import CHANNELS
from graph_passes.matching import attribute, producer
from onnx_gpt.certificate.tracing.constants import can_evaluate, is_constant, tensor_of
from onnx_gpt.certificate.tracing.stored import Blocks, ColumnBlocks, Dequantized, Plain, Stored


def matrix_of(node: ir.Node) -> Stored | str | None:
    """W ``[N, K]`` of a product or table of a lookup; why it cannot be told; None where a node is neither."""
    kind = node.op_type
    if kind == "MatMulNBits":
        return _blocks(node, node.inputs[1], node.inputs[2], attribute(node, "K", 0), _shift_of(node))
    if kind == "GatherBlockQuantized":
        shape = tensor_of(node.inputs[0]).shape.numpy() if is_constant(node.inputs[0]) else ()
        columns = int(shape[1]) * attribute(node, "block_size", 0) if len(shape) == 3 else 0
        return _blocks(node, node.inputs[0], node.inputs[2], columns, _shift_of(node))
    if CHANNELS in node.metadata_props:
        return _column_blocks(node)
    if kind == "Gather":
        return _plain(node.inputs[0], turned=False)
    if kind in ("MatMul", "FusedMatMul", "Gemm") and len(node.inputs) > 1:
        turned = not attribute(node, "transB", 0)
        return _plain(node.inputs[1], turned=turned)
    return None


def _column_blocks(node: ir.Node) -> Stored | str:
    """What a product or a lookup of `calibration.dynamic` reads."""
    channels = int(node.metadata_props[CHANNELS])
    codes, scale = node.inputs[1], node.inputs[3] if node.op_type == "MatMulIntegerToFloat" else None
    if scale is None:  # Mul(Cast(Gather(Reshape(codes))), Unsqueeze(Gather(Reshape(scale))))
        codes = _under(node.inputs[0], "Reshape")
        cast = next((use.node for use in node.outputs[0].uses()), None)
        product = next((use.node for use in cast.outputs[0].uses()), None) if cast is not None else None
        scale = _under(product.inputs[1], "Unsqueeze", "Gather", "Reshape") if product is not None else None
    if codes is None or scale is None or not is_constant(codes) or not is_constant(scale):
        return "its codes or scales are kept in a way that is not known here"
    return ColumnBlocks(codes, scale, channels)


def _under(value: ir.Value | None, *op_types: str) -> ir.Value | None:
    """What lies under a chain of nodes, each the producer of the one before's first input."""
    for op_type in op_types:
        node = value.producer() if value is not None else None
        value = node.inputs[0] if node is not None and node.op_type == op_type else None
    return value


def vector_of(value: ir.Value | None) -> Plain | None:
    """A vector of floats ``[n]``."""
    found = _plain(value, turned=False)
    return found if isinstance(found, Plain) and len(found.shape) == 1 else None


def _plain(value: ir.Value | None, *, turned: bool) -> Stored | str | None:
    """A float initializer, under casts and turns; or codes of channels under a DequantizeLinear."""
    while value is not None and not is_constant(value):
        node = value.producer()
        if node is None or not node.inputs:
            return None
        if node.op_type == "Transpose":
            turned = not turned
        elif node.op_type == "DequantizeLinear":
            return _dequantized(node, turned) or "it is dequantized in a way that is not known here"
        elif node.op_type not in ("Cast", "Identity"):
            return None
        value = node.inputs[0]
    if value is None or not tensor_of(value).dtype.is_floating_point():
        return None
    return Plain(value, turned)


def _dequantized(node: ir.Node, turned: bool) -> Dequantized | None:
    codes, scale, *zero = node.inputs
    axis = attribute(node, "axis", 1)
    known = is_constant(codes) and can_evaluate(scale) and not any(zero) and axis in (0, 1)
    if codes is None or scale is None or not known or len(tensor_of(codes).shape) != 2:
        return None
    if tensor_of(codes).dtype not in (ir.DataType.INT4, ir.DataType.INT8):
        return None
    return Dequantized(codes, scale, axis, attribute(node, "block_size", 0), turned)


def _blocks(
    node: ir.Node, codes: ir.Value | None, scale: ir.Value | None, columns: int, shift: ir.Value | None
) -> Stored | str:
    plain = codes is not None and scale is not None and is_constant(codes)
    extra = [value for value in node.inputs[3:5] if value is not None]
    if not plain or extra or (tensor_of(codes).dtype != ir.DataType.UINT8) or can_evaluate(scale) is False:
        return "its codes or scales are kept in a way that is not known here"
    assert codes is not None and scale is not None
    return Blocks(codes, scale, shift, attribute(node, "bits", 4), attribute(node, "block_size", 0), columns)


def shift_added(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """What adds the shifts of blocks to a product or a lookup (`calibration.quantization.lowering`), and they."""
    for use in node.outputs[0].uses():
        other = use.node.inputs[1 - use.idx] if use.node.op_type == "Add" else None
        maker = other.producer() if other is not None else None
        if maker is not None and node.op_type == "MatMulNBits":
            # By what it reads: two products meet in an Add too, where attention and feed-forward lie side by side.
            of_sums = maker.op_type == "FusedMatMul" and producer(maker.inputs[0], "ReduceSum") is not None
            shifts = maker.inputs[1] if of_sums else None
        else:
            rows = producer(maker.inputs[0], "Gather") if maker is not None else None
            shifts = rows.inputs[0] if rows is not None else None
        if shifts is not None and can_evaluate(shifts):
            return use.node, shifts
    return None


def _shift_of(node: ir.Node) -> ir.Value | None:
    added = shift_added(node)
    return None if added is None else added[1]

"""Shapes of ops that compute: elementwise, reductions, products, quantization."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graph_passes.inference.dims import Size
from graph_passes.inference.known import Fact, KnownNode, Rule, Shape, broadcast

UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh CumProd CumSum Dropout Elu Erf Exp Floor
    Gelu Hardmax HardSigmoid HardSwish Identity LeakyRelu Log LogSoftmax Mish Neg Not PRelu Reciprocal Relu
    RotaryEmbedding Round ScatterElements ScatterND Selu Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish
    Tan Tanh ThresholdedRelu Trilu TensorScatter
    """.split()  # noqa: SIM905 (a table)
BINARY = "Add BitShift BitwiseAnd BitwiseOr BitwiseXor Div Max Mean Min Mod Mul Pow Sub Sum".split()  # noqa: SIM905
COMPARED = "And Equal Greater GreaterOrEqual Less LessOrEqual Or Xor".split()  # noqa: SIM905
REDUCED = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()  # noqa: SIM905


def _same(node: KnownNode) -> list[Fact]:
    return [Fact(node.dtype(0), node.shape(0))]


def _broadcast(node: KnownNode) -> list[Fact]:
    return [Fact(node.dtype(0), broadcast(node, [fact.shape for fact in node.facts]))]


def _compared(node: KnownNode) -> list[Fact]:
    return [Fact(ir.DataType.BOOL, broadcast(node, [fact.shape for fact in node.facts]))]


def _tested(node: KnownNode) -> list[Fact]:
    return [Fact(ir.DataType.BOOL, node.shape(0))]


def _where(node: KnownNode) -> list[Fact]:
    return [Fact(node.dtype(1), broadcast(node, [fact.shape for fact in node.facts]))]


def _cast(node: KnownNode) -> list[Fact]:
    return [Fact(ir.DataType(node.attribute("to")), node.shape(0))]


def _cast_like(node: KnownNode) -> list[Fact]:
    return [Fact(node.dtype(1), node.shape(0))]


# Reductions and products --------------------------------------------------------------------------------------


def _reduced(node: KnownNode) -> list[Fact]:
    shape, keep = node.shape(0), node.attribute("keepdims", 1)
    dtype = ir.DataType.INT64 if node.ir_node.op_type.startswith("Arg") else node.dtype(0)
    axes: tuple[int, ...] | None
    if node.ir_node.op_type.startswith("Arg"):
        axes = (node.attribute("axis", 0),)
    elif node.names_ints(1, "axes"):
        axes = node.ints(1, "axes")
    else:
        axes = ()
    if shape is None or axes is None:
        return [Fact(dtype, None)]
    if not axes:
        if node.attribute("noop_with_empty_axes", 0):
            return [Fact(dtype, shape)]
        axes = tuple(range(len(shape)))
    gone = {axis % len(shape) for axis in axes}
    sizes = (1 if axis in gone else size for axis, size in enumerate(shape) if keep or axis not in gone)
    return [Fact(dtype, tuple(sizes))]


def _product(node: KnownNode, a: Shape | None, b: Shape | None) -> Shape | None:
    """The shape of a matrix product as MatMul defines it."""
    if a is None or b is None or not a or not b:
        return None
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    batch = broadcast(node, [a[:-2], b[:-2]])
    return None if batch is None else (*batch, *rows, *columns)


def _matmul(node: KnownNode) -> list[Fact]:
    return [Fact(node.dtype(0), _product(node, node.shape(0), node.shape(1)))]


def _matmul_integer(node: KnownNode) -> list[Fact]:
    return [Fact(ir.DataType.INT32, _product(node, node.shape(0), node.shape(1)))]


def _fused_matmul(node: KnownNode) -> list[Fact]:
    a, b = node.shape(0), node.shape(1)
    if node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0):
        return [Fact(node.dtype(0), None)]
    a = (*a[:-2], a[-1], a[-2]) if a and len(a) > 1 and node.attribute("transA", 0) else a
    b = (*b[:-2], b[-1], b[-2]) if b and len(b) > 1 and node.attribute("transB", 0) else b
    return [Fact(node.dtype(0), _product(node, a, b))]


def _gemm(node: KnownNode) -> list[Fact]:
    a, b = node.shape(0), node.shape(1)
    if a is None or b is None:
        return [Fact(node.dtype(0), None)]
    rows, columns = a[1 if node.attribute("transA", 0) else 0], b[0 if node.attribute("transB", 0) else 1]
    return [Fact(node.dtype(0), (rows, columns))]


def _nbits(node: KnownNode) -> list[Fact]:
    a = node.shape(0)
    return [Fact(node.dtype(0), None if a is None else (*a[:-1], node.attribute("N")))]


def _gathered_blocks(node: KnownNode) -> list[Fact]:
    data, indices = node.shape(0), node.shape(1)
    if data is None or indices is None:
        return [Fact(node.dtype(2), None)]
    if node.dtype(0) == ir.DataType.UINT8:
        data = (*data[:-1], data[-1] * (8 // node.attribute("bits", 4)))
    axis = node.attribute("gather_axis", 0) % len(data)
    return [Fact(node.dtype(2), (*data[:axis], *indices, *data[axis + 1 :]))]


def _einsum(node: KnownNode) -> list[Fact]:
    left, arrow, right = node.attribute("equation").replace(" ", "").partition("->")
    shapes = [fact.shape for fact in node.facts]
    if not arrow or "." in left or None in shapes:
        return [Fact(node.dtype(0), None)]
    sizes: dict[str, Size] = {}
    for letters, shape in zip(left.split(","), shapes, strict=True):
        for letter, size in zip(letters, shape or (), strict=True):
            if sizes.get(letter, 1) == 1 or (isinstance(size, int) and size != 1):
                sizes[letter] = size
    return [Fact(node.dtype(0), tuple(sizes[letter] for letter in right))]


def _one_hot(node: KnownNode) -> list[Fact]:
    shape, depth = node.shape(0), node.fact(1).contents
    if shape is None:
        return [Fact(node.dtype(2), None)]
    axis = node.attribute("axis", -1) % (len(shape) + 1)
    size = depth[0] if depth and depth[0] is not None else node.unknown(axis)
    return [Fact(node.dtype(2), (*shape[:axis], size, *shape[axis:]))]


def _quantized(node: KnownNode) -> list[Fact]:
    declared = node.attribute("output_dtype", 0)
    dtype = node.dtype(2) if node.has(2) else ir.DataType(declared or ir.DataType.UINT8)
    return [Fact(dtype, node.shape(0))]


def _dequantized(node: KnownNode) -> list[Fact]:
    return [Fact(node.dtype(1), node.shape(0))]


def _dynamically_quantized(node: KnownNode) -> list[Fact]:
    u8 = ir.DataType.UINT8
    return [Fact(u8, node.shape(0)), Fact(ir.DataType.FLOAT, ()), Fact(u8, ())]


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(UNARY, _same),
    **dict.fromkeys(BINARY, _broadcast),
    **dict.fromkeys(COMPARED, _compared),
    **{f"Reduce{op}": _reduced for op in REDUCED},
    "ArgMax": _reduced,
    "ArgMin": _reduced,
    "Cast": _cast,
    "CastLike": _cast_like,
    "DequantizeLinear": _dequantized,
    "DynamicQuantizeLinear": _dynamically_quantized,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "IsInf": _tested,
    "IsNaN": _tested,
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
    "OneHot": _one_hot,
    "QuantizeLinear": _quantized,
    "Where": _where,
}
"""Rules by op."""

OF_MICROSOFT: Mapping[str, Rule] = {
    **dict.fromkeys(("BiasGelu", "BiasSoftmax", "FastGelu", "Gelu", "QuickGelu", "RotaryEmbedding"), _same),
    "DequantizeLinear": _dequantized,
    "FusedMatMul": _fused_matmul,
    "GatherBlockQuantized": _gathered_blocks,
    "MatMulNBits": _nbits,
    "QuantizeLinear": _quantized,
}
"""Rules by op of onnxruntime's own domain."""

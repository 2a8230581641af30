"""Shapes of ops that compute: elementwise, reductions, products, quantization."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graph_passes.inference.call import Call, Fact, Rule, Shape, broadcast
from graph_passes.inference.dims import Size

UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh CumProd CumSum Dropout Elu Erf Exp Floor
    Gelu Hardmax HardSigmoid HardSwish Identity LeakyRelu Log LogSoftmax Mish Neg Not PRelu Reciprocal Relu
    RotaryEmbedding Round ScatterElements ScatterND Selu Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish
    Tan Tanh ThresholdedRelu Trilu TensorScatter
    """.split()  # noqa: SIM905 (a table)
BINARY = "Add BitShift BitwiseAnd BitwiseOr BitwiseXor Div Max Mean Min Mod Mul Pow Sub Sum".split()  # noqa: SIM905
COMPARED = "And Equal Greater GreaterOrEqual Less LessOrEqual Or Xor".split()  # noqa: SIM905
REDUCED = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()  # noqa: SIM905


def _same(call: Call) -> list[Fact]:
    return [Fact(call.dtype(0), call.shape(0))]


def _broadcast(call: Call) -> list[Fact]:
    return [Fact(call.dtype(0), broadcast(call, [fact.shape for fact in call.facts]))]


def _compared(call: Call) -> list[Fact]:
    return [Fact(ir.DataType.BOOL, broadcast(call, [fact.shape for fact in call.facts]))]


def _tested(call: Call) -> list[Fact]:
    return [Fact(ir.DataType.BOOL, call.shape(0))]


def _where(call: Call) -> list[Fact]:
    return [Fact(call.dtype(1), broadcast(call, [fact.shape for fact in call.facts]))]


def _cast(call: Call) -> list[Fact]:
    return [Fact(ir.DataType(call.attribute("to")), call.shape(0))]


def _cast_like(call: Call) -> list[Fact]:
    return [Fact(call.dtype(1), call.shape(0))]


# Reductions and products --------------------------------------------------------------------------------------


def _reduced(call: Call) -> list[Fact]:
    shape, keep = call.shape(0), call.attribute("keepdims", 1)
    dtype = ir.DataType.INT64 if call.node.op_type.startswith("Arg") else call.dtype(0)
    axes: tuple[int, ...] | None
    if call.node.op_type.startswith("Arg"):
        axes = (call.attribute("axis", 0),)
    elif call.names_ints(1, "axes"):
        axes = call.ints(1, "axes")
    else:
        axes = ()
    if shape is None or axes is None:
        return [Fact(dtype, None)]
    if not axes:
        if call.attribute("noop_with_empty_axes", 0):
            return [Fact(dtype, shape)]
        axes = tuple(range(len(shape)))
    gone = {axis % len(shape) for axis in axes}
    sizes = (1 if axis in gone else size for axis, size in enumerate(shape) if keep or axis not in gone)
    return [Fact(dtype, tuple(sizes))]


def _product(call: Call, a: Shape | None, b: Shape | None) -> Shape | None:
    """The shape of a matrix product as MatMul defines it."""
    if a is None or b is None or not a or not b:
        return None
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    batch = broadcast(call, [a[:-2], b[:-2]])
    return None if batch is None else (*batch, *rows, *columns)


def _matmul(call: Call) -> list[Fact]:
    return [Fact(call.dtype(0), _product(call, call.shape(0), call.shape(1)))]


def _matmul_integer(call: Call) -> list[Fact]:
    return [Fact(ir.DataType.INT32, _product(call, call.shape(0), call.shape(1)))]


def _fused_matmul(call: Call) -> list[Fact]:
    a, b = call.shape(0), call.shape(1)
    if call.attribute("transBatchA", 0) or call.attribute("transBatchB", 0):
        return [Fact(call.dtype(0), None)]
    a = (*a[:-2], a[-1], a[-2]) if a and len(a) > 1 and call.attribute("transA", 0) else a
    b = (*b[:-2], b[-1], b[-2]) if b and len(b) > 1 and call.attribute("transB", 0) else b
    return [Fact(call.dtype(0), _product(call, a, b))]


def _gemm(call: Call) -> list[Fact]:
    a, b = call.shape(0), call.shape(1)
    if a is None or b is None:
        return [Fact(call.dtype(0), None)]
    rows, columns = a[1 if call.attribute("transA", 0) else 0], b[0 if call.attribute("transB", 0) else 1]
    return [Fact(call.dtype(0), (rows, columns))]


def _nbits(call: Call) -> list[Fact]:
    a = call.shape(0)
    return [Fact(call.dtype(0), None if a is None else (*a[:-1], call.attribute("N")))]


def _gathered_blocks(call: Call) -> list[Fact]:
    data, indices = call.shape(0), call.shape(1)
    if data is None or indices is None:
        return [Fact(call.dtype(2), None)]
    if call.dtype(0) == ir.DataType.UINT8:
        data = (*data[:-1], data[-1] * (8 // call.attribute("bits", 4)))
    axis = call.attribute("gather_axis", 0) % len(data)
    return [Fact(call.dtype(2), (*data[:axis], *indices, *data[axis + 1 :]))]


def _einsum(call: Call) -> list[Fact]:
    left, arrow, right = call.attribute("equation").replace(" ", "").partition("->")
    shapes = [fact.shape for fact in call.facts]
    if not arrow or "." in left or None in shapes:
        return [Fact(call.dtype(0), None)]
    sizes: dict[str, Size] = {}
    for letters, shape in zip(left.split(","), shapes, strict=True):
        for letter, size in zip(letters, shape or (), strict=True):
            if sizes.get(letter, 1) == 1 or (isinstance(size, int) and size != 1):
                sizes[letter] = size
    return [Fact(call.dtype(0), tuple(sizes[letter] for letter in right))]


def _one_hot(call: Call) -> list[Fact]:
    shape, depth = call.shape(0), call.fact(1).contents
    if shape is None:
        return [Fact(call.dtype(2), None)]
    axis = call.attribute("axis", -1) % (len(shape) + 1)
    size = depth[0] if depth and depth[0] is not None else call.unknown(axis)
    return [Fact(call.dtype(2), (*shape[:axis], size, *shape[axis:]))]


def _quantized(call: Call) -> list[Fact]:
    declared = call.attribute("output_dtype", 0)
    dtype = call.dtype(2) if call.has(2) else ir.DataType(declared or ir.DataType.UINT8)
    return [Fact(dtype, call.shape(0))]


def _dequantized(call: Call) -> list[Fact]:
    return [Fact(call.dtype(1), call.shape(0))]


def _dynamically_quantized(call: Call) -> list[Fact]:
    u8 = ir.DataType.UINT8
    return [Fact(u8, call.shape(0)), Fact(ir.DataType.FLOAT, ()), Fact(u8, ())]


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

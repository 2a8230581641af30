"""How many weights one token is multiplied by, in a graph of any spelling, quantized or not."""

from __future__ import annotations

import math

import onnx_ir as ir

from graph_passes.matching import attribute

PRODUCTS = {"MatMul", "FusedMatMul", "Gemm", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul"}
"""Operators that multiply by their second operand; QLinearMatMul's is its fourth."""
FACTOR = {"QLinearMatMul": 3}
MOVES = {"DequantizeLinear", "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity"}
"""Operators through which a matrix stays one."""


def weights_multiplied(graph: ir.Graph) -> int:
    """Elements of the constant matrices that products of a graph multiply by; padding of blocks is left out.

    A table that is looked up is not multiplied by; a tied one counts at the head.
    """
    total = 0
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.op_type == "MatMulNBits":
            total += attribute(node, "K", 0) * attribute(node, "N", 0)
        elif node.op_type in PRODUCTS:
            slot = FACTOR.get(node.op_type, 1)
            total += _elements(node.inputs[slot]) if len(node.inputs) > slot else 0
    return total


def _elements(value: ir.Value | None) -> int:
    """Of a constant, moved about or not; 0 for what is computed."""
    while value is not None and not value.is_initializer():
        node = value.producer()
        if node is None or node.op_type not in MOVES:
            return 0
        value = node.inputs[0]
    if value is None or value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return 0
    return math.prod(int(dim) for dim in value.shape if isinstance(dim, int))

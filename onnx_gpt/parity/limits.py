"""What a scheme may cost: budgets by what is in the graph and by the size of the model. docs/parity.md has the table.

A small model loses more than a large one by the same rounding, and 4 bits chosen on text lose a quarter of what
rounding to nearest does. Float graphs have no budget: they are judged by noise (`onnx_gpt.parity.noise`), and the
figures here only keep a reference that is very noisy from excusing everything.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from exporter.onnx_format.halves import HALVES
from exporter.onnx_format.reader import read_file
from onnx_gpt.report import Limits

SIZES = (2_000_000_000, 600_000_000, 60_000_000, 3_000_000, 0)
"""Parameters from which on a column of `BUDGETS` holds."""

BUDGETS: dict[str, tuple[tuple[float, float, float], ...]] = {
    # Mean KL in nats a token, share of the same top choice, perplexity as a multiple of the reference's.
    "none": ((1e-6, 0.999, 1.0001),) * 5,
    "fp16": ((1e-3, 0.98, 1.005),) * 3 + ((2e-3, 0.97, 1.005),) * 2,
    "none, int8 cache": ((0.003, 0.97, 1.01), (0.005, 0.96, 1.01), *((0.01, 0.95, 1.01),) * 3),
    "keep": ((0.003, 0.975, 1.01), (0.005, 0.97, 1.02), (0.01, 0.96, 1.03), *((0.02, 0.92, 1.03),) * 2),
    "int8": ((0.003, 0.975, 1.01), (0.005, 0.97, 1.02), (0.01, 0.96, 1.03), *((0.02, 0.92, 1.03),) * 2),
    "w8a8": ((0.006, 0.96, 1.02), (0.01, 0.95, 1.03), (0.02, 0.93, 1.04), *((0.05, 0.90, 1.05),) * 2),
    "int4, calibrated": (
        *((0.045, 0.92, 1.06), (0.09, 0.88, 1.12), (0.15, 0.82, 1.2)),
        *((0.3, 0.7, 1.4), (0.6, 0.4, 2.0)),
    ),
    "int4": ((0.18, 0.85, 1.25), (0.36, 0.7, 1.5), (0.6, 0.5, 2.0), (0.6, 0.5, 2.0), (1.0, 0.25, 3.0)),
}
"""By scheme, for the sizes of `SIZES`. int8 and keep are what a good 8-bit model is at; calibrated int4 one and a
half times what a good 4-bit model is at, rounded int4 six times: rounding costs that, and the report says how much."""

SELF_LIMIT = {
    **{"none": 1e-6, "fp16": 1e-3, "none, int8 cache": 1e-3},
    **{"int4": 0.05, "int4, calibrated": 0.05},
}
"""Mean KL by which a candidate may differ from itself in another batch or step; `LOSSY_SELF_LIMIT` for the others. One
row and several go through other kernels, and small differences change how inputs are rounded: SmolLM2 in 8 bits is at
0.003, in 4 bits of blocks of 128 at 0.0205."""
LOSSY_SELF_LIMIT = 0.02

P99_FACTOR, MAX_FACTOR = 10.0, 100.0
"""The 99th percentile and the largest KL may be so many times the mean's limit. Of the schemes measured, the percentile
is four to eight times the mean and the largest of 2,500 tokens ten to forty times."""


def limits_of(scheme: str, parameters: int | None) -> Limits:
    """The budget of a scheme; of the smallest models where the size is not known."""
    column = next((i for i, least in enumerate(SIZES) if (parameters or 0) >= least), len(SIZES) - 1)
    max_kl, min_top1, max_ratio = BUDGETS[scheme][column]
    return Limits(max_kl=max_kl, min_top1=min_top1, max_perplexity_ratio=max_ratio)


def self_limit(scheme: str) -> float:
    """Mean KL by which a candidate may differ from itself in another batch or step."""
    return SELF_LIMIT.get(scheme, LOSSY_SELF_LIMIT)


def gate_of(quantize: str, kv_cache: str, method: str = "rtn") -> str:
    """The key of `BUDGETS` for a scheme of weights, a type of cache, and how codes were chosen."""
    if quantize == "none":
        return "none, int8 cache" if kv_cache == "int8" else "none"
    quantize = {"fp16": "fp16", "q4f16": "int4", "dynamic8": "w8a8"}.get(quantize, quantize)
    return "int4, calibrated" if (quantize, method) == ("int4", "gptq") else quantize


# What a graph is -------------------------------------------------------------------------------------------

BLOCKED = {"MatMulNBits", "GatherBlockQuantized", "MatMulBnb4"}
STATIC = {
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearMatMul",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
}
NARROW = (ir.DataType.INT4, ir.DataType.UINT4)


def scheme_of(path: Path) -> str:
    """The scheme that a graph's operators speak of, whoever made it: a key of `BUDGETS`."""
    graph = read_file(path).graph
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    ops = {node.op_type for node in nodes}
    widths = [_bits(node) for node in nodes if node.op_type in BLOCKED]
    widths += [4 for value in graph.initializers.values() if value.dtype in NARROW]
    if widths and min(widths) < 8:
        return "int4"
    if ops & STATIC:
        return "w8a8"
    if widths or any(_is_codes(node) for node in nodes):
        return "int8"
    if computes_in_halves(graph):
        return "fp16"
    if any(value.dtype == ir.DataType.INT8 for value in graph.inputs):
        return "none, int8 cache"
    return "none"


def _bits(node: ir.Node) -> int:
    return node.attributes["bits"].as_int() if "bits" in node.attributes else 4


def _is_codes(node: ir.Node) -> bool:
    """Whether a node turns stored codes into floats."""
    source = node.inputs[0] if node.inputs else None
    return node.op_type == "DequantizeLinear" and source is not None and source.is_initializer()


def computes_in_halves(graph: ir.Graph) -> bool:
    """Whether a half-precision initializer is more than something kept small on disk and widened when it is read."""
    halves = (value for value in graph.initializers.values() if value.dtype in HALVES)
    return any(node.op_type != "Cast" for value in halves for node, _ in value.uses())

"""What a finished graph must not contain: forms that a runtime runs many times slower, wrongly, or not at all.

Measured with onnxruntime 1.32 on CPU; the figures are in docs/experiments.md. Each rule has a code that stays
the same, and says what to do instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

import onnx
import onnx_ir as ir

from exporter.errors import unsupported
from graph_passes.lowering.kernels import CPU_KERNELS
from graph_passes.matching import attribute, role_of

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes that one protobuf message can hold."""

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FLOATS = (*HALF, ir.DataType.FLOAT, ir.DataType.DOUBLE)
SIXTEEN_BITS = (ir.DataType.INT16, ir.DataType.UINT16)

Severity = Literal["error", "warning"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One place where the graph falls off a cliff.

    Attributes:
        code: the rule, e.g. ``nbits-float-zero-points``.
        node: name of the node; empty where it is the whole model.
        role: ``layers.3.ffn.down``, or the node's name where it carries none.
        cause: what is there.
        remedy: what to have instead.
    """

    code: str
    severity: Severity
    node: str
    role: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.code}: {self.role or 'model'}: {self.cause}; {self.remedy}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """A question asked of every node of some ops: the cause where it fell off, else an empty string."""

    code: str
    ops: frozenset[str]
    found: Callable[[ir.Node], str]
    remedy: str
    severity: Severity = "error"


def lint(model: ir.Model) -> tuple[Finding, ...]:
    """All findings of a finished graph, in graph order. Reads no weight."""
    return (*_of_model(model), *(finding for node in _nodes(model) for finding in _of_node(node, model)))


def require_no_cliffs(model: ir.Model) -> tuple[Finding, ...]:
    """Warnings of a graph that has no errors.

    Raises:
        OnnxGptError: ``graph-cliff`` (exit 3), listing every finding that is an error.
    """
    findings = lint(model)
    errors = tuple(str(finding) for finding in findings if finding.severity == "error")
    if errors:
        raise unsupported(
            "graph-cliff",
            f"the graph has {len(errors)} forms that onnxruntime runs very slowly, wrongly or not at all",
            "follow the remedy of each finding, or choose another quantization or target",
            errors,
        )
    return findings


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from ir.traversal.RecursiveGraphIterator(model.graph)
    for function in model.functions.values():
        yield from ir.traversal.RecursiveGraphIterator(function)


def _of_node(node: ir.Node, model: ir.Model) -> Iterator[Finding]:
    for rule in RULES:
        cause = rule.found(node) if node.op_type in rule.ops else ""
        if cause:
            yield Finding(rule.code, rule.severity, str(node.name), role_of(node), cause, rule.remedy)
    if not _has_kernel(node, model):
        yield Finding(
            "no-cpu-kernel",
            "error",
            str(node.name),
            role_of(node),
            f"onnxruntime has no CPU kernel for {node.domain or 'ai.onnx'}::{node.op_type}",
            "express it with other operators",
        )


def _of_model(model: ir.Model) -> Iterator[Finding]:
    inline = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and not isinstance(value.const_value, ir.ExternalTensor | ir.LazyTensor)
    )
    if inline > PROTOBUF_LIMIT:
        cause = f"{inline} bytes of weights are inside the model file, which can hold {PROTOBUF_LIMIT}"
        yield Finding("protobuf-too-large", "error", "", "", cause, "save the weights as external data")


def _has_kernel(node: ir.Node, model: ir.Model) -> bool:
    if node.op_identifier() in model.functions:
        return True
    if node.domain not in CPU_KERNELS:
        return False
    version = model.graph.opset_imports.get("", 1)
    if node.domain == "" and node.op_type == "Attention" and version >= 25:
        return True  # a finding of its own
    if node.op_type in CPU_KERNELS[node.domain] or node.op_type == "Constant":
        return True
    if node.domain != "" or not onnx.defs.has(node.op_type):
        return False
    schema = onnx.defs.get_schema(node.op_type, version)
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


# Rules ----------------------------------------------------------------------------------------------------


def _input(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if i < len(node.inputs) else None


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    if value is None:
        return None
    return value.const_value.dtype if value.const_value is not None else value.dtype


def _float_zero_points(node: ir.Node) -> str:
    if attribute(node, "bits", 4) == 4 and _dtype(_input(node, 3)) in FLOATS:
        return "its 4-bit weights have float zero points (80 times slower)"
    return ""


def _accuracy_level(node: ir.Node) -> str:
    bits = attribute(node, "bits", 4)
    if bits in (2, 8) and attribute(node, "accuracy_level", 0) == 0:
        return f"its {bits}-bit weights have accuracy_level 0 (120 times slower)"
    return ""


def _two_bit_block(node: ir.Node) -> str:
    small = attribute(node, "bits", 4) == 2 and attribute(node, "block_size", 0) == 16
    return "its 2-bit weights have blocks of 16 (80 times slower)" if small else ""


def _no_such_grid(node: ir.Node) -> str:
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size", 0)
    if bits not in (2, 4, 8) or block < 16 or block & (block - 1):
        return f"there is no kernel for {bits} bits in blocks of {block}"
    return ""


def _asymmetric(node: ir.Node) -> str:
    if attribute(node, "bits", 4) == 4 and _dtype(_input(node, 3)) == ir.DataType.UINT8:
        return "its 4-bit weights have zero points (onnxruntime issue 29853: wrong on hosts without AVX-512)"
    return ""


def _group_index(node: ir.Node) -> str:
    return "it has a group index (no prepacking)" if _input(node, 4) is not None else ""


def _dequantized_table(node: ir.Node) -> str:
    table = _input(node, 0)
    maker = table.producer() if table is not None else None
    if maker is None or maker.op_type != "DequantizeLinear" or attribute(node, "axis", 0) != 0:
        return ""
    return "it gathers from a table that is dequantized whole at every step"


def _dequantized_transposed(node: ir.Node) -> str:
    transpose = _input(node, 1)
    maker = transpose.producer() if transpose is not None else None
    if maker is None or maker.op_type != "Transpose" or maker.inputs[0] is None:
        return ""
    source = maker.inputs[0].producer()
    if source is not None and source.op_type == "DequantizeLinear":
        return "its weight is dequantized and then transposed, which does not fuse"
    return ""


def _transposed_weight(node: ir.Node) -> str:
    weight = _input(node, 0)
    if weight is not None and weight.is_initializer() and len(weight.shape or ()) == 2:
        return (
            "a weight is transposed when the model runs (8 times slower), or stored twice when it is loaded"
        )
    return ""


def _sixteen_bits(node: ir.Node) -> str:
    types = {_dtype(_input(node, 2)), _dtype(_input(node, 0)), _dtype(node.outputs[0])}
    declared = (
        attribute(node, "output_dtype", 0) in SIXTEEN_BITS if node.op_type == "QuantizeLinear" else False
    )
    return "it quantizes to 16 bits, which does not fuse" if declared or types & set(SIXTEEN_BITS) else ""


def _half_product(node: ir.Node) -> str:
    for value in node.inputs:
        dtype = _dtype(value)
        if dtype == ir.DataType.BFLOAT16 or (dtype == ir.DataType.FLOAT16 and node.domain == ""):
            return f"it multiplies in {dtype.name.lower()}, for which x86 CPUs have no kernel"
    return ""


def _head_norm(node: ir.Node) -> str:
    if _input(node, 14) is not None or _input(node, 15) is not None:
        return "its norm over heads is inside, which the CPU kernel refuses"
    return ""


def _attention_25(node: ir.Node) -> str:
    graph = node.graph
    version = graph.opset_imports.get("", 0) if graph is not None else 0
    return "the Attention of opset 25 has no CPU kernel" if node.domain == "" and version >= 25 else ""


_NBITS = frozenset(["MatMulNBits"])
_QDQ = frozenset(["QuantizeLinear", "DequantizeLinear"])
_PRODUCTS = frozenset(["MatMul", "Gemm", "FusedMatMul", "MatMulNBits", "GroupQueryAttention"])

RULES: tuple[Rule, ...] = (
    Rule("nbits-float-zero-points", _NBITS, _float_zero_points, "quantize symmetrically"),
    Rule("nbits-accuracy-level-0", _NBITS, _accuracy_level, "set accuracy_level to 4"),
    Rule("nbits-2-bit-block-16", _NBITS, _two_bit_block, "use blocks of 32 or more"),
    Rule("nbits-no-such-grid", _NBITS, _no_such_grid, "use 2, 4 or 8 bits and a power of two from 16 on"),
    Rule("nbits-asymmetric", _NBITS, _asymmetric, "quantize symmetrically", "warning"),
    Rule("nbits-group-index", _NBITS, _group_index, "keep columns in the order of their groups"),
    Rule("table-dequantized", frozenset(["Gather"]), _dequantized_table, "use GatherBlockQuantized"),
    Rule(
        "dequantize-transpose",
        frozenset(["MatMul", "Gemm"]),
        _dequantized_transposed,
        "store the weight as [in, out], quantized along axis 0",
    ),
    Rule(
        "weight-transposed",
        frozenset(["Transpose"]),
        _transposed_weight,
        "use FusedMatMul(transB=1)",
        "warning",
    ),
    Rule("qdq-16-bit", _QDQ, _sixteen_bits, "quantize activations to 8 bits"),
    Rule("half-on-cpu", _PRODUCTS, _half_product, "compute in float32"),
    Rule("attention-head-norm", frozenset(["GroupQueryAttention"]), _head_norm, "normalise before it"),
    Rule("attention-opset-25", frozenset(["Attention"]), _attention_25, "declare opset 23 or 24"),
)

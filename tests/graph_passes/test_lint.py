"""Every cliff is found by its code, and good forms are left alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporter.errors import Exit, OnnxGptError
from graph_passes.lint import PROTOBUF_LIMIT, RULES, lint, require_no_cliffs
from graph_passes.lowering.kernels import CPU_KERNELS


def graph(body: str, inputs: str = "float[4,64] x", opset: int = 23) -> ir.Model:
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    return ir.from_proto(onnx.parser.parse_model(f"{header} g ({inputs}) => (float[M,N] out) {{ {body} }}"))


def nbits(attributes: str, zero_points: str = "", groups: str = "") -> ir.Model:
    """A product with packed weights."""
    extra = ", zp" if zero_points else ", " if groups else ""
    inputs = "float[4,64] x, uint8[32,2,16] w, float[64] s"
    inputs += f", {zero_points} zp" if zero_points else ""
    inputs += f", {groups} gi" if groups else ""
    operands = f"x, w, s{extra}{', gi' if groups else ''}"
    return graph(f"out = com.microsoft.MatMulNBits <K = 64, N = 32, {attributes}> ({operands})", inputs)


GQA = "y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> "
FOUND = {
    "nbits-float-zero-points": nbits("bits = 4, block_size = 32, accuracy_level = 4", "float[64]"),
    "nbits-accuracy-level-0": nbits("bits = 8, block_size = 32"),
    "nbits-2-bit-block-16": nbits("bits = 2, block_size = 16, accuracy_level = 4"),
    "nbits-no-such-grid": nbits("bits = 4, block_size = 48, accuracy_level = 4"),
    "nbits-asymmetric": nbits("bits = 4, block_size = 32, accuracy_level = 4", "uint8[32]"),
    "nbits-group-index": nbits("bits = 4, block_size = 32, accuracy_level = 4", groups="int32[64]"),
    "table-dequantized": graph(
        "t = DequantizeLinear (w, s)  out = Gather (t, i)", "int8[9,8] w, float s, int64[4] i"
    ),
    "dequantize-transpose": graph(
        "d = DequantizeLinear (w, s)  t = Transpose <perm = [1, 0]> (d)  out = MatMul (x, t)",
        "float[4,64] x, int8[8,64] w, float s",
    ),
    "qdq-16-bit": graph(
        "q = QuantizeLinear (x, s, z)  out = DequantizeLinear (q, s, z)", "float[4,64] x, float s, uint16 z"
    ),
    "half-on-cpu": graph("out = MatMul (x, w)", "float16[4,8] x, float16[8,8] w"),
    "attention-head-norm": graph(
        f"{GQA} (x, , , k, v, n, t, , , , , , , , g, g)  out = Identity (y)",
        "float[1,4,64] x, float[1,1,0,16] k, float[1,1,0,16] v, int32[1] n, int32 t, float[16] g",
    ),
    "attention-opset-25": graph("out = Attention (x, x, x)", "float[1,2,3,4] x", opset=25),
    "no-cpu-kernel": graph("out = com.microsoft.GemmFastGelu (x, w)", "float[4,64] x, float[64,8] w"),
}


@pytest.mark.parametrize("code", FOUND)
def test_each_cliff_is_found_by_its_code(code: str) -> None:
    findings = lint(FOUND[code])
    assert {found.code for found in findings} == {code}
    finding = findings[0]
    assert finding.remedy
    if finding.severity == "warning":
        assert require_no_cliffs(FOUND[code]) == findings
        return
    with pytest.raises(OnnxGptError) as caught:
        require_no_cliffs(FOUND[code])
    assert caught.value.code == "graph-cliff"
    assert caught.value.exit == Exit.UNSUPPORTED
    assert any(code in line for line in caught.value.details)


def test_every_rule_has_its_test() -> None:
    tested = {*FOUND, "weight-transposed"}
    assert {rule.code for rule in RULES} <= tested


def test_a_weight_that_is_transposed_at_each_run_is_a_warning() -> None:
    model = graph("t = Transpose <perm = [1, 0]> (w)  out = MatMul (x, t)", "float[4,64] x, float[8,64] w")
    assert lint(model) == ()  # w is computed or fed: nothing to store otherwise
    value = ir.Value(
        name="table", shape=ir.Shape([8, 64]), const_value=ir.tensor(np.zeros((8, 64), np.float32))
    )
    model.graph.register_initializer(value)
    next(n for n in model.graph if n.op_type == "Transpose").replace_input_with(0, value)
    assert [f.code for f in require_no_cliffs(model)] == ["weight-transposed"]


@pytest.mark.parametrize(
    "model",
    [
        nbits("bits = 4, block_size = 32, accuracy_level = 4"),
        nbits("bits = 4, block_size = 128"),
        nbits("bits = 8, block_size = 32, accuracy_level = 4"),
        nbits("bits = 2, block_size = 32, accuracy_level = 4"),
        graph(
            "d = DequantizeLinear <axis = 0> (w, s)  out = MatMul (x, d)",
            "float[4,64] x, int8[64,8] w, float[64] s",
        ),
        graph("c = Gather (w, i)  out = DequantizeLinear (c, s)", "int8[9,8] w, float s, int64[4] i"),
        graph(
            "q = QuantizeLinear (x, s, z)  out = DequantizeLinear (q, s, z)",
            "float[4,64] x, float s, uint8 z",
        ),
        graph("out = Mish (x)"),
        graph("out = Attention (x, x, x)", "float[1,2,3,4] x", opset=24),
    ],
)
def test_good_forms_have_no_findings(model: ir.Model) -> None:
    assert require_no_cliffs(model) == ()


class Large(ir.Tensor):
    """Says that it is large."""

    nbytes = PROTOBUF_LIMIT + 1


def test_a_model_file_beyond_protobuf_is_found() -> None:
    model = graph("out = Add (x, x)")
    value = ir.Value(name="big", const_value=Large(np.zeros(1, np.float32), name="big"))
    model.graph.register_initializer(value)
    (finding,) = lint(model)
    assert finding.code == "protobuf-too-large"


def test_functions_and_subgraphs_are_looked_into() -> None:
    body = "out = If (c) <then_branch = a () => (float[M,N] p) { p = com.microsoft.Nothing (x) },"
    body += " else_branch = b () => (float[M,N] q) { q = Identity (x) }>"
    model = graph(body, "float[4,64] x, bool c")
    assert [finding.code for finding in lint(model)] == ["no-cpu-kernel"]


def test_the_list_of_kernels_is_that_of_the_runtime() -> None:
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    cpu = [k for k in state.get_all_opkernel_def() if k.provider == "CPUExecutionProvider"]
    for domain, names in CPU_KERNELS.items():
        assert names <= {kernel.op_name for kernel in cpu if kernel.domain == domain}

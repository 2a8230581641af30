"""Functions and decided branches are put in place, and older opsets are spelled as opset 23, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from runs import graph, unoptimised

from exporter.build import OPSET
from graph_passes import PassReport, run_pipeline
from graph_passes.structure.upgrade import upgrade

X = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def inlined(model: ir.Model) -> PassReport:
    return run_pipeline(model, "inline")[-1]


def same(model: ir.Model, **feeds: np.ndarray) -> None:
    """Inline, and compare with what it was."""
    before = unoptimised(model).run(None, feeds)
    inlined(model)
    assert model.graph.opset_imports[""] == OPSET
    for a, b in zip(before, unoptimised(model).run(None, feeds), strict=True):
        np.testing.assert_array_equal(a, b)


FUNCTIONS = """
    <ir_version: 9, opset_import: ["" : 18, "mine" : 1, "com.microsoft" : 1]>
    g (float[2,3,4] x) => (float[A,B] y, float[2,3,4] z) {
        a = mine.Scaled <by = 3.0> (x)
        b = mine.Scaled (a)
        y, s = mine.Twice (b)
        z, u = mine.Twice (s)
    }
    <domain: "mine", opset_import: ["" : 18]> Scaled <by: float = 2.0> (x) => (out) {
        c = Constant <value_float: float = @by> ()
        out = Mul (x, c)
    }
    <domain: "mine", opset_import: ["" : 18, "mine" : 1]> Twice (x) => (n, out) {
        t = Add (x, x)
        out = mine.Scaled <by = 0.5> (t)
        axes = Constant <value_ints = [0]> ()
        n = ReduceSum <keepdims = 0> (out, axes)
    }
"""


def test_functions_are_put_in_place_with_their_attributes_and_names_of_their_own() -> None:
    model = ir.from_proto(
        onnx.parser.parse_model(
            FUNCTIONS.replace("(float[A,B] y, float[2,3,4] z)", "(float[3,4] y, float[3,4] z)")
        )
    )
    same(model, x=X)
    assert not model.functions
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(names) == len(set(names))
    assert "Scaled" not in ops(model) and ops(model).count("Mul") == 4


def test_what_the_runtime_has_a_kernel_for_stays_a_call() -> None:
    text = """
        <ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>
        g (float[2,3,4] x) => (float[2,3,4] y) { y = com.microsoft.QuickGelu (x) }
        <domain: "com.microsoft", opset_import: ["" : 20]> QuickGelu (x) => (y) { s = Sigmoid (x)  y = Mul (x, s) }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    inlined(model)
    assert ops(model) == ["QuickGelu"] and model.functions


BRANCHES = "<then_branch = yes () => (float[A,B,C] a) {{ {yes} }}, else_branch = no () => (float[A,B,C] b) {{ {no} }}>"


@pytest.mark.parametrize(
    ("condition", "op"),
    [
        ("c = Constant <value_int = 1> ()  i = Cast <to = 9> (c)", "Neg"),
        ("c = Constant <value_int = 0> ()  i = Cast <to = 9> (c)", "Abs"),
        ("s = Shape (x)  k = Size (s)  three = Constant <value_int = 3> ()  i = Equal (k, three)", "Neg"),
        (
            "s = Shape <start = 1, end = 2> (x)  z = Constant <value_ints = [0]> ()  e = Less (s, z)  i = Squeeze (e)",
            "Abs",
        ),
    ],
)
def test_a_branch_that_shapes_decide_is_put_in_place(condition: str, op: str) -> None:
    branches = BRANCHES.format(yes="t = Add (x, x)  a = Neg (t)", no="t = Add (x, x)  b = Abs (t)")
    model = graph(
        f"{condition}  w = Mul (x, x)  r = If (i) {branches}  out = Add (r, w)",
        "float[B,S,4] x",
        "float[B,S,4] out",
    )
    same(model, x=X)
    assert "If" not in ops(model) and op in ops(model)


def test_a_branch_that_is_not_decided_stays() -> None:
    three = "n = Constant <value_ints = [3]> ()"
    condition = f"s = Shape <start = 1, end = 2> (x)  {three}  e = Less (s, n)  i = Squeeze (e)"
    model = graph(
        f"{condition} out = If (i) {BRANCHES.format(yes='a = Neg (x)', no='b = Abs (x)')}",
        "float[B,S,4] x",
        "float[B,S,4] out",
    )
    same(model, x=X)
    assert "If" in ops(model)


def test_a_decided_branch_inside_an_undecided_one_goes() -> None:
    inner = (
        BRANCHES.format(yes="a = Neg (x)", no="b = Abs (x)")
        .replace("yes ()", "in1 ()")
        .replace("no ()", "in2 ()")
    )
    yes = f"t = Constant <value_int = 1> ()  j = Cast <to = 9> (t)  q = If (j) {inner}  aa = Add (q, x)"
    branches = BRANCHES.format(yes=yes, no="b = Abs (x)").replace(
        "(float[A,B,C] a) { t", "(float[A,B,C] aa) { t"
    )
    model = graph(f"out = If (c) {branches}", "float[2,3,4] x, bool c", "float[A,B,C] out")
    same(model, x=X, c=np.array(True))
    outer = next(node for node in model.graph if node.op_type == "If")
    assert [node.op_type for node in outer.attributes["then_branch"].as_graph()] == [
        "Constant",
        "Cast",
        "Neg",
        "Add",
    ]


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 21])
@pytest.mark.parametrize(
    ("body", "upto"),
    [
        ("out = ReduceMean <axes = [-1], keepdims = 0> (x)", 17),
        ("out = ReduceMax (x)", 23),
        ("out = ReduceSum <axes = [0, 2]> (x)", 12),
        ("u = Unsqueeze <axes = [0, -1]> (x)  out = Neg (u)", 12),
        ("u = Unsqueeze <axes = [0]> (x)  out = Squeeze <axes = [0]> (u)", 12),
        ("a, b = Split <axis = 2, split = [1, 3]> (x)  out = Neg (b)", 12),
        ("a, b = Split <axis = 2> (x)  out = Sub (a, b)", 17),
        ("out = Softmax <axis = 2> (x)", 23),
        ("d = Dropout <ratio = 0.3> (x)  out = Neg (d)", 11),
        ("p = Pow (x, x)  e = Equal (x, x)  n = Not (e)  out = Where (n, p, x)", 23),
    ],
)
def test_older_spellings_mean_the_same(body: str, upto: int, opset: int) -> None:
    if opset <= upto:
        same(graph(body, "float[B,S,4] x", "float[A] out".replace("[A]", ""), opset), x=X)


@pytest.mark.parametrize(
    ("body", "opset", "why"),
    [
        ("out = Softmax <axis = 1> (x)", 11, "more than the last axis"),
        ("out = Neg (x)", 9, "older than 11"),
        ("out = Resize (x, , k)", 13, "means something else"),
    ],
)
def test_what_means_something_else_is_refused_and_left(body: str, opset: int, why: str) -> None:
    model = graph(body, "float[B,S,4] x, float[3] k", "float[B,S,4] out", opset)
    report = inlined(model)
    assert len(report.refused) == 1 and why in report.refused[0]
    assert model.graph.opset_imports[""] == opset


def test_a_newer_graph_stays_in_its_opset() -> None:
    model = graph("out = Neg (x)", "float[2] x", "float[2] out", 24)
    assert upgrade(model, OPSET) == ()
    assert model.graph.opset_imports[""] == 24

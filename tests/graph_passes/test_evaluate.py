"""Pieces of a graph are run as the graph would run them, in float32 and in float64, and nothing is changed."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from decoders import VARIANTS, canonical, decoder, empty_cache, session
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_passes.proof.evaluate import CannotEvaluate, evaluate, evaluate_float64
from graph_passes.proof.subgraph import Subgraph


def graph(body: str, inputs: str = "float[B,S,4] x", opset: int = 23, functions: str = "") -> ir.Model:
    imports = f'["" : {opset}, "com.microsoft" : 1, "own" : 1]'
    text = f"<ir_version: 10, opset_import: {imports}> g ({inputs}) => (float[B,S,4] out) {{ {body} }} {functions}"
    return ir.from_proto(onnx.parser.parse_model(text))


def value(model: ir.Model, name: str) -> ir.Value:
    made = {v.name: v for node in model.graph for v in node.outputs}
    return {v.name: v for v in model.graph.inputs}.get(name) or made[name]


def cut(model: ir.Model, *outputs: str, at: tuple[str, ...] = ()) -> Subgraph:
    return Subgraph.cut(model, [value(model, o) for o in outputs], [value(model, a) for a in at])


X = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_whole_decoder_gives_what_its_session_gives(name: str) -> None:
    described = decoder(**VARIANTS[name])
    model = canonical(described)
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    given = {"input_ids": np.arange(6).reshape(2, 3), "attention_mask": mask, **empty_cache(described, 2)}
    wanted = session(model).run(["logits"], given)[0]
    piece = Subgraph.cut(model, [model.graph.outputs[0]])
    feeds = {v: given[str(v.name)] for v in piece.inputs}
    (single,) = evaluate(piece, feeds)
    np.testing.assert_array_equal(single, wanted)
    (double,) = evaluate_float64(piece, feeds)
    assert double.dtype == np.float64
    scale = np.abs(double).max()
    assert 0 < np.abs(single - double).max() < 1e-4 * scale  # not the same numbers, and close


def test_a_piece_ends_where_it_is_told_to() -> None:
    model = graph("a = Exp (x)  b = Add (a, x)  out = Mul (b, a)")
    piece = cut(model, "out", at=("b",))
    assert [call.op_type for call in piece.nodes] == ["Exp", "Mul"]
    x, b = value(model, "x"), value(model, "b")
    assert set(piece.inputs) == {x, b}
    np.testing.assert_allclose(evaluate(piece, {x: X, b: X})[0], X * np.exp(X), rtol=1e-6)
    with pytest.raises(CannotEvaluate, match="nothing is fed for b"):
        evaluate(piece, {x: X})


def test_what_is_fed_may_also_be_made_by_a_node_of_the_piece() -> None:
    model = graph("a, b = Split <axis = 2, num_outputs = 2> (x)  c = Concat <axis = 2> (a, b)  out = Neg (c)")
    piece = cut(model, "out", at=("a",))
    feeds = {value(model, "x"): X, value(model, "a"): np.zeros((2, 3, 2), np.float32)}
    wanted = -np.concatenate([np.zeros_like(X[..., :2]), X[..., 2:]], axis=2)
    np.testing.assert_array_equal(evaluate(piece, feeds)[0], wanted)


def test_outputs_may_be_inputs_or_be_asked_for_twice() -> None:
    model = graph("out = Neg (x)")
    x, out = value(model, "x"), value(model, "out")
    results = evaluate(Subgraph.cut(model, [x, out, out], [x]), {x: X})
    for result, wanted in zip(results, (X, -X, -X), strict=True):
        np.testing.assert_array_equal(result, wanted)


def test_the_model_is_not_changed() -> None:
    model = graph("a = Relu (x)  out = Sqrt (a)")
    before = ir.to_proto(model).SerializeToString()
    piece = cut(model, "out")
    evaluate(piece, {value(model, "x"): X})
    evaluate_float64(piece, {value(model, "x"): X})
    assert ir.to_proto(model).SerializeToString() == before


def test_a_piece_stays_as_it_was_cut() -> None:
    model = graph("a = Neg (x)  out = Relu (a)")
    piece = cut(model, "out")
    node = value(model, "out").producer()
    assert node is not None
    node.op_type = "Exp"
    node.replace_input_with(0, value(model, "x"))
    np.testing.assert_array_equal(evaluate(piece, {value(model, "x"): X})[0], np.maximum(-X, 0))


BRANCHES = """
    one = Constant <value = int64 {1}> ()  n = Size (x)  many = Greater (n, one)  a = Exp (x)
    b = If (many) <then_branch = t () => (float[B,S,4] y) { y = Add (a, x) },
                   else_branch = e () => (float[B,S,4] z) { z = Identity (x) }>
    out = Neg (b)
"""


def test_branches_read_values_from_outside() -> None:
    model = graph(BRANCHES)
    piece = cut(model, "out")
    assert {"Exp", "If"} <= {call.op_type for call in piece.nodes}
    (result,) = evaluate(piece, {value(model, "x"): X})
    np.testing.assert_allclose(result, -(np.exp(X) + X), rtol=1e-6)
    (double,) = evaluate_float64(piece, {value(model, "x"): X})
    np.testing.assert_allclose(double, -(np.exp(X.astype(np.float64)) + X), rtol=1e-12)


def test_functions_of_the_model_are_taken_along() -> None:
    half = "Half (a) => (b) { c = Constant <value_float = 0.5> ()  b = Mul (a, c) }"
    twice = "Twice (a) => (b) { c = own.Half (a)  b = own.Half (c) }"
    header = '<opset_import: ["" : 23, "own" : 1], domain: "own">'
    model = graph("out = own.Twice (x)", functions=f"{header} {twice} {header} {half}")
    piece = cut(model, "out")
    np.testing.assert_array_equal(evaluate(piece, {value(model, "x"): X})[0], X / 4)
    assert evaluate_float64(piece, {value(model, "x"): X})[0].dtype == np.float64


@given(st.floats(-4, 4))
@settings(max_examples=20, deadline=None)
def test_float64_is_double_all_the_way(x: float) -> None:
    body = "c = Constant <value = float {0.1}> ()  f = Cast <to = 1> (x)  s = Mul (f, c)  e = Erf (s)  out = Exp (e)"
    model = graph(body, "float[B,S,4] x")
    single = np.full((1, 1, 4), x, np.float32)
    (double,) = evaluate_float64(cut(model, "out"), {value(model, "x"): single})
    wanted = math.exp(math.erf(float(single[0, 0, 0]) * float(np.float32(0.1))))
    assert abs(double[0, 0, 0] - wanted) <= 4e-16 * wanted


def test_ops_without_a_double_say_so() -> None:
    model = graph("out = com.microsoft.QuickGelu <alpha = 1.0> (x)")
    piece = cut(model, "out")
    np.testing.assert_allclose(evaluate(piece, {value(model, "x"): X})[0], X / (1 + np.exp(-X)), rtol=1e-5)
    with pytest.raises(CannotEvaluate, match="QuickGelu"):
        evaluate_float64(piece, {value(model, "x"): X})


@pytest.mark.parametrize(
    ("body", "missing"), [("out = Reshape (x, y)", False), ("out = com.microsoft.GemmFastGelu (x, w)", True)]
)
def test_what_onnxruntime_cannot_run_is_told_from_what_it_has_not(body: str, missing: bool) -> None:
    model = graph(body, "float[B,S,4] x, int64[1] y, float[4,4] w")
    feeds = {value(model, "x"): X, value(model, "y"): np.array([7]), value(model, "w"): X.reshape(6, 4)[:4]}
    with pytest.raises(CannotEvaluate) as caught:
        evaluate(cut(model, "out"), feeds)
    assert caught.value.missing == missing


def test_initializers_are_read_where_the_piece_needs_them_and_within_the_limit() -> None:
    model = graph("a = Add (x, w)  out = Mul (a, u)", "float[B,S,4] x, float[B,S,4] w, float[B,S,4] u")
    reads: list[str] = []

    def lazy(name: str) -> ir.LazyTensor:
        def read() -> ir.TensorProtocol:
            reads.append(name)
            return ir.tensor(X, name=name)

        return ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape(X.shape), name=name)

    for name in "wu":
        value(model, name).const_value = lazy(name)
        model.graph.register_initializer(value(model, name))
    (result,) = evaluate(cut(model, "a"), {value(model, "x"): X}, max_bytes=X.nbytes)
    np.testing.assert_array_equal(result, X + X)
    assert reads == ["w"]
    with pytest.raises(CannotEvaluate, match="bytes of initializers"):
        evaluate(cut(model, "out"), {value(model, "x"): X}, max_bytes=X.nbytes)
    (fed,) = evaluate(cut(model, "out"), dict.fromkeys((value(model, n) for n in "xwu"), X), max_bytes=0)
    np.testing.assert_array_equal(fed, (X + X) * X)

"""Each pass by itself: it fires, both sides are equal, and it refuses what it must not touch."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from decoders import VARIANTS, VOCAB, canonical, decoder, empty_cache, run_chunks, session

from exporter.weight_tensor import WeightTensor
from exporter.weights import Array
from graph_passes import ORT_PIPELINE, PassReport, run_pipeline
from graph_passes.matching import MICROSOFT


def of(model: ir.Model, op_type: str, at: int = 0) -> ir.Node:
    return [node for node in model.graph if node.op_type == op_type][at]


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def give_out(model: ir.Model, value: ir.Value) -> None:
    """Make a value an output of the graph, so that it may not disappear."""
    value.shape = None
    value.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(value)


def last(model: ir.Model, pipeline: str) -> PassReport:
    return run_pipeline(model, pipeline)[-1]


def answer(model: ir.Model, described: Any) -> np.ndarray:
    ids = np.random.default_rng(1).integers(0, VOCAB, (2, 9))
    return np.concatenate(
        [x.ravel() for x in run_chunks(session(model), described, [(ids, np.ones_like(ids))])]
    )


def text(body: str, inputs: str, weights: dict[str, np.ndarray] | None = None) -> ir.Model:
    """A graph written in onnx's own notation, with unread weights."""
    header = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>'
    model = ir.from_proto(
        onnx.parser.parse_model(f"{header} g ({inputs}) => (float[B,S,E] out) {{ {body} }}")
    )
    for name, array in (weights or {}).items():
        tensor = WeightTensor(name, Array(array.T if array.ndim == 2 else array), transpose=array.ndim == 2)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        model.graph.register_initializer(value)
        for node in model.graph:
            for i, used in enumerate(node.inputs):
                if used is not None and used.name == name and used is not value:
                    node.replace_input_with(i, value)
        given = next((v for v in model.graph.inputs if v.name == name), None)
        if given is not None:
            model.graph.inputs.remove(given)
    return model


# Exact passes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mqa_tied", "gpt2", "gemma3", "window"])
@pytest.mark.parametrize("tail", ["fold", "clean", "mlp, outline", "attention, clean, opset"])
def test_exact_passes_keep_every_bit(name: str, tail: str) -> None:
    described = decoder(**VARIANTS[name])
    model = canonical(described)
    before = answer(model, described)
    *prefix, name_of_last = tail.split(", ")
    if prefix:
        run_pipeline(model, ", ".join(prefix))
        before = answer(model, described)
    report = last(model, name_of_last)
    assert report.kind == "exact"
    np.testing.assert_array_equal(answer(model, described), before)


def test_fold_computes_constants_once_and_shares_expressions() -> None:
    model = text(
        """a = Constant <value_ints = [2, 3]> ()
           b = Constant <value_ints = [1]> ()
           c = Add (a, b)  d = Mul (c, b)  s = Shape (x)  e = Unsqueeze (y, z)
           r = Reshape (x, d)  q = Reshape (x, d)  t = Identity (q)  out = Add (r, t)  unused = Neg (x)""",
        "float[3,4] x, float[1] y, int64[1] z",
    )
    assert last(model, "fold").fired > 0
    assert ops(model) == ["Reshape", "Add"]
    shape = of(model, "Reshape").inputs[1]
    assert shape is not None and shape.const_value is not None
    np.testing.assert_array_equal(shape.const_value.numpy(), [3, 4])


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("i = Div (a, b)  out = Reshape (x, i)", "integer division of negatives rounds differently"),
        ("out = ConstantOfShape (h)", "its result is large"),
        ("i = RandomNormal <shape = [2]> ()  out = Add (x, i)", "it is random"),
    ],
)
def test_fold_leaves_what_is_inexact_large_or_random(body: str, why: str) -> None:
    constants = "a = Constant <value_ints = [-6, 4]> ()  b = Constant <value_ints = [-1, 1]> ()"
    big = "h = Constant <value_ints = [1000, 1000]> ()"
    model = text(f"{constants} {big} {body}", "float[6,4] x")
    run_pipeline(model, "fold")
    assert any(op in ops(model) for op in ("Div", "ConstantOfShape", "RandomNormal")), why


def test_fold_knows_the_fixed_dims_of_a_shape() -> None:
    model = text("d = Shape <start = 2, end = 3> (x)  s = Shape (x)  out = Sub (s, d)", "float[B,S,8] x")
    run_pipeline(model, "fold")
    assert ops(model) == ["Shape", "Sub"]


# Attention ----------------------------------------------------------------------------------------


def swap_tables(model: ir.Model) -> None:
    node = of(model, "RotaryEmbedding", 1)
    cos, sin = node.inputs[1:3]
    node.replace_input_with(1, sin)
    node.replace_input_with(2, cos)


def other_positions(model: ir.Model) -> None:
    value = ir.Value(name="position_ids", shape=ir.Shape(["B", "S"]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(value)
    for node in (of(model, "RotaryEmbedding", 0), of(model, "RotaryEmbedding", 1)):
        node.replace_input_with(3, value)


def change(op_type: str, at: int = 0, *, to: str) -> Callable[[ir.Model], None]:
    def apply(model: ir.Model) -> None:
        of(model, op_type, at).op_type = to

    return apply


def constant_input(op_type: str, i: int, value: int | list[int], at: int = 0) -> Callable[[ir.Model], None]:
    def apply(model: ir.Model) -> None:
        tensor = ir.tensor(np.array(value, np.int64), name="changed")
        new = ir.Value(name="changed", const_value=tensor)
        model.graph.register_initializer(new)
        of(model, op_type, at).replace_input_with(i, new)

    return apply


def use_rotated(model: ir.Model) -> None:
    give_out(model, of(model, "RotaryEmbedding").outputs[0])


def attribute_of_attention(name: str, value: int) -> Callable[[ir.Model], None]:
    def apply(model: ir.Model) -> None:
        of(model, "Attention").attributes[name] = ir.AttrInt64(name, value)

    return apply


def rotate_interleaved(model: ir.Model) -> None:
    of(model, "RotaryEmbedding").attributes["interleaved"] = ir.AttrInt64("interleaved", 1)


def reversed_count(model: ir.Model) -> None:
    of(model, "CumSum").attributes["reverse"] = ir.AttrInt64("reverse", 1)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (swap_tables, "different tables"),
        (other_positions, "not counted from its attention mask"),
        (reversed_count, "not counted from its attention mask"),
        (use_rotated, "used elsewhere"),
        (rotate_interleaved, "different interleaved"),
        (attribute_of_attention("is_causal", 1), "is_causal"),
        (change("LessOrEqual", to="Less"), "neither causal"),
        (change("And", to="Or"), "not \\(causal and valid\\)"),
        (constant_input("Range", 0, 1), "neither causal"),
        (constant_input("Unsqueeze", 1, [0]), "neither causal"),
        (constant_input("Slice", 1, [0]), "not counted from its attention mask"),
    ],
)
def test_attention_that_is_not_understood_stays(spoil: Callable[[ir.Model], None], reason: str) -> None:
    model = canonical(decoder(layers=1))
    spoil(model)
    report = last(model, "attention")
    assert report.fired == 0
    assert len(report.refused) == 1
    assert re.search(reason, report.refused[0]), report.refused
    assert "Attention" in ops(model)


@pytest.mark.parametrize(
    "spoil",
    [change("Greater", to="GreaterOrEqual"), change("Sub", 2, to="Add"), constant_input("Sub", 1, [0], 2)],
)
def test_windows_that_are_not_understood_stay(spoil: Callable[[ir.Model], None]) -> None:
    model = canonical(decoder(layers=1, window=3))
    spoil(model)
    assert last(model, "attention").fired == 0


def test_heads_that_the_kernel_cannot_run_stay_and_still_work() -> None:
    described = decoder(head_dim=12)
    model = canonical(described)
    before = answer(model, described)
    report = last(model, "attention")
    assert report.fired == 0 and "multiple of 8" in report.refused[0]
    run_pipeline(model, "qkv, keep, norm, mlp, head, clean")
    np.testing.assert_allclose(answer(model, described), before, atol=1e-4)


def test_every_layer_shares_one_count_of_tokens() -> None:
    model = canonical(decoder(layers=5, windows=(3, None)))
    assert last(model, "attention").fired == 5
    attentions = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert len({node.inputs[5] for node in attentions}) == len({node.inputs[6] for node in attentions}) == 1
    assert [node.attributes["local_window_size"].value for node in attentions[::2]] == [3, 3, 3]
    assert "local_window_size" not in attentions[1].attributes


# Linear maps --------------------------------------------------------------------------------------


def test_packed_weights_are_the_three_one_under_the_other() -> None:
    model = canonical(decoder(layers=1, qkv_bias=True))
    parts = [model.graph.initializers[f"layers.0.attention.{which}.weight"].const_value for which in "qkv"]
    wanted = np.concatenate([part.numpy() for part in parts if part is not None], axis=1)
    assert [r.fired for r in run_pipeline(model, "attention, qkv, clean")][1] == 1
    packed = model.graph.initializers["layers.0.attention.qkv.weight"].const_value
    assert packed is not None
    np.testing.assert_array_equal(packed.numpy(), wanted)
    assert "layers.0.attention.q.weight" not in model.graph.initializers
    attention = of(model, "GroupQueryAttention")
    assert attention.inputs[1] is attention.inputs[2] is None


def test_maps_that_something_else_reads_are_not_packed() -> None:
    for which in ("q", "k", "v"):
        model = canonical(decoder(layers=1))
        node = next(n for n in model.graph if n.name == f"layers.0.attention.{which}")
        give_out(model, node.outputs[0])
        report = last(model, "attention, qkv")
        assert report.fired == 0 and "private" in report.refused[0]
    for which in ("gate", "up"):
        model = canonical(decoder(layers=1))
        node = next(n for n in model.graph if n.name == f"layers.0.ffn.{which}")
        give_out(model, node.outputs[0])
        run_pipeline(model, "mlp")
        assert "Split" not in ops(model)


def test_maps_of_different_inputs_or_with_some_biases_are_not_packed() -> None:
    model = canonical(decoder(layers=1))
    node = next(n for n in model.graph if n.name == "layers.0.attention.k")
    node.replace_input_with(0, of(model, "Gather").outputs[0])
    assert "different inputs" in last(model, "attention, qkv").refused[0]
    model = canonical(decoder(layers=1, qkv_bias=True))
    add = next(n for n in model.graph if n.name == "layers.0.attention.k.biased")
    ir.convenience.replace_all_uses_with(add.outputs[0], add.inputs[0])
    assert "only some" in last(model, "clean, attention, qkv").refused[0]


def test_weights_that_are_not_expressions_are_not_packed() -> None:
    model = canonical(decoder(layers=1))
    value = model.graph.initializers["layers.0.attention.k.weight"]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    assert last(model, "attention, qkv").fired == 0


# Norms --------------------------------------------------------------------------------------------

GAIN = {"g": np.linspace(0.5, 1.5, 8, dtype=np.float32)}


@pytest.mark.parametrize(
    ("norm", "fused", "extra"),
    [
        ("n = RMSNormalization <axis = -1, epsilon = 0.01> (s, g)", "SkipSimplifiedLayerNormalization", {}),
        (
            "n = LayerNormalization <axis = -1, epsilon = 0.01> (s, g, b)",
            "SkipLayerNormalization",
            {"b": GAIN["g"] - 1},
        ),
        ("n = LayerNormalization <axis = 2, epsilon = 0.01> (s, g)", "SkipLayerNormalization", {}),
    ],
)
@pytest.mark.parametrize(
    ("summed", "used"),
    [("s = Add (x, y)", True), ("s = Add (x, y)", False), ("z = Add (y, c)  s = Add (x, z)", True)],
)
def test_sum_and_norm_become_one(
    norm: str, fused: str, extra: dict[str, np.ndarray], summed: str, used: bool
) -> None:
    tail = "out = Mul (n, s)" if used else "out = Mul (n, x)"
    weights = {**GAIN, **extra, "c": GAIN["g"] * 2}
    model = text(f"{summed} {norm} {tail}", "float[B,S,8] x, float[B,S,8] y", weights)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 3, 8)).astype(np.float32) for name in "xy"}
    before = session(model).run(None, feeds)[0]
    assert last(model, "norm, clean, norm").fired == 0
    assert fused in ops(model) and "Add" not in ops(model)
    np.testing.assert_allclose(session(model).run(None, feeds)[0], before, rtol=1e-5, atol=1e-6)
    assert len(of(model, fused).outputs) == (4 if used else 1)


@pytest.mark.parametrize(
    ("body", "inputs", "reason"),
    [
        (
            "s = Add (x, y)  out = RMSNormalization <axis = -1> (s, g)",
            "float[B,S,8] x, float[1,S,8] y",
            "same shape",
        ),
        (
            "s = Add (x, y)  out = RMSNormalization <axis = -1> (s, g)",
            "float[B,S,8] x, float[8] y",
            "same shape",
        ),
        (
            "s = Add (x, y)  out = RMSNormalization <axis = -1> (s, g)",
            "float[B,S,8] x, float y",
            "same shape",
        ),
        (
            "s = Add (x, y)  out = RMSNormalization <axis = 1> (s, g)",
            "float[B,S,8] x, float[B,S,8] y",
            "last axis",
        ),
        (
            "s = Add (x, y)  out = RMSNormalization <axis = -1> (s, h)",
            "float[B,S,8] x, float[B,S,8] y, float[1,1,8] h",
            "vector",
        ),
        (
            "s = Add (x, y)  out = RMSNormalization <axis = -1> (s, h)",
            "float[B,S,8] x, float[B,S,8] y, float[1] h",
            "vector",
        ),
        (
            "s = Add (x, y)  out = RMSNormalization <axis = -1> (s, g)",
            "float[S,8] x, float[S,8] y",
            "\\[B, S, E\\]",
        ),
        (
            "s = Add (x, y)  out, m = LayerNormalization <axis = -1> (s, g)  k = Add (m, m)",
            "float[B,S,8] x, float[B,S,8] y",
            "statistics",
        ),
    ],
)
def test_norms_of_other_sums_stay(body: str, inputs: str, reason: str) -> None:
    model = text(body, inputs, GAIN)
    report = last(model, "norm")
    assert report.fired == 0
    assert re.search(reason, report.refused[0]), report.refused


def test_either_norm_can_be_left_as_it_is() -> None:
    for name, option in (("llama", "rms"), ("gpt2", "layer")):
        model = canonical(decoder(**VARIANTS[name]))
        assert last(model, f"norm{{{option}=false}}").fired == 0
        assert last(model, "norm").fired > 0


def test_a_sum_that_two_norms_read_is_fused_once_and_given_out() -> None:
    model = text(
        """s = Add (x, y)  a = RMSNormalization <axis = -1> (s, g)  b = RMSNormalization <axis = -1> (s, g2)
           out = Add (a, b)""",
        "float[B,S,8] x, float[B,S,8] y",
        {**GAIN, "g2": GAIN["g"] * 3},
    )
    feeds = {"x": np.ones((1, 2, 8), np.float32), "y": np.arange(16, dtype=np.float32).reshape(1, 2, 8)}
    before = session(model).run(None, feeds)[0]
    assert last(model, "norm").fired == 1
    np.testing.assert_allclose(session(model).run(None, feeds)[0], before, rtol=1e-6)


# Feed-forward, head and kept logits ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("s = Sigmoid (x)  out = Mul (x, s)", ["QuickGelu"]),
        ("s = Sigmoid (x)  out = Mul (s, x)", ["QuickGelu"]),
        ("s = Sigmoid (y)  out = Mul (x, s)", ["Sigmoid", "Mul"]),
        ("s = Sigmoid (x)  m = Mul (x, s)  out = Add (m, s)", ["Sigmoid", "Mul", "Add"]),
        ('a = Add (x, g)  out = Gelu <approximate = "tanh"> (a)', ["FastGelu"]),
        ("a = Add (x, g)  out = Gelu (a)", ["Add", "Gelu"]),
        ('a = Add (x, y)  out = Gelu <approximate = "tanh"> (a)', ["Add", "Gelu"]),
        ('a = Add (x, g)  m = Gelu <approximate = "tanh"> (a)  out = Add (m, a)', ["Add", "Gelu", "Add"]),
    ],
)
def test_activations(body: str, wanted: list[str]) -> None:
    model = text(body, "float[B,S,8] x, float[B,S,8] y", GAIN)
    feeds = {name: np.linspace(-4, 4, 16, dtype=np.float32).reshape(1, 2, 8) for name in "xy"}
    before = session(model).run(None, feeds)[0]
    run_pipeline(model, "mlp")
    assert ops(model) == wanted
    np.testing.assert_array_equal(session(model).run(None, feeds)[0], before)


def test_the_quick_gelu_of_a_scaled_sigmoid() -> None:
    body = "c = Constant <value_float = 1.702> ()  z = Mul (c, x)  s = Sigmoid (z)  out = Mul (x, s)"
    model = text(body, "float[B,S,8] x")
    feeds = {"x": np.linspace(-4, 4, 16, dtype=np.float32).reshape(1, 2, 8)}
    before = session(model).run(None, feeds)[0]
    run_pipeline(model, "fold, mlp")
    assert ops(model) == ["QuickGelu"]
    np.testing.assert_allclose(session(model).run(None, feeds)[0], before, rtol=1e-6)


@pytest.mark.parametrize("perm", ["[1, 0]", "[0, 1]"])
def test_a_tied_table_is_not_transposed(perm: str) -> None:
    model = text(f"t = Transpose <perm = {perm}> (w)  out = MatMul (x, t)", "float[B,S,8] x, float[8,8] w")
    value = ir.Value(
        name="table", shape=ir.Shape([8, 8]), const_value=WeightTensor("table", Array(np.eye(8)))
    )
    model.graph.register_initializer(value)
    of(model, "Transpose").replace_input_with(0, value)
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    before = session(model).run(None, {"x": x, "w": np.zeros((8, 8), np.float32)})[0]
    assert last(model, "head").fired == (perm == "[1, 0]")
    after = session(model).run(None, {"x": x, "w": np.zeros((8, 8), np.float32)})[0]
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "fired"),
    [
        ("h = MatMul (x, w)  out = Slice (h, a, e, one)", True),
        (
            "h = MatMul (x, w)  r = Add (h, x)  q = RMSNormalization (r, g)  out = Slice (q, a, e, one)",
            True,
        ),
        ("h = MatMul (x, w)  q = RMSNormalization <axis = 1> (h, g2)  out = Slice (q, a, e, one)", False),
        ("h = MatMul (x, w)  o = Slice (h, a, e, one)  m = ReduceMax (h)  out = Add (o, m)", False),
        ("h = MatMul (x, w)  out = Slice (h, a, e, two)", False),
        ("h = MatMul (x, x)  out = Slice (h, a, e, one)", False),
        ("h = Add (x, x)  out = Slice (h, a, e, one)", False),
    ],
)
def test_only_maps_of_single_tokens_are_kept_short(body: str, fired: bool) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((8, 8)).astype(np.float32),
        "g2": np.ones((8, 8), np.float32)[0],
        **GAIN,
    }
    constants = "one = Constant <value_ints = [1]> ()  two = Constant <value_ints = [2]> ()"
    constants += "  e = Constant <value_ints = [9223372036854775807]> ()"
    model = text(f"{constants} {body}", "float[B,8,8] x, int64[1] a", weights)
    run_pipeline(model, "fold")
    feeds = {"x": rng.standard_normal((2, 8, 8)).astype(np.float32), "a": np.array([-3])}
    before = session(model).run(None, feeds)[0] if "axis = 1>" not in body else None
    assert last(model, "keep").fired == int(fired)
    if before is not None:
        np.testing.assert_allclose(session(model).run(None, feeds)[0], before, atol=1e-5)


def test_an_older_opset_is_declared_only_where_every_op_has_it() -> None:
    model = canonical(decoder(layers=1))
    report = last(model, "opset")
    assert report.fired == 0 and model.graph.opset_imports[""] == 23
    assert any("RotaryEmbedding" in reason for reason in report.refused)
    report = last(model, "attention, qkv, keep, norm, mlp, head, clean, opset")
    assert report.fired == 1 and model.graph.opset_imports[""] == 21
    assert "RMSNormalization" not in ops(model)
    assert {node.domain for node in model.graph} == {"", MICROSOFT}
    ids = np.ones((1, 3), np.int64)
    session(model).run(None, {"input_ids": ids, "attention_mask": ids, **empty_cache(decoder(layers=1), 1)})


def test_outlined_functions_run_the_same_kernels(tmp_path: Path) -> None:
    def kernels(pipeline: str) -> collections.Counter[str]:
        model = canonical(decoder())
        run_pipeline(model, pipeline)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
        return collections.Counter(node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node)

    assert "outline" in ORT_PIPELINE
    assert kernels(ORT_PIPELINE) == kernels(ORT_PIPELINE.replace("outline, ", ""))


@pytest.mark.parametrize("spoil", ["split", "activation", "order"])
def test_gates_that_something_else_reads_are_not_outlined(spoil: str) -> None:
    model = canonical(decoder(layers=1))
    run_pipeline(model, "mlp")
    if spoil == "order":  # a · act(b) is not act(a) · b
        split, gate = of(model, "Split"), of(model, "QuickGelu")
        gate.replace_input_with(0, split.outputs[1])
        next(n for n in model.graph if n.op_type == "Mul").replace_input_with(1, split.outputs[0])
    else:
        give_out(model, of(model, {"split": "Split", "activation": "QuickGelu"}[spoil]).outputs[0])
    assert last(model, "outline").fired == 0
    assert not model.functions

"""The graph step: quantized nodes compute what dequantized weights would; nothing is left out silently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir import tape
from small_graphs import initializer, model, multiply, ops, random, run, tied

from calibration.quantization import rtn
from calibration.quantization.weight_only import quantize_weights
from calibration.scheme import Grid, RoundToNearest, scheme_of
from exporter.build import build
from exporter.emitter import ROLE
from exporter.errors import OnnxGptError
from exporter.families.llama import Config, describe
from exporter.weight_tensor import WeightTensor
from exporter.weights import Array, Weight
from graph_passes import ORT_PIPELINE, run_pipeline

INT8_ACTIVATIONS = 0.015
"""Relative error of a product whose activations are rounded to int8 in each block."""


def dequantized(weight: Weight, grid: Grid) -> np.ndarray:
    coded = rtn.quantize(weight.read(), grid)
    scale = np.repeat(coded.scale.astype(np.float32), grid.block_size, axis=1)[:, : weight.shape[1]]
    return scale * (coded.codes.astype(np.float32) + grid.low)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("K", [128, 80, 20])
@pytest.mark.parametrize("grid", [Grid(2, 32), Grid(4, 16), Grid(4, 32), Grid(8, 32), Grid(8, 64)], ids=str)
def test_a_product_is_that_of_the_dequantized_weight(grid: Grid, K: int, tmp_path: Path) -> None:
    weight, bias = random(48, K), np.linspace(-3, 3, 48, dtype=np.float32)
    graph = multiply(weight, bias)
    done = quantize_weights(graph, RoundToNearest(grid, grid))
    assert [(t.role, t.op, t.shape, t.bits, t.block_size, t.reason) for t in done if not t.reason] == [
        ("layers.0.ffn.down", "MatMulNBits", (48, K), grid.bits, grid.block_size, "")
    ]
    assert ops(graph) == ["Cast", "MatMulNBits"]  # the bias went into the product
    x = np.random.default_rng(1).standard_normal((2, 3, K)).astype(np.float32)
    expected = x @ dequantized(weight, grid).T + bias
    (y,) = run(graph, tmp_path, x=x)
    assert difference(y - bias, expected - bias) < INT8_ACTIVATIONS
    if grid.bits == 4:
        (y,) = run(graph, tmp_path / "exact", exact=True, x=x)
        assert difference(y, expected) < 1e-6


@pytest.mark.parametrize("K", [96, 72])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["int4", "int8"])
def test_a_tied_table_is_stored_once_and_its_rows_are_exact(
    name: str, fused: bool, K: int, tmp_path: Path
) -> None:
    weight = random(50, K)
    graph = tied(weight, fused=fused)
    scheme = scheme_of(name)
    assert isinstance(scheme, RoundToNearest)
    roles = [(t.role, t.op) for t in quantize_weights(graph, scheme)]
    assert roles == [("embedding", "GatherBlockQuantized"), ("head", "MatMulNBits")]
    tensors = {v.name for v in graph.graph.initializers.values() if isinstance(v.const_value, ir.LazyTensor)}
    assert tensors == {"embedding.codes", "embedding.scale"}
    users = {node.op_type for node, _ in graph.graph.initializers["embedding.codes"].uses()}
    assert users == {"GatherBlockQuantized", "MatMulNBits"}
    assert ops(graph).count("Cast") == 1
    ids = np.array([[0, 49, 7], [3, 3, 12]])
    rows, logits = run(graph, tmp_path, ids=ids)
    table = dequantized(weight, scheme.table)
    assert np.array_equal(rows, table[ids])
    assert difference(logits, table[ids] @ table.T) < INT8_ACTIVATIONS


@pytest.mark.parametrize("fused", [False, True])
def test_what_reads_a_rewritten_value_reads_the_new_one(fused: bool) -> None:
    graph = tied(random(64, 32), fused=fused)  # the head reads what the lookup gives, and both are rewritten
    quantize_weights(graph, scheme_of("int4"))
    graph.graph.sort()
    known = {*graph.graph.inputs, *graph.graph.initializers.values()}
    for node in graph.graph:
        assert known.issuperset(value for value in node.inputs if value is not None), node.name
        known.update(node.outputs)


@pytest.mark.parametrize("name", ["int4", "w8a8"])
def test_a_block_of_no_columns_is_refused(name: str) -> None:
    with pytest.raises(OnnxGptError, match="a block of 0"):
        scheme_of(name, block_size=0)


def test_embedding_and_head_may_have_a_grid_of_their_own() -> None:
    graph = tied(random(50, 64))
    done = quantize_weights(graph, scheme_of("int4", table_bits=8))
    assert {t.bits for t in done} == {8}
    done = quantize_weights(multiply(random(50, 64)), scheme_of("int4", table_bits=8))
    assert {t.bits for t in done} == {4}
    done = quantize_weights(multiply(random(50, 64), role="head"), scheme_of("int4", table_bits=8))
    assert {t.bits for t in done} == {8}


CONFIG = {
    "vocab_size": 70,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": True,
}


@pytest.mark.parametrize("pipeline", ["", ORT_PIPELINE], ids=["canonical", "ort"])
@pytest.mark.parametrize("tie", [False, True])
def test_a_decoder_computes_what_its_dequantized_weights_do(pipeline: str, tie: bool, tmp_path: Path) -> None:
    decoder = describe(Config.parse({**CONFIG, "tie_word_embeddings": tie}, "llama"))
    rng = np.random.default_rng(0)
    weights: dict[str, Weight] = {}
    rounded: dict[str, Weight] = {}
    grid = Grid(8, 32)
    for role, part in decoder.parts():
        spread = part.shape[-1] ** -0.5 if len(part.shape) == 2 else 0.1
        weights[role] = Array((spread * rng.standard_normal(part.shape)).astype(np.float32))
        rounded[role] = Array(dequantized(weights[role], grid)) if len(part.shape) == 2 else weights[role]
    graph, reference = build(decoder, weights), build(decoder, rounded)
    for each in (graph, reference):
        run_pipeline(each, pipeline)
    done = quantize_weights(graph, RoundToNearest(grid, grid))
    matrices = [t for t in done if t.bits]
    assert len(matrices) == (2 * (4 if pipeline else 7)) + 2
    assert {t.reason for t in done if not t.bits} == {"a vector, not a matrix"}
    assert not {"Gather", "MatMul", "FusedMatMul", "Transpose"} & {
        node.op_type for node in graph.graph if ROLE in node.metadata_props
    }
    feeds: dict[str, np.ndarray] = {
        "input_ids": np.array([[5, 69, 0, 12]]),
        "attention_mask": np.ones((1, 4), np.int64),
    }
    for i in range(2):
        for which in ("key", "value"):
            feeds[f"past_key_values.{i}.{which}"] = np.zeros((1, 2, 0, 16), np.float32)
    got = run(graph, tmp_path / "quantized", **feeds)[0]
    expected = run(reference, tmp_path / "float", **feeds)[0]
    assert difference(got, expected) < 2 * INT8_ACTIVATIONS


def test_positions_stay_float_and_are_reported() -> None:
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["B", "S"]))
    table, nodes = initializer(WeightTensor("positions.weight", random(32, 64))), tape.Tape()
    rows = nodes.op("Gather", [table, ids], name="positions.rows", metadata_props={ROLE: "positions"})
    graph = model([ids], [rows], nodes, [table])
    (done,) = quantize_weights(graph, scheme_of("int8"))
    assert (done.role, done.bits) == ("positions", None)
    assert "positions" in done.reason
    assert ops(graph) == ["Gather"]


def test_a_matrix_that_is_no_linear_map_is_refused() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", 64]))
    table, nodes = initializer(WeightTensor("layers.0.ffn.up.weight", random(64, 32))), tape.Tape()
    graph = model([x], [nodes.op("Gemm", [x, table], name="up")], nodes, [table])
    with pytest.raises(OnnxGptError, match=r"layers\.0\.ffn\.up.*Gemm") as caught:
        quantize_weights(graph, scheme_of("int8"))
    assert caught.value.code == "cannot-quantize"


def test_a_constant_of_a_foreign_graph_is_a_weight_too(tmp_path: Path) -> None:
    weight = random(40, 64)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", "S", 64]))
    table, nodes = initializer(ir.tensor(weight.read().T.copy(), name="onnx::MatMul_7")), tape.Tape()
    graph = model([x], [nodes.op("MatMul", [x, table], name="/down/MatMul")], nodes, [table])
    (done,) = quantize_weights(graph, scheme_of("int8"))
    assert (done.role, done.op) == ("/down/MatMul", "MatMulNBits")
    value = np.ones((1, 2, 64), np.float32)
    (y,) = run(graph, tmp_path, x=value)
    assert difference(y, value @ dequantized(weight, Grid(8, 32)).T) < INT8_ACTIVATIONS

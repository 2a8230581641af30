"""MatMulNBits and DequantizeLinear in blocks: the same integers, the same scales, the same function, both ways."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.quantization.blocks import to_nbits
from calibration.quantization.pack import unpack
from calibration.quantization.qdq import to_qdq
from calibration.quantization.weight_only import quantize_weights
from calibration.scheme import Grid, RoundToNearest
from exporter.errors import Exit, OnnxGptError
from exporter.weights import Array
from tests.calibration.small_graphs import multiply, ops, quantized, tied
from tests.graph_passes.decoders import VARIANTS, canonical, decoder


def values(model: ir.Model, *, integers: bool = True) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and (integers or value.const_value.dtype != ir.DataType.INT64)
    }


def run(model: ir.Model, feeds: dict[str, np.ndarray], *, exact: bool = True) -> list[np.ndarray]:
    """With float activations: MatMulNBits at accuracy level 0, DequantizeLinear unfused."""
    levels = {}
    for node in model.graph:
        if exact and node.op_type == "MatMulNBits":
            levels[node] = node.attributes["accuracy_level"]
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    basic = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # folds the cast of scales, which the kernel wants
    options.graph_optimization_level = basic if exact else ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    found = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options).run(None, feeds)
    for node, level in levels.items():
        node.attributes["accuracy_level"] = level
    return list(found)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 64]),
    st.integers(1, 20),
    st.integers(1, 150),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_a_product_has_the_same_integers_scales_and_function(
    bits: int, block: int, rows: int, columns: int, biased: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = Array(rng.standard_normal((rows, columns)).astype(np.float32))
    model = multiply(weight, rng.standard_normal(rows).astype(np.float32) if biased else None)
    quantize_weights(model, RoundToNearest(Grid(bits, block), Grid(bits, block)))
    feeds = {"x": rng.standard_normal((1, 3, columns)).astype(np.float32)}
    before, wanted = values(model), run(model, feeds)
    packed = next(array for name, array in before.items() if name.endswith(".codes"))
    scale = next(array for name, array in before.items() if name.endswith(".scale"))

    assert to_qdq(model) == 1
    assert "MatMulNBits" not in ops(model) and all(not node.domain for node in model.graph)
    assert ("Add" in ops(model)) == biased
    after = values(model)
    signed = next(array for name, array in after.items() if name.endswith(".signed")).astype(np.int16)
    steps = next(array for name, array in after.items() if name.endswith(".steps"))
    np.testing.assert_array_equal(signed.T + (1 << (bits - 1)), unpack(packed, bits, columns))
    np.testing.assert_array_equal(steps.T, scale)
    np.testing.assert_allclose(run(model, feeds)[0], wanted[0], atol=2e-5 * columns**0.5)

    assert to_nbits(model) == 1
    again = values(model)
    assert {name: array.tobytes() for name, array in again.items()} == {
        name: array.tobytes() for name, array in before.items()
    }
    assert (run(model, feeds)[0] == wanted[0]).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [64, 80])
def test_a_tied_table_is_stored_once(bits: int, columns: int) -> None:
    weight = Array(np.random.default_rng(0).standard_normal((37, columns)).astype(np.float32))
    model = tied(weight, fused=True)
    quantize_weights(model, RoundToNearest(Grid(bits, 32), Grid(bits, 32)))
    feeds = {"ids": np.random.default_rng(1).integers(0, 37, (2, 5))}
    before, wanted = values(model, integers=False), run(model, feeds)
    assert to_qdq(model) == 2
    assert collections.Counter(ops(model)) == {
        "Cast": 1,
        "DequantizeLinear": 1,
        "Gather": 1,
        "Transpose": 1,
        "MatMul": 1,
    }
    assert len(model.graph.initializers) == 2
    for found, right in zip(run(model, feeds), wanted, strict=True):
        np.testing.assert_allclose(found, right, atol=2e-4)
    assert to_nbits(model) == 2
    after = values(model, integers=False)
    assert sorted(array.tobytes() for array in after.values()) == sorted(a.tobytes() for a in before.values())
    for found, right in zip(run(model, feeds), wanted, strict=True):
        assert (found == right).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mqa_tied", "gemma3"])
def test_a_whole_decoder_has_a_twin_without_operators_of_onnxruntime(name: str) -> None:
    model = canonical(decoder(**VARIANTS[name]))
    quantize_weights(model, RoundToNearest(Grid(4, 32), Grid(8, 32)))
    tokens = np.random.default_rng(0).integers(0, 61, (1, 9))
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    for value in model.graph.inputs:
        if str(value.name).startswith("past"):
            _, heads, _, width = value.shape  # type: ignore[misc]
            feeds[str(value.name)] = np.zeros((1, heads, 0, width), np.float32)  # type: ignore[arg-type]
    wanted = run(model, feeds)[0]
    count = collections.Counter(ops(model))
    assert to_qdq(model) == count["MatMulNBits"] + count["GatherBlockQuantized"]
    assert {node.domain for node in model.graph} == {""}
    np.testing.assert_allclose(run(model, feeds)[0], wanted, atol=1e-3)


def test_a_file_has_a_twin_and_the_twin_the_file(tmp_path: Path) -> None:
    """As docs/quantization.md says it: graphs come from files, and codes stay there until they are written."""
    model = tied(Array(np.random.default_rng(0).standard_normal((300, 80)).astype(np.float32)), fused=True)
    quantize_weights(model, RoundToNearest(Grid(4, 32), Grid(4, 32)))
    feeds = {"ids": np.random.default_rng(1).integers(0, 300, (2, 5))}

    def saved(model: ir.Model, name: str) -> ir.Model:
        ir.save(model, tmp_path / f"{name}.onnx", external_data=f"{name}.onnx.data")
        return ir.load(tmp_path / f"{name}.onnx")

    def answers(name: str) -> list[np.ndarray]:
        return run(ir.external_data.load_to_model(ir.load(tmp_path / f"{name}.onnx")), feeds)

    first = saved(model, "first")
    codes = {array.tobytes() for array in values(first, integers=False).values()}
    assert to_qdq(first) == 2
    twin = saved(first, "twin")
    assert {node.domain for node in twin.graph} == {""}
    for found, right in zip(answers("twin"), answers("first"), strict=True):
        np.testing.assert_allclose(found, right, atol=2e-4)
    assert to_nbits(twin) == 2
    assert {array.tobytes() for array in values(saved(twin, "back"), integers=False).values()} == codes


def test_onnxruntime_makes_matmulnbits_of_it(tmp_path: Path) -> None:
    model = multiply(Array(np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)))
    quantize_weights(model, RoundToNearest(Grid(4, 32), Grid(4, 32)))
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 3, 96)).astype(np.float32)}
    wanted = run(model, feeds, exact=False)[0]
    to_qdq(model)
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 4
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    assert [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["MatMulNBits"]
    np.testing.assert_allclose(run(model, feeds, exact=False)[0], wanted, rtol=1e-6)


def test_what_has_no_twin_is_refused_and_left_as_it_was() -> None:
    model = multiply(Array(np.ones((16, 64), np.float32)))
    quantize_weights(model, RoundToNearest(Grid(2, 32), Grid(2, 32)))
    with pytest.raises(OnnxGptError) as caught:
        to_qdq(model)
    assert (caught.value.code, caught.value.exit) == ("cannot-twin", Exit.UNSUPPORTED)
    assert "MatMulNBits" in ops(model)
    old = multiply(quantized("Q4_0", 16, 64))
    quantize_weights(old, RoundToNearest(Grid(4, 32), Grid(4, 32)))
    old.graph.opset_imports[""] = 20
    with pytest.raises(OnnxGptError, match="opset"):
        to_qdq(old)

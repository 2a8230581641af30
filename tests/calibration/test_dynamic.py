"""Dynamic 8 bits: what the graph computes is the rounding that is written down, for every shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.dynamic.blocks import BLOCK, BlockCodes
from calibration.dynamic.products import GROUP, quantize_dynamically
from exporter.emitter import ROLE
from exporter.weight_tensor import WeightTensor
from exporter.weights import Array


def rounded(rows: np.ndarray, groups: int) -> np.ndarray:
    """Each run of columns by its own step, largest size over 127."""
    runs = rows.reshape(*rows.shape[:-1], groups, -1)
    step = np.abs(runs).max(axis=-1, keepdims=True) / np.float32(127)
    safe = np.where(step > 0, step, 1)
    return (np.rint(runs / safe) * step).reshape(rows.shape).astype(np.float32)


def run(role: str, weight: np.ndarray, x: np.ndarray, bias: np.ndarray | None, folder: Path) -> np.ndarray:
    """``x · Wᵀ + b`` by a graph that was rewritten."""
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", "S", x.shape[-1]]))
    table = WeightTensor("w.weight", Array(weight), transpose=True)
    factor = ir.Value(name="w.weight", const_value=table, shape=table.shape, type=ir.TensorType(table.dtype))
    product = ir.node("MatMul", [value, factor], name=role, metadata_props={ROLE: role})
    nodes, initializers = [product], [factor]
    if bias is not None:
        vector = ir.Value(name="b", const_value=ir.tensor(bias, name="b"), shape=ir.Shape(bias.shape))
        nodes.append(ir.node("Add", [product.outputs[0], vector], name="add"))
        initializers.append(vector)
    output = nodes[-1].outputs[0]
    output.name, output.type = "y", ir.TensorType(ir.DataType.FLOAT)
    opsets = {"": 23, "com.microsoft": 1}
    graph = ir.Graph([value], [output], nodes=nodes, initializers=initializers, opset_imports=opsets)
    model = ir.Model(graph, ir_version=10)
    assert quantize_dynamically(model) == [role]
    folder.mkdir(exist_ok=True)
    ir.save(model, folder / "model.onnx")
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("role", "width"), [("q", 48), ("ffn.down", 2 * GROUP), ("ffn.down", 96)])
@pytest.mark.parametrize("channels", [BLOCK, 3 * BLOCK + 5, 7])
def test_a_product_is_that_of_rounded_rows(
    role: str, width: int, channels: int, bias: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(channels)
    weight = rng.standard_normal((channels, width)).astype(np.float32)
    x = rng.standard_normal((2, 3, width)).astype(np.float32) * np.array([[[1]], [[50]]], np.float32)
    x[0, 1] = 0  # a token of zeros gives zeros
    vector = rng.standard_normal(channels).astype(np.float32) if bias else None
    groups = width // GROUP if role.endswith("down") and width >= GROUP else 1
    wanted = rounded(x, groups) @ rounded(weight, groups).T + (0 if vector is None else vector)
    got = run(role, weight, x, vector, tmp_path)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@settings(max_examples=30, deadline=None)
@given(channels=st.integers(1, 100), width=st.sampled_from([8, 24]), groups=st.sampled_from([1, 2]))
def test_codes_and_scales_give_the_weight_back(channels: int, width: int, groups: int) -> None:
    weight = np.random.default_rng(channels).standard_normal((channels, width)).astype(np.float32)
    coded = BlockCodes("w", Array(weight), groups)
    codes = coded.codes.numpy().reshape(coded.blocks, groups, width // groups, BLOCK).astype(np.float32)
    scale = coded.scale.numpy().reshape(coded.blocks, groups, 1, BLOCK)
    back = (codes * scale).transpose(0, 3, 1, 2).reshape(-1, width)
    np.testing.assert_allclose(back[:channels], rounded(weight, groups), rtol=1e-5, atol=1e-6)
    assert not back[channels:].any()
    assert np.abs(codes).max() <= 127


def test_scales_are_the_same_before_and_after_codes_are_written(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    first = BlockCodes("w", Array(weight)).scale.numpy()
    later = BlockCodes("w", Array(weight))
    with (tmp_path / "codes").open("wb") as file:
        later.codes.tofile(file)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(later.scale.numpy(), first)
    assert (tmp_path / "codes").read_bytes() == later.codes.numpy().tobytes()

"""A source's own quantization: the same codes in the file, and the product of exactly those weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import FORMATS, Quantized, multiply, ops, quantized, random, run, tied

from calibration.quantization.keep import runs
from calibration.quantization.pack import unpack
from calibration.quantization.weight_only import quantize_weights
from calibration.scheme import Keep
from exporter.block_codes import BlockFormat
from exporter.errors import OnnxGptError
from exporter.weight_expressions import Permuted, Rows, Stack, Transposed


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("form", FORMATS)
def test_a_product_is_that_of_the_sources_weight(form: str, tmp_path: Path) -> None:
    weight, bias = quantized(form, 48, 128), np.linspace(-1, 1, 48, dtype=np.float32)
    graph = multiply(weight, bias)
    done = quantize_weights(graph, Keep())
    assert (done[0].bits, done[0].block_size, done[0].minimum) == (
        weight.own.bits,
        weight.own.block,
        weight.own.has_minimum,
    )
    # a mean well away from zero: what minima multiply by must not be lost
    x = (0.5 + np.random.default_rng(1).standard_normal((2, 3, 128))).astype(np.float32)
    expected = x @ weight.read().T
    (y,) = run(graph, tmp_path, x=x)
    assert difference(y - bias, expected) < 0.015
    if weight.own.bits == 4:
        (y,) = run(graph, tmp_path / "exact", exact=True, x=x)
        assert difference(y - bias, expected) < 2e-6


@pytest.mark.parametrize("form", FORMATS)
def test_codes_scales_and_minima_are_the_sources_own(form: str) -> None:
    weight = quantized(form, 20, 64)
    graph = multiply(weight)
    quantize_weights(graph, Keep())
    stored = {name: v.const_value for name, v in graph.graph.initializers.items()}
    codes = stored["layers.0.ffn.down.codes"]
    assert codes is not None
    assert np.array_equal(unpack(codes.numpy(), weight.own.bits, 64), weight.code.codes)
    for part, own in (("scale", weight.code.scale), ("minimum", weight.code.minimum)):
        tensor = stored.get(f"layers.0.ffn.down.{part}")
        if own is None:
            assert tensor is None
        else:
            assert tensor is not None
            assert tensor.dtype == ir.DataType.from_numpy(np.dtype(weight.own.scale_dtype))
            assert np.array_equal(tensor.numpy(), own)


@pytest.mark.parametrize("form", FORMATS)
def test_a_tied_table_gives_the_sources_rows(form: str, tmp_path: Path) -> None:
    weight = quantized(form, 50, 96)
    graph = tied(weight)
    quantize_weights(graph, Keep())
    ids = np.array([[0, 49, 7]])
    rows, logits = run(graph, tmp_path, ids=ids)
    table = weight.read()
    if weight.own.has_minimum:
        assert np.allclose(rows, table[ids], rtol=0, atol=2e-7)  # one rounding more: s·(q − z) + (m + z·s)
    else:
        assert np.array_equal(rows, table[ids])
    assert difference(logits, table[ids] @ table.T) < 0.015


def test_rows_of_several_formats_become_one_product_each(tmp_path: Path) -> None:
    parts = (
        Permuted(quantized("Q4_K", 32, 64, 1), np.random.default_rng(0).permutation(32)),
        quantized("Q4_K", 16, 64, 2),
        quantized("Q6_K", 16, 64, 3),
        random(8, 64),
    )
    weight, bias = Stack(parts), np.arange(72, dtype=np.float32) / 72
    graph = multiply(weight, bias, role="layers.0.attention.qkv")
    done = quantize_weights(graph, Keep())
    assert [(t.op, t.shape, t.bits, t.reason) for t in done[:3]] == [
        ("MatMulNBits", (48, 64), 4, ""),
        ("MatMulNBits", (16, 64), 8, ""),
        ("MatMul", (8, 64), None, "float in the source"),
    ]
    x = np.random.default_rng(1).standard_normal((1, 3, 64)).astype(np.float32)
    (y,) = run(graph, tmp_path, x=x)
    assert difference(y - bias, x @ weight.read().T) < 0.015


def test_runs_are_as_long_as_can_be() -> None:
    a, b, c = (quantized(form, 8, 32) for form in ("Q4_0", "Q4_0", "Q8_0"))
    assert [piece.shape[0] for piece in runs(Stack((a, Stack((b, c)), c)))] == [16, 16]
    assert len(runs(Stack((a, b)))) == 1


def test_block_sums_are_made_once_for_each_input(tmp_path: Path) -> None:
    graph = multiply(Stack((quantized("Q4_1", 16, 64), quantized("Q5_1", 16, 64))))
    quantize_weights(graph, Keep())
    assert ops(graph).count("ReduceSum") == 1
    assert ops(graph).count("MatMulNBits") == 2


def test_what_the_source_holds_as_floats_stays_float() -> None:
    graph = tied(random(50, 64))
    with pytest.raises(OnnxGptError) as caught:
        quantize_weights(graph, Keep())
    assert caught.value.code == "nothing-to-keep"


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (Transposed(quantized("Q4_0", 64, 64)), "along its rows"),
        (Rows(Stack((quantized("Q4_0", 16, 64), quantized("Q8_0", 16, 64))), ((4, 30),)), "along its rows"),
        (Quantized(BlockFormat(4, 8, False, "float16"), quantized("Q4_0", 8, 64).code), "blocks of 8"),
    ],
)
def test_codes_that_no_kernel_takes_are_refused(weight: Quantized, why: str) -> None:
    graph = multiply(Stack((quantized("Q8_0", 8, 64), weight)))
    with pytest.raises(OnnxGptError, match=why) as caught:
        quantize_weights(graph, Keep())
    assert caught.value.code == "cannot-quantize"

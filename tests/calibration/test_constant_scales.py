"""A lookup of codes whose scales are a constant of the file gives the same rows; the product keeps its own scales."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.quantization.constant_scales import fold_lookup_scales
from calibration.quantization.weight_only import quantize_weights
from calibration.scheme import Grid, RoundToNearest
from exporter.weights import Array
from graph_passes.matching import producer
from tests.calibration.small_graphs import tied
from tests.calibration.test_qdq import run


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [64, 80])
def test_a_tied_tables_lookup_reads_a_constant(bits: int, columns: int) -> None:
    weight = Array(np.random.default_rng(0).standard_normal((37, columns)).astype(np.float32))
    model = tied(weight, fused=True)
    quantize_weights(model, RoundToNearest(Grid(bits, 32), Grid(bits, 32)))
    feeds = {"ids": np.random.default_rng(1).integers(0, 37, (2, 5))}
    wanted = run(model, feeds)
    assert fold_lookup_scales(model) == 1
    lookup = next(node for node in model.graph if node.op_type == "GatherBlockQuantized")
    scale = lookup.inputs[2]
    assert scale is not None and scale.is_initializer() and scale.dtype is not None
    assert scale.dtype.itemsize == 4 and scale.shape is not None
    assert list(scale.shape) == [37, -(-columns // 32), 1]
    product = next(node for node in model.graph if node.op_type == "MatMulNBits")
    assert producer(product.inputs[2], "Cast") is not None
    for found, right in zip(run(model, feeds), wanted, strict=True):
        np.testing.assert_array_equal(found, right)
    assert fold_lookup_scales(model) == 0

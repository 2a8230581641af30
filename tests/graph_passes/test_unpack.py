"""A projection that is cut into parts becomes its parts, whatever its layout; anything else stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporter.emitter import Emitter
from exporter.weights import Array
from graph_passes import run_pipeline
from graph_passes.matching import weight_of
from graph_passes.proof.evaluate import evaluate
from graph_passes.proof.subgraph import Subgraph

HEADS, WIDTH, HIDDEN = 3, 8, 6
PARTS = ((0, 4), (4, 6), (6, 8))


def _model(layout: str, *, bias: bool, parts: tuple[tuple[int, int], ...] = PARTS) -> ir.Model:
    """x·W (+ b), on ``[B, S, N]``, by head, or by head with heads first; its last axis cut into parts."""
    rng = np.random.default_rng(3)
    rows = WIDTH if layout == "flat" else HEADS * WIDTH
    pen = Emitter(
        {
            "w": Array(rng.normal(size=(rows, HIDDEN)).astype(np.float32)),
            "b": Array(rng.normal(size=rows).astype(np.float32)),
        }
    )
    x = pen.input("x", ir.DataType.FLOAT, ["batch_size", "sequence_length", HIDDEN])
    y = pen.op("MatMul", [x, pen.weight("w", transpose=True)], name="product")
    if bias:
        y = pen.op("Add", [pen.weight("b"), y], name="biased")
    if layout != "flat":
        y = pen.op("Reshape", [y, pen.ints("heads", [0, 0, HEADS, WIDTH])], name="split")
    if layout == "swapped":
        y = pen.op("Transpose", [y], name="swapped", perm=[0, 2, 1, 3])
    outputs = []
    for i, (first, last) in enumerate(parts):
        bounds = [
            pen.ints(f"{i}.{name}", [value]) for name, value in (("a", first), ("b", last), ("axis", -1))
        ]
        outputs.append(pen.op("Slice", [y, *bounds], name=f"part.{i}"))
        outputs[-1].type = ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(pen.graph(outputs, name="packed", opset=23), ir_version=10)


def _run(model: ir.Model) -> list[np.ndarray]:
    x = np.random.default_rng(4).normal(size=(2, 5, HIDDEN)).astype(np.float32)
    return evaluate(Subgraph.cut(model, list(model.graph.outputs)), {model.graph.inputs[0]: x})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", ["flat", "heads", "swapped"])
def test_every_part_becomes_a_map_of_its_own(layout: str, bias: bool) -> None:
    model = _model(layout, bias=bias)
    before = _run(model)
    assert run_pipeline(model, "unpack")[-1].fired == 1
    products = [node for node in model.graph if node.op_type == "MatMul"]
    heads = 1 if layout == "flat" else HEADS
    sizes = [weight.shape[0] for node in products if (weight := weight_of(node.inputs[1], transpose=True))]
    assert sizes == [heads * (last - first) for first, last in PARTS]
    assert not any(node.op_type == "Slice" for node in model.graph)
    for now, was in zip(_run(model), before, strict=True):
        np.testing.assert_allclose(now, was, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["flat", "swapped"])
def test_a_map_that_is_also_used_whole_stays(layout: str) -> None:
    model = _model(layout, bias=True)
    whole = model.graph.outputs[0].producer()
    assert whole is not None and whole.inputs[0] is not None
    other = ir.node("Relu", [whole.inputs[0]])
    other.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    other.outputs[0].name = "whole"
    model.graph.append(other)
    model.graph.outputs.append(other.outputs[0])
    assert run_pipeline(model, "unpack")[-1].fired == 0

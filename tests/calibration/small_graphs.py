"""Small graphs around one weight, weights that come with codes, and how both are run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir import tape

from exporter.block_codes import BlockFormat, Coded
from exporter.emitter import ROLE
from exporter.weight_tensor import WeightTensor
from exporter.weights import Array, Weight


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized(Weight):
    """A weight as a GGUF file holds it; its float rows are the formula of `BlockFormat`, written out."""

    own: BlockFormat
    code: Coded

    @property
    def shape(self) -> tuple[int, ...]:
        return self.code.codes.shape

    @property
    def format(self) -> BlockFormat:
        return self.own

    def rows(self, start: int, stop: int) -> np.ndarray:
        def wide(blocks: np.ndarray) -> np.ndarray:
            return np.repeat(blocks[start:stop].astype(np.float32), self.own.block, axis=1)

        codes = self.code.codes[start:stop].astype(np.float32)
        if self.code.minimum is None:
            return wide(self.code.scale) * (codes - 2 ** (self.own.bits - 1))
        return wide(self.code.scale) * codes + wide(self.code.minimum)

    def coded(self, start: int, stop: int) -> Coded:
        code, minimum = self.code, self.code.minimum
        return Coded(
            code.codes[start:stop],
            code.scale[start:stop],
            None if minimum is None else minimum[start:stop],
        )


FORMATS = {
    "Q4_0": BlockFormat(4, 32, False, "float16"),
    "Q4_1": BlockFormat(4, 32, True, "float16"),
    "Q4_K": BlockFormat(4, 32, True, "float32"),
    "Q5_1": BlockFormat(8, 32, True, "float16"),
    "Q6_K": BlockFormat(8, 16, False, "float32"),
    "Q8_0": BlockFormat(8, 32, False, "float16"),
}


def quantized(name: str, rows: int, columns: int, seed: int = 0) -> Quantized:
    """A random weight in a GGUF format."""
    form = FORMATS[name]
    rng = np.random.default_rng(seed)
    shape = (rows, columns // form.block)
    scale = (rng.uniform(0.5, 1.5, shape) / (1 << form.bits)).astype(form.scale_dtype)
    minimum = (rng.uniform(-0.7, -0.3, shape)).astype(form.scale_dtype) if form.has_minimum else None
    codes = rng.integers(0, 1 << form.bits, (rows, columns), np.uint8)
    return Quantized(form, Coded(codes, scale, minimum))


def random(rows: int, columns: int, seed: int = 0) -> Array:
    return Array(np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32))


def initializer(tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(
        name=tensor.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(list(tensor.shape)),
        const_value=tensor,
    )


def multiply(weight: Weight, bias: np.ndarray | None = None, role: str = "layers.0.ffn.down") -> ir.Model:
    """``y = x · Wᵀ (+ b)`` with x ``[B, S, K]``."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", "S", weight.shape[1]]))
    table = initializer(WeightTensor(f"{role}.weight", weight, transpose=True))
    values, nodes = [table], tape.Tape()
    y = nodes.op("MatMul", [x, table], name=role, output=ir.Value(name=role), metadata_props={ROLE: role})
    if bias is not None:
        values.append(initializer(WeightTensor(f"{role}.bias", Array(bias))))
        y = nodes.op("Add", [y, values[1]], name=f"{role}.biased", output=ir.Value(name="biased"))
    return model([x], [y], nodes, values)


def tied(weight: Weight, *, fused: bool = False) -> ir.Model:
    """``rows = E[ids]`` and ``logits = rows · Eᵀ``."""
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["B", "S"]))
    table, nodes = initializer(WeightTensor("embedding.weight", weight)), tape.Tape()
    rows = nodes.op(
        "Gather",
        [table, ids],
        name="embedding",
        output=ir.Value(name="embedding"),
        metadata_props={ROLE: "embedding"},
    )
    head: dict[str, Any] = {
        "output": ir.Value(name="logits"),
        "name": "head",
        "metadata_props": {ROLE: "head"},
    }
    if fused:
        logits = nodes.op("FusedMatMul", [rows, table], {"transB": 1}, domain="com.microsoft", **head)
    else:
        turned = nodes.op("Transpose", [table], {"perm": [1, 0]}, name="head.table")
        logits = nodes.op("MatMul", [rows, turned], **head)
    return model([ids], [rows, logits], nodes, [table])


def model(
    inputs: list[ir.Value], outputs: list[ir.Value], nodes: tape.Tape, initializers: list[ir.Value]
) -> ir.Model:
    for output in outputs:
        output.type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=nodes.nodes,
        initializers=initializers,
        opset_imports={"": 23, "com.microsoft": 1},
        name="small",
    )
    return ir.Model(graph, ir_version=10)


def run(graph: ir.Model, folder: Path, *, exact: bool = False, **feeds: np.ndarray) -> list[np.ndarray]:
    """Save with two writers and run.

    Args:
        exact: float activations instead of int8 ones, for 4-bit codes.
    """
    for node in graph.graph:
        if node.op_type == "MatMulNBits" and exact:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    folder.mkdir(exist_ok=True)
    ir.save(graph, folder / "model.onnx", external_data="model.onnx.data", max_workers=2)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(folder / "model.onnx", options).run(None, feeds)


def ops(graph: ir.Model) -> list[str]:
    return [node.op_type for node in graph.graph]

"""Nodes that onnxruntime runs for a quantized site; the equations are in `weight_only`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.quantization.sites import Site
from calibration.quantization.tensors import CodesTensor, ParameterTensor, QuantizedWeight
from exporter.block_codes import BlockFormat
from exporter.weight_tensor import WeightTensor
from exporter.weights import Weight
from graph_passes.matching import MICROSOFT, initializer, make, replace

ACCURACY_LEVEL = 4
"""int8 activations: the only level whose kernels are fast at every width."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A weight's codes in the graph.

    Attributes:
        codes: uint8 ``[N, K/block, bytes]``.
        scale: float32 ``[N, K/block]``.
        shift: float32 ``[N, K/block]``, ``m + z·s``; None where blocks have no minimum.
    """

    format: BlockFormat
    shape: tuple[int, int]
    codes: ir.Value
    scale: ir.Value
    shift: ir.Value | None


class Lowering:
    """Emits nodes into one graph. Codes, casts and block sums that several sites share are made once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.stored: dict[tuple[ir.Value, int], Stored] = {}
        self.sums: dict[tuple[ir.Value, int], ir.Value] = {}
        self.constants: dict[tuple[float, ...] | float, ir.Value] = {}
        self.new: list[ir.Node] = []

    def multiply(self, site: Site, pieces: Sequence[QuantizedWeight | Weight]) -> None:
        """``x · Wᵀ + b``, each piece of rows as its own product, outputs joined."""
        name = str(site.nodes[0].name)
        alone = len(pieces) == 1
        outputs = [
            self._product(
                site,
                piece if isinstance(piece, Weight) else self._store(site.table, i, piece),
                name if alone else f"{name}.{i}",
                site.bias if alone else None,
            )
            for i, piece in enumerate(pieces)
        ]
        y = outputs[0]
        if not alone:
            y = self._op("Concat", outputs, f"{name}.joined", axis=-1)
            if site.bias is not None:
                y = self._op("Add", [y, site.bias], f"{name}.biased")
        self._put(site, y)

    def lookup(self, site: Site, weight: QuantizedWeight) -> None:
        """Rows of W: ``[..., K/block, block]``, flattened to ``[..., K]``."""
        name = str(site.nodes[0].name)
        stored = self._store(site.table, 0, weight)
        block, blocks = stored.format.block, weight.scale_shape[1]
        scale = self._op("Unsqueeze", [stored.scale, self._ints(-1)], f"{name}.scale_column")
        rows = self._op(
            "GatherBlockQuantized",
            [stored.codes, site.input, scale],
            f"{name}.blocks",
            domain=MICROSOFT,
            role=site.role,
            bits=stored.format.bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=2,
        )
        if stored.shift is not None:
            shift = self._op("Gather", [stored.shift, site.input], f"{name}.shift_rows", axis=0)
            shift = self._op("Unsqueeze", [shift, self._ints(-1)], f"{name}.shift_column")
            rows = self._op("Add", [rows, shift], f"{name}.shifted")
        leading = [0] * _rank(site.input, 2)
        rows = self._op("Reshape", [rows, self._ints(*leading, blocks * block)], f"{name}.flat")
        if weight.shape[1] % block:
            ends = self._ints(weight.shape[1])
            rows = self._op("Slice", [rows, self._ints(0), ends, self._ints(-1)], f"{name}.rows")
        self._put(site, rows)

    # Pieces -------------------------------------------------------------------------------------------------

    def _product(self, site: Site, piece: Stored | Weight, name: str, bias: ir.Value | None) -> ir.Value:
        x = site.input
        if isinstance(piece, Weight):
            table = initializer(self.graph, WeightTensor(f"{name}.weight", piece, transpose=True))
            return self._op("MatMul", [x, table], name, role=site.role)
        inputs = [x, piece.codes, piece.scale]
        y = self._op(
            "MatMulNBits",
            inputs if bias is None else [*inputs, None, None, bias],
            name if piece.shift is None else f"{name}.product",
            domain=MICROSOFT,
            role=site.role,
            K=piece.shape[1],
            N=piece.shape[0],
            bits=piece.format.bits,
            block_size=piece.format.block,
            accuracy_level=ACCURACY_LEVEL,
        )
        if piece.shift is None:
            return y
        sums = self._block_sums(x, piece)
        shifts = self._op(
            "FusedMatMul", [sums, piece.shift], f"{name}.shift_product", domain=MICROSOFT, transB=1
        )
        return self._op("Add", [y, shifts], f"{name}.shifted")

    def _block_sums(self, x: ir.Value, stored: Stored) -> ir.Value:
        """``[..., K] → [..., K/block]``; made once for each x."""
        block = stored.format.block
        if (x, block) not in self.sums:
            name = f"{x.name}.block_{block}"
            split = self._ints(*[0] * (_rank(x, 3) - 1), stored.shape[1] // block, block)
            blocks = self._op("Reshape", [x, split], name)
            self.sums[x, block] = self._op("ReduceSum", [blocks, self._ints(-1)], f"{name}_sums", keepdims=0)
        return self.sums[x, block]

    def _store(self, table: ir.Value, piece: int, weight: QuantizedWeight) -> Stored:
        """Put a weight's codes and scales into the graph, where they are not there yet."""
        if (table, piece) in self.stored:
            return self.stored[table, piece]
        codes = initializer(self.graph, CodesTensor(weight))
        scale = self._float(initializer(self.graph, ParameterTensor(weight, "scale")))
        shift = None
        if weight.format.has_minimum:
            minimum = self._float(initializer(self.graph, ParameterTensor(weight, "minimum")))
            zero = self._constant(2.0 ** (weight.format.bits - 1))
            shift = self._op("Mul", [scale, zero], f"{weight.name}.zero")
            shift = self._op("Add", [shift, minimum], f"{weight.name}.shift")
        self.stored[table, piece] = Stored(weight.format, weight.shape, codes, scale, shift)
        return self.stored[table, piece]

    def _float(self, value: ir.Value) -> ir.Value:
        if value.dtype == ir.DataType.FLOAT:
            return value
        return self._op("Cast", [value], f"{value.name}_float", to=ir.DataType.FLOAT)

    def _op(self, op_type: str, inputs: Sequence[ir.Value | None], name: str, **attributes: Any) -> ir.Value:
        node = make(op_type, inputs, name, **attributes)
        self.new.append(node)
        return node.outputs[0]

    def _put(self, site: Site, output: ir.Value) -> None:
        replace(site.nodes[0], site.nodes, self.new, [(site.output, output)])
        self.new = []

    def _ints(self, *values: int) -> ir.Value:
        return self._known(values, np.array(values, np.int64), "ints_" + "_".join(map(str, values)))

    def _constant(self, number: float) -> ir.Value:
        return self._known(number, np.array(number, np.float32), f"constant_{number:g}")

    def _known(self, key: tuple[float, ...] | float, array: np.ndarray, name: str) -> ir.Value:
        if key not in self.constants:
            self.constants[key] = initializer(self.graph, ir.tensor(array, name=name))
        return self.constants[key]


def _rank(value: ir.Value, usual: int) -> int:
    return usual if value.shape is None else len(value.shape)

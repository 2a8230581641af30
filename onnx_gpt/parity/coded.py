"""The quantized weights of a graph, by role: what its codes stand for, without running it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from graph_passes.matching import role_of
from onnx_gpt.certificate.tracing.operands import matrix_of
from onnx_gpt.certificate.tracing.stored import Stored

CHUNK = 8 << 20
"""Numbers that are widened at once."""
OTHERS = frozenset(["DynamicQuantizeMatMul", "MatMulBnb4", "MatMulInteger", "QLinearMatMul"])
"""Operators that hold codes in ways that are not read here."""
LOOKUPS = ("Gather", "GatherBlockQuantized")


@dataclasses.dataclass(frozen=True)
class Coded:
    """One node that holds codes.

    Attributes:
        kind: how it is used.
        role: of the linear map or the table.
        stored: its codes, ``[N, K]``; K may be more than the weight's by what fills up a table's last block.
        bits, block: of the grid.
    """

    kind: Literal["product", "lookup"]
    node: ir.Node
    role: str
    stored: Stored
    bits: int
    block: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, K)``"""
        rows, columns = self.stored.shape
        return rows, columns

    def rows(self) -> Iterator[tuple[int, np.ndarray]]:
        """What the codes stand for: float32 rows of ``[N, K]``, a piece after the other, each with its first row."""
        rows, columns = self.shape
        step = max(1, CHUNK // columns)
        for start in range(0, rows, step):
            yield start, self.stored.rows(start, min(start + step, rows))[0]


def coded_nodes(graph: ir.Graph) -> list[Coded] | str:
    """All of a graph's quantized weights in graph order; or what about them is not known here."""
    found = []
    for node in graph:
        stored = matrix_of(node)
        if isinstance(stored, str):
            return f"{node.name}: {stored}"
        if node.op_type in OTHERS:
            return f"{node.name} is a {node.op_type}, whose weights are not read here"
        if stored is not None and stored.grid is not None:
            kind: Literal["product", "lookup"] = "lookup" if node.op_type in LOOKUPS else "product"
            found.append(Coded(kind, node, role_of(node), stored, *stored.grid))
    return found

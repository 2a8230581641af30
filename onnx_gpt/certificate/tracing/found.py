"""Which weights a finished graph uses for what, told by the nodes that read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from exporter.weights import Weight
from graph_passes.matching import placed_table, producer, role_of
from onnx_gpt.certificate.tracing.expected import NORMS, Expected, constant
from onnx_gpt.certificate.tracing.operands import matrix_of, vector_of
from onnx_gpt.certificate.tracing.stored import Plain, Rows, Stored

ADDING = {"Add": (0, 1), "FastGelu": (0, 1), "BiasGelu": (0, 1)}
"""Operators that add a vector to a product."""

TABLES = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (1, 2)}
"""Inputs with cosines and sines ``[context, D/2]``."""

JOINING = ("Concat", "Add", "Cast")
"""What a product goes through before its bias comes; one in blocks of channels goes through `SCALING`."""
SCALING = ("Mul", "ReduceSum", "Transpose", "Reshape", "Slice")

CURVE = "Softplus"
"""What a learned number of an activation goes through (xIELU)."""

LOOKUPS = ("Gather", "GatherBlockQuantized")
NBITS_BIAS = 5


@dataclasses.dataclass(frozen=True)
class Use:
    """A weight in the place where it is used.

    Attributes:
        role: ``layers.3.attention.qkv``.
        kind: ``weight`` or ``bias``, or what a constant of the graph's own is called.
        stored: the weight, or why it cannot be told.
        parts: what it should be, where that is no weight of the source.
    """

    role: str
    kind: str
    stored: Stored | str
    parts: list[tuple[str, Weight]] | None = None

    @property
    def initializers(self) -> tuple[ir.Value, ...]:
        return () if isinstance(self.stored, str) else self.stored.initializers


@dataclasses.dataclass
class Joined(Stored):
    """Several stored weights under each other: one role's rows that have several formats."""

    pieces: list[Stored]

    def __post_init__(self) -> None:
        self.shape = (sum(piece.shape[0] for piece in self.pieces), *self.pieces[0].shape[1:])
        self.initializers = tuple(value for piece in self.pieces for value in piece.initializers)

    def rows(self, start: int, stop: int) -> Rows:
        found, at = [], 0
        for piece in self.pieces:
            lo, hi = max(start, at), min(stop, at + piece.shape[0])
            if lo < hi:
                found.append(piece.rows(lo - at, hi - at))
            at += piece.shape[0]
        if len(found) == 1:
            return found[0]
        # Floats among codes count as codes of a step that lets nothing pass but themselves.
        values = np.concatenate([rows[0] for rows in found])
        steps = [np.full(v.shape, 1e-7, np.float32) if step is None else step for v, step, _ in found]
        ends = [np.zeros(v.shape, bool) if end is None else end for v, _, end in found]
        return values, np.concatenate(steps), np.concatenate(ends)


def uses_of(model: ir.Model, expected: Expected) -> Iterator[Use]:
    """Every use of a weight that the nodes' roles tell of, in graph order; the weights are unread."""
    products: dict[tuple[str, int], list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type in NORMS and role_of(node):
            yield from _norm(node)
        if node.op_type == CURVE and role_of(node):
            role, _, kind = role_of(node).rpartition(".")
            yield Use(role, kind, vector_of(node.inputs[0]) or "it is no constant vector")
        if node.op_type in TABLES:
            yield from _tables(node, expected)
        if placed_table(node) is not None:
            yield from _biases_by_place(node, expected)
        if role_of(node) and matrix_of(node) is not None:
            read = node.inputs[1] if node.op_type in LOOKUPS else node.inputs[0]
            products.setdefault((role_of(node), id(read)), []).append(node)
    for (role, _), nodes in products.items():
        pieces = [matrix_of(node) for node in nodes]
        known = [piece for piece in pieces if isinstance(piece, Stored)]
        if len(known) == len(pieces) and len({piece.shape[1:] for piece in known}) == 1:
            yield Use(role, "weight", known[0] if len(known) == 1 else Joined(known))
        else:
            why = next(
                (piece for piece in pieces if isinstance(piece, str)), "its pieces do not fit together"
            )
            yield Use(role, "weight", why)
        yield from _biases(role, nodes)


def _norm(node: ir.Node) -> Iterator[Use]:
    gain, bias, _ = NORMS[node.op_type]
    for slot, kind in ((gain, "weight"), (bias, "bias")):
        value = node.inputs[slot] if slot is not None and slot < len(node.inputs) else None
        vector = vector_of(value)
        if value is not None:
            yield Use(role_of(node), kind, vector or "it is no constant vector")


def _biases(role: str, nodes: list[ir.Node]) -> Iterator[Use]:
    """The vector that is added to a product, wherever that happens."""
    inside = [vector_of(node.inputs[NBITS_BIAS]) for node in nodes if len(node.inputs) > NBITS_BIAS]
    vectors = [vector for vector in inside if vector is not None]
    if not vectors:
        output = nodes[0].outputs[0]
        passing = SCALING if _multiplies_codes(nodes[0]) else JOINING
        for _ in range(7):  # a product in pieces is joined, and may be shifted, before its bias comes
            found = _added_to(output)
            if found is not None:
                vectors = [found]
                break
            users = [use.node for use in output.uses()]
            if len(users) != 1 or users[0].op_type not in passing:
                break
            output = users[0].outputs[0]
    if len(vectors) == 1:
        yield Use(role, "bias", vectors[0])
    elif vectors:
        yield Use(role, "bias", Joined([*vectors]))


def _multiplies_codes(product: ir.Node) -> bool:
    """Whether inputs were rounded, so that their scale may come after the product."""
    return (
        product.op_type == "MatMulIntegerToFloat"
        or producer(product.inputs[1], "DequantizeLinear") is not None
    )


def _added_to(product: ir.Value) -> Plain | None:
    for use in product.uses():
        slots = ADDING.get(use.node.op_type)
        if slots is not None and use.idx in slots and len(use.node.inputs) > 1:
            vector = vector_of(use.node.inputs[1 - use.idx])
            if vector is not None:
                return vector
        slot = NORMS.get(use.node.op_type, (None, None, None))[2]
        if slot is not None and use.idx in (0, 1) and slot < len(use.node.inputs):
            vector = vector_of(use.node.inputs[slot])
            if vector is not None and _gives_product(use.node, 1 - use.idx) is False:
                return vector
    return None


def _gives_product(node: ir.Node, slot: int) -> bool:
    """Whether the other summand is a product too, so that it is not told whose bias a norm adds."""
    other = node.inputs[slot]
    maker = other.producer() if other is not None else None
    looked_up = maker is not None and maker.op_type in LOOKUPS
    return (
        maker is not None and not looked_up and bool(role_of(maker)) and isinstance(matrix_of(maker), Stored)
    )


def _tables(node: ir.Node, expected: Expected) -> Iterator[Use]:
    """Cosines and sines, which no source holds: what the family's frequencies give."""
    role = role_of(node) or str(node.name)
    layer = role.split(".")[1] if role.startswith("layers.") else ""
    if not layer.isdecimal() or expected.decoder is None:
        return
    slots = [slot for slot in TABLES[node.op_type] if slot < len(node.inputs)]
    stored = [_table(node.inputs[slot]) for slot in slots]
    if len(stored) != 2 or stored[0] is None or stored[1] is None:
        return
    angles = expected.rotary(int(layer), stored[0].shape[0])
    for name, table, wanted in zip(("cosines", "sines"), stored, angles or (), strict=False):
        assert table is not None
        yield Use(f"layers.{layer}.rotary", name, table, [(f"layers.{layer}.rotary", constant(wanted))])


def _biases_by_place(node: ir.Node, expected: Expected) -> Iterator[Use]:
    """Biases by position, which no source holds: what the family's slopes give."""
    table = _table(node.inputs[0])
    wanted = None if table is None else expected.biases(table.shape[1], table.shape[0])
    if table is not None and wanted is not None:
        yield Use("attention", "biases", table, [("attention", constant(wanted))])


def _table(value: ir.Value | None) -> Plain | None:
    tensor = value.const_value if value is not None and value.is_initializer() else None
    if value is None or tensor is None or not tensor.dtype.is_floating_point() or len(tensor.shape) != 2:
        return None
    return Plain(value, turned=False)

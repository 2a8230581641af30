"""Weights that somebody dequantizes in blocks, as onnxruntime's MatMulNBits and GatherBlockQuantized.

The other direction of `calibration.quantization.qdq`, which has the equations: for a graph in standard operators whose
codes are constants, signed, and have no zero points.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from calibration.quantization.lowering import ACCURACY_LEVEL
from calibration.quantization.pack import pack, packed_shape
from calibration.quantization.qdq import SIGNED, only_user, remove_unused, turned_scales
from graph_passes.matching import MICROSOFT, attribute, initializer, make, producer, replace, role_of

BITS = {dtype: bits for bits, dtype in SIGNED.items()}


def to_nbits(model: ir.Model) -> int:
    """Make onnxruntime's operators of products and lookups of codes in blocks, in place; how many those were.

    No weight is read: codes are rearranged when they are written. What is spelled otherwise stays as it is.
    """
    return _ToNBits(model.graph).apply()


class _ToNBits:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.stored: dict[ir.Node, tuple[ir.Value, ir.Value]] = {}

    def apply(self) -> int:
        found = list(_blocked_uses(self.graph))
        for wide, turn, user in found:
            if user.op_type == "Gather":
                self.lookup(wide, user)
            else:
                self.product(wide, turn, user)
        for wide, turn, _ in found:
            for node in (turn, wide):
                if node is not None:
                    remove_unused(self.graph, node.outputs[0])
        return len(found)

    def product(self, wide: ir.Node, turn: ir.Node | None, user: ir.Node) -> None:
        (rows, columns), turned = _weight_shape(wide), attribute(wide, "axis", 1) == 0
        codes, scale = self.packed(wide, turned)
        add = _bias_add(user, rows)
        bias = None if add is None else next(v for v in add.inputs if v is not user.outputs[0])
        inputs = [user.inputs[0], codes, scale, *([None, None, bias] if bias is not None else [])]
        new = make(
            "MatMulNBits",
            inputs,
            str(user.name),
            domain=MICROSOFT,
            role=role_of(user),
            K=columns,
            N=rows,
            bits=_bits(wide),
            block_size=attribute(wide, "block_size", 0),
            accuracy_level=ACCURACY_LEVEL,
        )
        old = [user] if add is None else [user, add]
        replace(user, old, [new], [(old[-1].outputs[0], new.outputs[0])])

    def lookup(self, wide: ir.Node, user: ir.Node) -> None:
        _, columns = _weight_shape(wide)
        block = attribute(wide, "block_size", 0)
        codes, scale = self.packed(wide, False)
        name = str(user.name)

        def ints(*values: int) -> ir.Value:
            return initializer(self.graph, ir.tensor(np.array(values, np.int64), name=f"{name}.ints"))

        column = make("Unsqueeze", [scale, ints(-1)], f"{name}.scale_column")
        gather = make(
            "GatherBlockQuantized",
            [codes, user.inputs[1], column.outputs[0]],
            f"{name}.blocks",
            domain=MICROSOFT,
            role=role_of(user),
            bits=_bits(wide),
            block_size=block,
            gather_axis=0,
            quantize_axis=2,
        )
        indices = user.inputs[1]
        rank = 2 if indices is None or indices.shape is None else len(indices.shape)
        blocks = -(-columns // block)
        flat = make("Reshape", [gather.outputs[0], ints(*[0] * rank, blocks * block)], f"{name}.flat")
        new = [column, gather, flat]
        if columns % block:
            new.append(make("Slice", [flat.outputs[0], ints(0), ints(columns), ints(-1)], f"{name}.rows"))
        replace(user, [user], new, [(user.outputs[0], new[-1].outputs[0])])

    def packed(self, wide: ir.Node, turned: bool) -> tuple[ir.Value, ir.Value]:
        """Codes and scales as the left side has them; made once for all uses."""
        if wide in self.stored:
            return self.stored[wide]
        stored, step = wide.inputs[:2]
        assert stored is not None and stored.const_value is not None and step is not None
        (rows, columns), bits, block = _weight_shape(wide), _bits(wide), attribute(wide, "block_size", 0)
        name, tensor = str(stored.name).removesuffix(".signed"), stored.const_value

        def made() -> ir.TensorProtocol:
            numbers = tensor.numpy().astype(np.int8)
            unsigned = (numbers.T if turned else numbers).astype(np.int16) + (1 << (bits - 1))
            return ir.Tensor(pack(unsigned.astype(np.uint8), bits, block), name=f"{name}.codes")

        shape = ir.Shape(packed_shape(rows, columns, bits, block))
        codes = initializer(self.graph, ir.LazyTensor(made, ir.DataType.UINT8, shape, name=f"{name}.codes"))
        cast = producer(step, "Cast")
        source = cast.inputs[0] if cast is not None else step
        assert source is not None and source.const_value is not None
        scale = initializer(self.graph, turned_scales(source.const_value, turned, f"{name}.scale"))
        if cast is not None:
            new = make("Cast", [scale], f"{name}.scale_float", to=int(ir.DataType.FLOAT))
            self.graph.insert_before(wide, new)
            scale = new.outputs[0]
        self.stored[wide] = codes, scale
        return codes, scale


def _blocked_uses(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node | None, ir.Node]]:
    """Each product with, or lookup in, a constant in blocks: DequantizeLinear, the Transpose between, itself."""
    for node in list(graph):
        if (node.domain, node.op_type) == ("", "Gather") and attribute(node, "axis", 0) == 0:
            wide = producer(node.inputs[0], "DequantizeLinear")
            if _is_blocked(wide, 1) and wide is not None:
                yield wide, None, node
        if (node.domain, node.op_type) == ("", "MatMul"):
            turn = producer(node.inputs[1], "Transpose")
            wide = producer(turn.inputs[0] if turn is not None else node.inputs[1], "DequantizeLinear")
            if _is_blocked(wide, 0 if turn is None else 1) and wide is not None:
                yield wide, turn, node


def _is_blocked(wide: ir.Node | None, axis: int) -> bool:
    """Whether a node dequantizes constant signed codes in blocks along an axis, without zero points."""
    if wide is None or not attribute(wide, "block_size", 0) or attribute(wide, "axis", 1) % 2 != axis:
        return False
    stored, step = wide.inputs[:2]
    cast = producer(step, "Cast")
    scale = cast.inputs[0] if cast is not None else step
    known = [v for v in (stored, scale) if v is not None and v.const_value is not None]
    symmetric = len(wide.inputs) < 3 or wide.inputs[2] is None
    return symmetric and len(known) == 2 and known[0].dtype in BITS


def _bits(wide: ir.Node) -> int:
    stored = wide.inputs[0]
    assert stored is not None and stored.const_value is not None
    return BITS[stored.const_value.dtype]


def _weight_shape(wide: ir.Node) -> tuple[int, int]:
    """``(N, K)``."""
    stored = wide.inputs[0]
    assert stored is not None and stored.const_value is not None
    a, b = stored.const_value.shape.numpy()
    return (b, a) if attribute(wide, "axis", 1) == 0 else (a, b)


def _bias_add(product: ir.Node, rows: int) -> ir.Node | None:
    """The Add of a constant vector ``[N]`` that alone uses a product."""
    add = only_user(product, "Add")
    others = [] if add is None else [value for value in add.inputs if value is not product.outputs[0]]
    if len(others) != 1 or others[0] is None or not others[0].is_initializer():
        return None
    return add if others[0].shape is not None and list(others[0].shape) == [rows] else None

"""Edits that put one wrong thing into a decoder's graph: an attribute, an input, a node, a weight, a code.

Each function here gives an edit: it finds its node by name and changes the model in place, as a faulty pass would have
left it. An edit that does not find what it changes fails, so that none quietly does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from exporter.weight_expressions import Rows, Stack, Transposed
from exporter.weight_tensor import WeightTensor
from exporter.weights import Array, Weight, Zeros
from graph_passes.matching import initializer

Edit = Callable[[ir.Model], None]


def node_of(model: ir.Model, name: str) -> ir.Node:
    """The node that makes the value of this name."""
    for node in model.graph:
        if any(value.name == name for value in node.outputs):
            return node
    raise LookupError(f"the graph makes no {name!r}")


def value_of(model: ir.Model, name: str) -> ir.Value:
    """An input, an initializer, or what a node makes."""
    graph = model.graph
    found = next((value for value in graph.inputs if value.name == name), graph.initializers.get(name))
    if found is not None:
        return found
    return next(value for value in node_of(model, name).outputs if value.name == name)


# Nodes --------------------------------------------------------------------------------------------


def attribute(name: str, **changed: Any) -> Edit:
    """Attributes of a node have other values."""

    def edit(model: ir.Model) -> None:
        node = node_of(model, name)
        for key, value in changed.items():
            old = node.attributes[key].value if key in node.attributes else None
            assert old != value, f"{key} of {name} is {value} already"
            node.attributes[key] = ir.convenience.convert_attribute(key, value)

    return edit


def rewire(name: str, **sources: str) -> Edit:
    """A node's inputs come from elsewhere: ``_3="past_key_values.0.key"`` for input 3; an empty name for none."""

    def edit(model: ir.Model) -> None:
        node = node_of(model, name)
        for place, source in sources.items():
            node.replace_input_with(int(place[1:]), value_of(model, source) if source else None)

    return edit


def crossed(name: str, i: int, j: int) -> Edit:
    """Two inputs of a node change places."""

    def edit(model: ir.Model) -> None:
        node = node_of(model, name)
        a, b = node.inputs[i], node.inputs[j]
        assert a is not b
        node.replace_input_with(i, b)
        node.replace_input_with(j, a)

    return edit


def bypassed(name: str) -> Edit:
    """What a node makes is its first input instead, under the same name: an Identity stands in its place."""
    return replaced(name, lambda node: ("Identity", [node.inputs[0]], {}))


def replaced(name: str, by: Callable[[ir.Node], tuple[str, list[ir.Value | None], dict[str, Any]]]) -> Edit:
    """Another standard op in a node's place; its first output keeps name, type and shape."""

    def edit(model: ir.Model) -> None:
        node = node_of(model, name)
        op_type, inputs, attributes = by(node)
        old = node.outputs[0]
        new = ir.node(
            op_type, inputs, attributes, outputs=[ir.Value(name=old.name, type=old.type, shape=old.shape)]
        )
        new.name = node.name
        new.metadata_props.update(node.metadata_props)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [new], [old], list(new.outputs))

    return edit


def computed(
    name: str, i: int, op_type: str, other: str | np.ndarray | None = None, **attributes: Any
) -> Edit:
    """Input i of a node goes through one more op first, with another value or a constant as its second input.

    With ``other`` empty the input itself is both operands.
    """

    def edit(model: ir.Model) -> None:
        node = node_of(model, name)
        x = node.inputs[i]
        assert x is not None
        if isinstance(other, str):
            second = value_of(model, other) if other else x
        else:
            second = (
                initializer(model.graph, ir.tensor(other, name=f"{name}.fault"))
                if other is not None
                else None
            )
        inputs = [x] if second is None else [x, second]
        extra = ir.node(
            op_type,
            inputs,
            attributes,
            outputs=[ir.Value(name=f"{name}.fault_{i}", type=x.type, shape=x.shape)],
        )
        extra.name = f"{name}.fault_{i}"
        model.graph.insert_before(node, extra)
        node.replace_input_with(i, extra.outputs[0])

    return edit


def function_attribute(op_type: str, **changed: Any) -> Edit:
    """A node in the body of one of the model's functions has other attributes, wherever the function is called."""

    def edit(model: ir.Model) -> None:
        bodies = [
            node for function in model.functions.values() for node in function if node.op_type == op_type
        ]
        assert bodies, f"no function holds a {op_type}"
        for node in bodies:
            for key, value in changed.items():
                node.attributes[key] = ir.convenience.convert_attribute(key, value)

    return edit


def both(*edits: Edit) -> Edit:
    """One edit after the other."""

    def edit(model: ir.Model) -> None:
        for one in edits:
            one(model)

    return edit


# Weights ------------------------------------------------------------------------------------------


def weight(name: str, change: Callable[[Weight], Weight], i: int = 1) -> Edit:
    """Input i of a node is another expression over the same tensors, under the same name."""

    def edit(model: ir.Model) -> None:
        value = node_of(model, name).inputs[i]
        tensor = value.const_value if value is not None else None
        assert value is not None and isinstance(tensor, WeightTensor), f"{name} reads no weight there"
        changed = change(tensor.weight)
        assert changed.shape == tensor.weight.shape
        value.const_value = WeightTensor(str(tensor.name), changed, transpose=tensor.transpose)

    return edit


def own_weight(name: str, change: Callable[[np.ndarray], np.ndarray], i: int = 1) -> Edit:
    """Input i of a node becomes a tensor of its own, apart from whoever else reads the old one."""

    def edit(model: ir.Model) -> None:
        node = node_of(model, name)
        old = node.inputs[i]
        assert old is not None and old.const_value is not None
        array = np.ascontiguousarray(change(old.const_value.numpy()))
        node.replace_input_with(i, initializer(model.graph, ir.tensor(array, name=f"{old.name}.fault")))

    return edit


def exchanged(a: str, b: str) -> Edit:
    """Two nodes read each other's weight."""

    def edit(model: ir.Model) -> None:
        first, second = (node_of(model, name).inputs[1] for name in (a, b))
        assert first is not None and second is not None
        first.const_value, second.const_value = second.const_value, first.const_value

    return edit


def part(index: int, change: Callable[[Weight], Weight]) -> Callable[[Weight], Weight]:
    """One of the weights that lie one under the other."""

    def changed(stack: Weight) -> Weight:
        assert isinstance(stack, Stack)
        return Stack(tuple(change(one) if i == index else one for i, one in enumerate(stack.parts)))

    return changed


def order(*indices: int) -> Callable[[Weight], Weight]:
    """The weights that lie one under the other, in another order."""

    def changed(stack: Weight) -> Weight:
        assert isinstance(stack, Stack)
        return Stack(tuple(stack.parts[i] for i in indices))

    return changed


def heads_reversed(size: int) -> Callable[[Weight], Weight]:
    """Heads of ``size`` rows each, the last one first."""

    def changed(base: Weight) -> Weight:
        rows = base.shape[0]
        return Rows(base, tuple((at, at + size) for at in range(rows - size, -1, -size)))

    return changed


def zeroed(base: Weight) -> Weight:
    return Zeros(base.shape)


def turned(base: Weight) -> Weight:
    """A square matrix the other way round."""
    return Transposed(base)


def rounded(base: Weight) -> Weight:
    """Through bfloat16."""
    return Array(base.read().astype(ml_dtypes.bfloat16).astype(np.float32))


def shifted(by: float) -> Callable[[Weight], Weight]:
    """Every element more by a number."""
    return lambda base: Array(base.read() + np.float32(by))


def rolled(base: Weight) -> Weight:
    """Every row one place further down."""
    return Rows(base, ((base.shape[0] - 1, base.shape[0]), (0, base.shape[0] - 1)))


# Codes --------------------------------------------------------------------------------------------


def codes(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """The packed codes of a MatMulNBits, uint8 ``[N, blocks, bytes]``, are others."""

    def edit(model: ir.Model) -> None:
        _put(node_of(model, name).inputs[1], change)

    return edit


def scales(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """The scales of a MatMulNBits, float16 ``[N, blocks]``, are others."""

    def edit(model: ir.Model) -> None:
        scale = node_of(model, name).inputs[2]
        cast = scale.producer() if scale is not None else None
        _put(scale if cast is None else cast.inputs[0], change)

    return edit


def stale_scales(name: str, other: str) -> Edit:
    """The scales of a MatMulNBits are those of another one of the same shape."""

    def edit(model: ir.Model) -> None:
        node_of(model, name).replace_input_with(2, node_of(model, other).inputs[2])

    return edit


def flipped_column(column: int) -> Callable[[np.ndarray], np.ndarray]:
    """The codes of one input channel, 4 bits each, with every bit flipped."""

    def changed(packed: np.ndarray) -> np.ndarray:
        packed = packed.copy()
        block, inside = divmod(column, 2 * packed.shape[2])
        packed[:, block, inside // 2] ^= np.uint8(0xF0 if inside % 2 else 0x0F)
        return packed

    return changed


def _put(value: ir.Value | None, change: Callable[[np.ndarray], np.ndarray]) -> None:
    assert value is not None and value.const_value is not None
    old = value.const_value.numpy()
    new = np.ascontiguousarray(change(old))
    assert new.shape == old.shape and new.dtype == old.dtype and not np.array_equal(new, old)
    value.const_value = ir.tensor(new, name=value.name)

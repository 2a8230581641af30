"""Elements that move and do not change: Reshape, Transpose, Expand.

What leaves elements in their order (Unsqueeze, Squeeze, Flatten, Reshape) is one Reshape with a constant target: 0
where it copies the dim at the same place, at most one −1.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graph_passes.inference.dims import Size, at_least, product
from graph_passes.inference.facts import dims
from graph_passes.inference.known import UNKNOWN, Fact, KnownNode, Shape
from graph_passes.inference.shapes import RULES as SHAPES
from graph_passes.matching import attribute, constant, is_ints, make, producer
from graph_passes.structure import Edit, Rule
from graph_passes.structure.constants import Constants

VIEWS = frozenset(["Flatten", "Reshape", "Squeeze", "Unsqueeze"])
"""Ops that leave elements in their order."""

BROADCASTING = frozenset(
    """
    Add And BitwiseAnd BitwiseOr Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mul Or Pow Sub Where Xor
    """.split()  # noqa: SIM905 (a table)
)
"""Ops that repeat an input along its dims of 1 by themselves."""


def view(node: ir.Node, constants: Constants) -> Edit | None:
    """reshape(reshape(x)) ⇒ reshape(x), and none at all where the shape is that of x."""
    shape = dims(node.outputs[0])
    source = node.inputs[0]
    if shape is None or source is None:
        return None
    chain = list(viewed(source))
    for root in chain:
        if dims(root) == shape:
            return Edit([root])
    for root in reversed(chain):
        target = reshape_target(dims(root), shape)
        if target is None:
            continue
        if root is source and (
            _is_control(root) or (node.op_type == "Reshape" and is_ints(node.inputs[1], *target))
        ):
            return None
        inputs = [root, constants.ints(*target)]
        return Edit.of(make("Reshape", inputs, str(node.name)))
    return None


def _is_control(value: ir.Value) -> bool:
    """Whether a value is of integers or truths: masks, positions and lengths keep their Unsqueeze and Squeeze."""
    return value.dtype is None or not value.dtype.is_floating_point()


def viewed(value: ir.Value) -> list[ir.Value]:
    """The value and those of which it is a view, the nearest first."""
    found = [value]
    while True:
        node = found[-1].producer()
        if node is None or node.op_type not in VIEWS or node.domain != "" or node.inputs[0] is None:
            return found
        found.append(node.inputs[0])


def reshape_target(source: Shape | None, wanted: Shape) -> list[int] | None:
    """The constant that makes Reshape give the wanted shape; None where one constant does not for all lengths."""
    target: list[int] = []
    copied: list[Size] = []
    for axis, size in enumerate(wanted):
        if isinstance(size, int):
            target.append(size)
        elif source is not None and axis < len(source) and source[axis] == size:
            target.append(0)
            copied.append(size)
        else:
            target.append(-1)
    if 0 in wanted or target.count(-1) > 1:
        return None
    if -1 in target and not all(at_least(size, 1) for size in copied):
        return None  # what is left of nothing is not defined
    return target


def transposed(node: ir.Node, constants: Constants) -> Edit | None:
    """transpose(transpose(x)) ⇒ transpose(x), and none at all where every axis stays; the axes always said."""
    source = node.inputs[0]
    shape = dims(source) if source is not None else None
    if source is None or shape is None:
        return None
    perm = list(attribute(node, "perm", None) or range(len(shape))[::-1])
    inner = producer(source, "Transpose")
    if inner is not None and inner.inputs[0] is not None:
        first = list(attribute(inner, "perm", None) or range(len(shape))[::-1])
        perm, source = [first[axis] for axis in perm], inner.inputs[0]
    if perm == sorted(perm):
        return Edit([source])
    if inner is None and "perm" in node.attributes:
        return None
    return Edit.of(make("Transpose", [source], str(node.name), perm=perm))


def regrouped(node: ir.Node, constants: Constants) -> Edit | None:
    """reshape(transpose(reshape(x))) ⇒ transpose(x), where the first Reshape puts dims together, which move as one,
    and the last takes them apart again."""
    transpose = producer(node.inputs[0], "Transpose")
    merged = transpose.inputs[0] if transpose is not None else None
    merge = merged.producer() if merged is not None else None
    if transpose is None or merged is None or merge is None or merge.op_type not in VIEWS:
        return None
    source, whole = merge.inputs[0], dims(merged)
    shape = dims(source) if source is not None else None
    if source is None or shape is None or whole is None:
        return None
    groups = _groups(shape, whole)
    if groups is None:
        return None
    perm = [
        axis
        for place in attribute(transpose, "perm", None) or range(len(whole))[::-1]
        for axis in groups[place]
    ]
    if tuple(shape[axis] for axis in perm) != dims(node.outputs[0]):
        return None
    return Edit.of(make("Transpose", [source], str(node.name), perm=perm))


def _groups(shape: Shape, merged: Shape) -> list[list[int]] | None:
    """Axes of a shape that make up each dim of another, which is the same with neighbours put together."""
    groups, at = [], 0
    for size in merged:
        group: list[int] = []
        while product(shape[axis] for axis in group) != size:
            if at == len(shape):
                return None
            group.append(at)
            at += 1
        groups.append(group)
    return groups if at == len(shape) else None


def expanded(node: ir.Node, constants: Constants) -> Edit | None:
    """Expand to what a value is already ⇒ the value; else its target is a constant, 1 where it keeps a dim."""
    source, shape = node.inputs[0], dims(node.outputs[0])
    given = dims(source) if source is not None else None
    if source is None or given is None or shape is None:
        return None
    if given == shape:
        return Edit([source])
    aligned = (1,) * (len(shape) - len(given)) + given
    target = [1 if have == want else want for have, want in zip(aligned, shape, strict=True)]
    numbers = [size for size in target if isinstance(size, int)]
    if len(numbers) < len(target) or is_ints(node.inputs[1], *numbers):
        return None
    return Edit.of(make("Expand", [source, constants.ints(*numbers)], str(node.name)))


def tiled(node: ir.Node, constants: Constants) -> Edit | None:
    """Tile of dims of 1 ⇒ Expand."""
    source, repeats = node.inputs[0], constant(node.inputs[1])
    shape = dims(source) if source is not None else None
    if source is None or shape is None or repeats is None:
        return None
    if any(size != 1 and repeat != 1 for size, repeat in zip(shape, repeats.tolist(), strict=True)):
        return None
    return Edit.of(make("Expand", [source, constants.ints(*repeats.tolist())], str(node.name)))


def broadcasting(node: ir.Node, constants: Constants) -> Edit | None:
    """f(expand(x), y) ⇒ f(x, y) where f repeats x itself, to the same shape; a constant of one element has no dims."""
    shapes = [None if value is None else dims(value) for value in node.inputs]
    inputs = list(node.inputs)
    for i, value in enumerate(node.inputs):
        smaller = _smaller(value, constants)
        shape = dims(smaller) if smaller is not None else None
        if smaller is None or shape is None or not _is_repeated(node, i, shapes, shape):
            continue
        inputs[i], shapes[i] = smaller, shape
    if inputs == list(node.inputs):
        return None
    new = make(node.op_type, inputs, str(node.name))
    for name, given in node.attributes.items():
        new.attributes[name] = given
    new.metadata_props.update(node.metadata_props)
    return Edit.of(new)


def _smaller(value: ir.Value | None, constants: Constants) -> ir.Value | None:
    """What a value repeats."""
    expand = producer(value, "Expand")
    if expand is not None:
        return expand.inputs[0]
    held = constant(value)
    if value is None or held is None or held.size != 1 or held.ndim == 0:
        return None
    return constants.of(ir.tensor(held.reshape(()), name=f"{value.name}.scalar"))


def _is_repeated(node: ir.Node, i: int, shapes: list[Shape | None], smaller: Shape) -> bool:
    """Whether the op gives the same shape for the input without its Expand."""
    if node.op_type == "MatMul":
        larger = shapes[i]
        if larger is None or larger[-2:] != smaller[-2:] or len(smaller) < 2:
            return False
    facts = tuple(
        UNKNOWN if value is None else Fact(value.dtype, s)
        for value, s in zip(node.inputs, shapes, strict=True)
    )
    tried = (*facts[:i], Fact(facts[i].dtype, smaller), *facts[i + 1 :])
    known = KnownNode(node, tried)
    found = SHAPES["", node.op_type](known)[0].shape
    if found is None or found != dims(node.outputs[0]):
        return False
    return not any(size == known.unknown(axis) for axis, size in enumerate(found))


def concatenated(node: ir.Node, constants: Constants) -> Edit | None:
    """Concat of one ⇒ that one."""
    return Edit([node.inputs[0]]) if len(node.inputs) == 1 and node.inputs[0] is not None else None


RULES: Mapping[str, tuple[Rule, ...]] = {
    **dict.fromkeys(VIEWS, (regrouped, view)),
    **dict.fromkeys(BROADCASTING, (broadcasting,)),
    "Concat": (concatenated,),
    "Expand": (expanded,),
    "MatMul": (broadcasting,),
    "Tile": (tiled,),
    "Transpose": (transposed,),
}
"""Rules by op."""

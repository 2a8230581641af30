"""Parts of a value: one Slice for each, along axes and between bounds that are counted from the front.

A bound at the end is the dim where that is a number, and the largest int64 where it is a symbol.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from exporter.control import END
from graph_passes.inference.dims import Size
from graph_passes.inference.facts import dims, fact_of
from graph_passes.inference.known import UNKNOWN, KnownNode, Shape
from graph_passes.inference.movement import slices_of
from graph_passes.matching import attribute, constant, is_ints, make
from graph_passes.structure import Edit, Rule
from graph_passes.structure.constants import Constants

Bounds = tuple[int, int, int]
"""Axis, start, end."""


def sliced(node: ir.Node, constants: Constants) -> Edit | None:
    """Bounds in their fixed spelling; a slice that keeps everything ⇒ the value."""
    known = KnownNode(node, tuple(UNKNOWN if value is None else fact_of(value) for value in node.inputs))
    source, shape, found = node.inputs[0], known.shape(0), slices_of(known)
    if source is None or shape is None or found is None or any(step != 1 for *_, step in found):
        return None
    result = dims(node.outputs[0])
    if result == shape:
        return Edit([source])
    bounds = []
    for axis, start, end, _ in sorted(found, key=lambda each: each[0]):
        if result is not None and result[axis] == shape[axis]:
            continue
        kept = _bounds(shape[axis], start, end)
        if kept is None:
            return None
        bounds.append((axis, *kept))
    if not bounds or _is_spelled(node, bounds):
        return None
    return Edit.of(cut(source, bounds, str(node.name), constants))


def _bounds(size: Size, start: Size | None, end: Size | None) -> tuple[int, int] | None:
    """Bounds as constants; None where they are not."""
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    if isinstance(size, int):
        first, last, _ = slice(start, end).indices(size)
        return first, max(first, last)
    if end >= END >> 1:
        return start, END  # a start that is counted from the end stays so: the dim is not known
    return start, end


def _is_spelled(node: ir.Node, bounds: list[Bounds]) -> bool:
    axes, starts, ends = (list(each) for each in zip(*bounds, strict=True))
    return (
        len(node.inputs) == 4
        and is_ints(node.inputs[1], *starts)
        and is_ints(node.inputs[2], *ends)
        and is_ints(node.inputs[3], *axes)
    )


def cut(source: ir.Value, bounds: list[Bounds], name: str, constants: Constants) -> ir.Node:
    """A Slice with constant bounds."""
    axes, starts, ends = zip(*bounds, strict=True)
    return make("Slice", [source, *(constants.ints(*numbers) for numbers in (starts, ends, axes))], name)


def split(node: ir.Node, constants: Constants) -> Edit | None:
    """Split ⇒ a Slice for each part."""
    source = node.inputs[0]
    shape = dims(source) if source is not None else None
    if source is None or shape is None:
        return None
    axis, start, nodes = attribute(node, "axis", 0) % len(shape), 0, []
    for i, output in enumerate(node.outputs):
        size = _size(dims(output), axis)
        if size is None:
            return None
        nodes.append(cut(source, [(axis, start, start + size)], f"{node.name}.{i}", constants))
        start += size
    return Edit([each.outputs[0] for each in nodes], nodes)


def _size(shape: Shape | None, axis: int) -> int | None:
    size = None if shape is None else shape[axis]
    return size if isinstance(size, int) else None


def picked(node: ir.Node, constants: Constants) -> Edit | None:
    """One row of a float value ⇒ a Slice and a Reshape. Tables and shapes are gathered from."""
    source, index = node.inputs[0], constant(node.inputs[1])
    shape = dims(source) if source is not None else None
    if (
        source is None
        or shape is None
        or index is None
        or index.size != 1
        or index.ndim > 1
        or source.is_initializer()
    ):
        return None
    axis = attribute(node, "axis", 0) % len(shape)
    size, at = shape[axis], int(index.item())
    if source.dtype is None or not source.dtype.is_floating_point() or not isinstance(size, int):
        return None
    at %= size
    row = cut(source, [(axis, at, at + 1)], f"{node.outputs[0].name}.row", constants)
    if index.ndim == 1:
        return Edit.of(row)
    axes = constants.ints(axis)
    return Edit.of(row, make("Squeeze", [row.outputs[0], axes], str(node.name)))


RULES: Mapping[str, tuple[Rule, ...]] = {"Gather": (picked,), "Slice": (sliced,), "Split": (split,)}
"""Rules by op."""

"""Shapes of ops that move elements, and of those that take a shape as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from exporter.control import END
from graph_passes.inference.dims import Size, at_least, divide, product
from graph_passes.inference.known import UNKNOWN, Fact, KnownNode, Rule, Shape, broadcast
from graph_passes.matching import held_by


def _shape(node: KnownNode) -> list[Fact]:
    shape = node.shape(0)
    if shape is None:
        return [Fact(ir.DataType.INT64, None)]
    part = shape[node.attribute("start", 0) : node.attribute("end")]
    return [Fact(ir.DataType.INT64, (len(part),))]


def _scalar_int64(node: KnownNode) -> list[Fact]:
    return [Fact(ir.DataType.INT64, ())]


def _constant(node: KnownNode) -> list[Fact]:
    tensor = held_by(node.ir_node)
    if tensor is None:
        return [UNKNOWN]
    return [Fact(tensor.dtype, tuple(tensor.shape.numpy()))]


def _constant_of_shape(node: KnownNode) -> list[Fact]:
    value = node.attribute("value")
    dtype = ir.DataType.FLOAT if value is None else value.dtype
    return [Fact(dtype, _of_contents(node, node.fact(0)))]


def _of_contents(node: KnownNode, target: Fact) -> Shape | None:
    """A shape that is the contents of an input."""
    if target.contents is None:
        if target.shape is None or len(target.shape) != 1 or not isinstance(target.shape[0], int):
            return None
        return tuple(node.unknown(axis) for axis in range(target.shape[0]))
    return tuple(node.unknown(axis) if size is None else size for axis, size in enumerate(target.contents))


def _range(node: KnownNode) -> list[Fact]:
    start, limit, delta = (fact.contents[0] if fact.contents else None for fact in map(node.fact, range(3)))
    length: Size | None = None
    if start is not None and limit is not None and isinstance(delta, int) and delta:
        span = limit - start if delta > 0 else start - limit
        if isinstance(span, int):
            length = max(0, -(-span // abs(delta)))
        elif at_least(span, 0):
            length = divide(span, abs(delta))
    return [Fact(node.dtype(0), (node.unknown(0) if length is None else length,))]


# Elements ---------------------------------------------------------------------------------------------------


def _reshape(node: KnownNode) -> list[Fact]:
    source, dtype = node.shape(0), node.dtype(0)
    target = node.fact(1).contents
    if not node.has(1):
        target = tuple(node.attribute("shape", ()))
    if target is None:
        return [Fact(dtype, _of_contents(node, node.fact(1)))]
    copies = not node.attribute("allowzero", 0)
    wanted: list[Size | None] = []
    for axis, size in enumerate(target):
        if size == 0 and copies:
            wanted.append(source[axis] if source is not None and axis < len(source) else None)
        else:
            wanted.append(None if size == -1 else size)
    return [Fact(dtype, _with_the_rest(node, source, wanted))]


def _with_the_rest(node: KnownNode, source: Shape | None, wanted: Sequence[Size | None]) -> Shape:
    """The one dim that is missing is what the others leave of the whole."""
    known = [size for size in wanted if size is not None]
    rest = None
    if source is not None and len(known) == len(wanted) - 1:
        rest = divide(product(source), product(known))
    filled = (rest if size is None else size for size in wanted)
    return tuple(node.unknown(axis) if size is None else size for axis, size in enumerate(filled))


def _flatten(node: KnownNode) -> list[Fact]:
    shape, axis = node.shape(0), node.attribute("axis", 1)
    if shape is None:
        return [Fact(node.dtype(0), None)]
    axis += len(shape) if axis < 0 else 0
    return [Fact(node.dtype(0), (product(shape[:axis]), product(shape[axis:])))]


def _transpose(node: KnownNode) -> list[Fact]:
    shape = node.shape(0)
    if shape is None:
        return [Fact(node.dtype(0), None)]
    perm = node.attribute("perm") or range(len(shape))[::-1]
    return [Fact(node.dtype(0), tuple(shape[axis] for axis in perm))]


def _unsqueeze(node: KnownNode) -> list[Fact]:
    shape, axes = node.shape(0), node.ints(1, "axes")
    if shape is None or axes is None:
        return [Fact(node.dtype(0), None)]
    rank = len(shape) + len(axes)
    new, rest = {axis % rank for axis in axes}, iter(shape)
    return [Fact(node.dtype(0), tuple(1 if axis in new else next(rest) for axis in range(rank)))]


def _squeeze(node: KnownNode) -> list[Fact]:
    shape, axes = node.shape(0), node.ints(1, "axes")
    if shape is not None and not node.names_ints(1, "axes") and all(isinstance(size, int) for size in shape):
        axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    if shape is None or axes is None:
        return [Fact(node.dtype(0), None)]
    gone = {axis % len(shape) for axis in axes}
    return [Fact(node.dtype(0), tuple(size for axis, size in enumerate(shape) if axis not in gone))]


def _expand(node: KnownNode) -> list[Fact]:
    target = _of_contents(node, node.fact(1))
    return [Fact(node.dtype(0), broadcast(node, [node.shape(0), target]))]


def _tile(node: KnownNode) -> list[Fact]:
    shape, repeats = node.shape(0), node.fact(1).contents
    if shape is None or repeats is None:
        return [Fact(node.dtype(0), None if shape is None else tuple(map(node.unknown, range(len(shape)))))]
    sizes = (
        node.unknown(axis) if repeat is None else size * repeat
        for axis, (size, repeat) in enumerate(zip(shape, repeats, strict=True))
    )
    return [Fact(node.dtype(0), tuple(sizes))]


def _concat(node: KnownNode) -> list[Fact]:
    shapes = [fact.shape for fact in node.facts]
    known = [shape for shape in shapes if shape is not None]
    dtype = node.dtype(0)
    if not known:
        return [Fact(dtype, None)]
    rank = len(known[0])
    axis = node.attribute("axis") % rank
    sizes: list[Size] = []
    for i in range(rank):
        if i != axis:  # all are equal, so whatever is known of one is known of all
            numbers = [shape[i] for shape in known if isinstance(shape[i], int)]
            sizes.append(numbers[0] if numbers else known[0][i])
        elif len(known) == len(shapes):
            sizes.append(sum((shape[i] for shape in known), start=0))
        else:
            sizes.append(node.unknown(axis))
    return [Fact(dtype, tuple(sizes))]


def _split(node: KnownNode) -> list[Fact]:
    count, shape, dtype = len(node.ir_node.outputs), node.shape(0), node.dtype(0)
    if shape is None:
        return [Fact(dtype, None)] * count
    axis = node.attribute("axis", 0) % len(shape)
    parts: Sequence[Size | None]
    if node.names_ints(1, "split"):
        parts = (node.fact(1).contents if node.has(1) else node.attribute("split")) or [None] * count
    else:
        parts = _even_parts(shape[axis], node.attribute("num_outputs", count))
    return [
        Fact(dtype, (*shape[:axis], node.unknown(axis, i) if part is None else part, *shape[axis + 1 :]))
        for i, part in enumerate(parts)
    ]


def _even_parts(size: Size, count: int) -> list[Size | None]:
    if isinstance(size, int):
        part = -(-size // count)
        return [*[part] * (count - 1), size - part * (count - 1)]
    return [divide(size, count)] * count


def slice_length(size: Size, start: Size | None, end: Size | None, step: Size | None) -> Size | None:
    """How many elements ``size[start:end:step]`` has; None where that depends on more than the symbols."""
    if start is None or end is None or not isinstance(step, int) or step == 0:
        return None
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, None if step < 0 and end < -size else end, step).indices(size)))
    if step != 1:
        return None
    first, last = clamped(size, start), clamped(size, end)
    if first is None or last is None:
        return None
    length = last - first
    return length if at_least(length, 0) else None


def clamped(size: Size, bound: Size) -> Size | None:
    """A bound of a slice with step 1, as a distance from the front; None where it is not known."""
    if isinstance(bound, int) and bound >= END >> 1:
        return size
    within = isinstance(size, int) and not isinstance(bound, int)
    if at_least(bound, 0):
        if at_least(bound, size):
            return size
        return bound if within or at_least(size, bound) else None
    if not at_least(-1, bound):
        return None
    if at_least(0, size + bound):
        return 0
    return size + bound if within or at_least(size + bound, 0) else None


def _slice(node: KnownNode) -> list[Fact]:
    shape, dtype = node.shape(0), node.dtype(0)
    if shape is None:
        return [Fact(dtype, None)]
    bounds = slices_of(node)
    if bounds is None:
        return [Fact(dtype, tuple(node.unknown(axis) for axis in range(len(shape))))]
    sizes = list(shape)
    for axis, start, end, step in bounds:
        length = slice_length(sizes[axis], start, end, step)
        sizes[axis] = node.unknown(axis) if length is None else length
    return [Fact(dtype, tuple(sizes))]


def slices_of(node: KnownNode) -> list[tuple[int, Size | None, Size | None, Size | None]] | None:
    """``(axis, start, end, step)`` of a Slice, axes counted from the front; None where the axes are not known."""
    shape = node.shape(0)
    if node.has(1):
        count = node.shape(1)
        if shape is None or count is None or len(count) != 1 or not isinstance(count[0], int):
            return None
        starts, ends = (node.fact(i).contents or (None,) * count[0] for i in (1, 2))
    else:
        starts, ends = tuple(node.attribute("starts", ())), tuple(node.attribute("ends", ()))
    axes = node.ints(3, "axes") if node.names_ints(3, "axes") else tuple(range(len(starts)))
    steps = (node.fact(4).contents or (None,) * len(starts)) if node.has(4) else (1,) * len(starts)
    if shape is None or axes is None:
        return None
    places = [axis % len(shape) for axis in axes]
    return list(zip(places, starts, ends, steps, strict=True))


def _gather(node: KnownNode) -> list[Fact]:
    data, indices = node.shape(0), node.shape(1)
    if data is None or indices is None:
        return [Fact(node.dtype(0), None)]
    axis = node.attribute("axis", 0) % len(data)
    return [Fact(node.dtype(0), (*data[:axis], *indices, *data[axis + 1 :]))]


def _gather_elements(node: KnownNode) -> list[Fact]:
    return [Fact(node.dtype(0), node.shape(1))]


def _gather_nd(node: KnownNode) -> list[Fact]:
    data, indices, batch = node.shape(0), node.shape(1), node.attribute("batch_dims", 0)
    if data is None or indices is None or not isinstance(indices[-1], int):
        return [Fact(node.dtype(0), None)]
    return [Fact(node.dtype(0), (*indices[:-1], *data[batch + indices[-1] :]))]


RULES: Mapping[str, Rule] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _scalar_int64,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Rules by op."""

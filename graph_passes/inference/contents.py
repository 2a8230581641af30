"""Contents of small integer tensors, by op: what a graph computes from shapes, on symbolic dims.

A rule takes arrays of dims, ints and None (not known) and gives one; it is exact where it gives anything. Bools are
0 and 1. Floats take part while they hold whole numbers.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from graph_passes.inference.dims import Dim, Size, at_least, divide, product
from graph_passes.inference.known import Contents, Fact, KnownNode, Shape
from graph_passes.inference.movement import slices_of
from graph_passes.matching import held_by

LIMIT = 64
"""Elements up to which contents are followed."""

EXACT = 1 << 24
"""Whole numbers below this are exact in float32."""

Element = Size | None
Array = np.ndarray
"""Of dims, ints and None."""


def contents_of(node: KnownNode, result: Fact) -> Contents | None:
    """What the first output of a node holds, where its type and shape are ``result``."""
    rule = RULES.get(node.ir_node.op_type) if node.ir_node.domain == "" else None
    if rule is None or result.dtype is None or result.shape is None or not _is_small(result.shape):
        return None
    if not (result.dtype.is_integer() or result.dtype in (ir.DataType.BOOL, *FLOATS)):
        return None
    found = rule(node, result.shape)
    if found is None:
        return None
    elements = np.asarray(found, object).reshape(-1).tolist()  # numpy gives an element itself for a scalar
    checked = tuple(_in_range(element, result.dtype) for element in elements)
    return None if all(element is None for element in checked) else checked


FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def _is_small(shape: Shape) -> bool:
    size = product(shape)
    return isinstance(size, int) and size <= LIMIT


def _in_range(element: Element, dtype: ir.DataType) -> Element:
    """The element itself, unless a number of this type would wrap round or be rounded."""
    if element is None or dtype == ir.DataType.BOOL:
        return element
    if isinstance(element, Dim):
        if dtype in FLOATS:
            return element if all(len(monomial) < 2 for monomial, _ in element.terms) else None
        return element if dtype.bitwidth >= 32 and (dtype.is_signed() or at_least(element, 0)) else None
    if dtype in FLOATS:
        return element if abs(element) <= EXACT else None
    low, high = 0, 1 << dtype.bitwidth
    if dtype.is_signed():
        low, high = -(high >> 1), high >> 1
    return element if low <= element < high else None


def array_of(fact: Fact) -> Array | None:
    """Contents in their shape; an array of None where they are not known but small; None where they are not."""
    shape = fact.shape
    if shape is None or not _is_small(shape):
        return None
    sizes = [size for size in shape if isinstance(size, int)]
    elements = (None,) * math.prod(sizes) if fact.contents is None else fact.contents
    return _vector(elements).reshape(sizes)


# Elements -------------------------------------------------------------------------------------------------


def _elementwise(apply: Callable[..., Element]) -> Callable[[KnownNode, Shape], Array | None]:
    """A rule that works element by element, with broadcasting."""

    def lifted(*elements: Element) -> Element:
        return None if None in elements else apply(*elements)

    def rule(node: KnownNode, _: Shape) -> Array | None:
        arrays = [array for fact in node.facts if (array := array_of(fact)) is not None]
        if not arrays or len(arrays) < len(node.facts):
            return None
        if len(arrays) == 1:
            return np.asarray(np.frompyfunc(lifted, 1, 1)(arrays[0]), object)
        return functools.reduce(lambda a, b: np.asarray(np.frompyfunc(lifted, 2, 1)(a, b), object), arrays)

    return rule


def _less(a: Size, b: Size) -> Element:
    if at_least(b, a + 1):
        return 1
    return 0 if at_least(a, b) else None


def _less_or_equal(a: Size, b: Size) -> Element:
    if at_least(b, a):
        return 1
    return 0 if at_least(a, b + 1) else None


def _equal(a: Size, b: Size) -> Element:
    if a == b:
        return 1
    return 0 if at_least(a, b + 1) or at_least(b, a + 1) else None


def _greatest(a: Size, b: Size) -> Element:
    if at_least(a, b):
        return a
    return b if at_least(b, a) else None


def _least(a: Size, b: Size) -> Element:
    if at_least(a, b):
        return b
    return a if at_least(b, a) else None


def _quotient(a: Size, b: Size) -> Element:
    """Of numbers that are not negative, where every runtime rounds alike; of dims where nothing is left over."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a >= 0 and b > 0 else None
    return divide(a, b) if at_least(a, 0) and at_least(b, 1) else None


def _remainder(a: Size, b: Size) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return a % b if b > 0 and a >= 0 else None
    return 0 if at_least(a, 0) and at_least(b, 1) and divide(a, b) is not None else None


def _absolute(a: Size) -> Element:
    if at_least(a, 0):
        return a
    return -a if at_least(0, a) else None


def _truth(a: Size) -> Element:
    if isinstance(a, int):
        return int(a != 0)
    return 1 if at_least(a, 1) else None


def _divided(node: KnownNode, shape: Shape) -> Array | None:
    if node.dtype(0) not in FLOATS:
        return _elementwise(_quotient)(node, shape)
    return _elementwise(lambda a, b: divide(a, b) if at_least(b, 1) else None)(node, shape)


def _modulo(node: KnownNode, shape: Shape) -> Array | None:
    return _elementwise(_remainder)(node, shape)


def _cast(node: KnownNode, shape: Shape) -> Array | None:
    if node.attribute("to") == ir.DataType.BOOL:
        return _elementwise(_truth)(node, shape)
    return array_of(node.fact(0))


def _where(node: KnownNode, _: Shape) -> Array | None:
    condition, yes, no = (array_of(node.fact(i)) for i in range(3))
    if condition is None or yes is None or no is None:
        return None

    def choose(which: Element, a: Element, b: Element) -> Element:
        if which is None:
            return a if a == b else None
        return a if which else b

    return np.asarray(np.frompyfunc(choose, 3, 1)(condition, yes, no), object)


# Shapes and constants -------------------------------------------------------------------------------------


def _shape(node: KnownNode, _: Shape) -> Array | None:
    sizes = node.shape(0)
    return None if sizes is None else _vector(sizes[node.attribute("start", 0) : node.attribute("end")])


def _size(node: KnownNode, _: Shape) -> Array | None:
    sizes = node.shape(0)
    return None if sizes is None else _vector([product(sizes)])


def _vector(elements: Iterable[Element]) -> Array:
    held = list(elements)
    array = np.empty(len(held), object)
    for i, element in enumerate(held):
        array[i] = element
    return array


def _constant(node: KnownNode, _: Shape) -> Array | None:
    tensor = held_by(node.ir_node)
    found = None if tensor is None else whole_numbers(tensor)
    return None if found is None else _vector(found)


def whole_numbers(tensor: ir.TensorProtocol) -> Contents | None:
    """Elements of a constant of integers that is small, and a float scalar's where it is a whole number."""
    if tensor.size > LIMIT or isinstance(tensor, ir.LazyTensor):
        return None
    dtype = tensor.dtype
    if dtype in FLOATS and tensor.size == 1:
        number = float(tensor.numpy().reshape(-1)[0])
        return (int(number),) if number.is_integer() and abs(number) <= EXACT else None
    if not (dtype.is_integer() or dtype == ir.DataType.BOOL):
        return None
    return tuple(map(int, tensor.numpy().reshape(-1).tolist()))


def _constant_of_shape(node: KnownNode, shape: Shape) -> Array | None:
    value = node.attribute("value")
    found = (0,) if value is None else whole_numbers(value)
    return None if not found else np.full(int(product(shape)), found[0], object)  # type: ignore[arg-type]


def _range(node: KnownNode, shape: Shape) -> Array | None:
    start, delta = (fact.contents[0] if fact.contents else None for fact in (node.fact(0), node.fact(2)))
    if start is None or delta is None:
        return None
    return _vector(start + i * delta for i in range(int(product(shape))))  # type: ignore[arg-type]


# Moving elements ------------------------------------------------------------------------------------------


def _same_elements(node: KnownNode, _: Shape) -> Array | None:
    return array_of(node.fact(0))


def _transpose(node: KnownNode, _: Shape) -> Array | None:
    array = array_of(node.fact(0))
    return None if array is None else np.transpose(array, node.attribute("perm"))


def _expand(node: KnownNode, shape: Shape) -> Array | None:
    array = array_of(node.fact(0))
    return None if array is None else np.broadcast_to(array, [s for s in shape if isinstance(s, int)])


def _concat(node: KnownNode, _: Shape) -> Array | None:
    arrays = [array_of(fact) for fact in node.facts]
    known = [array for array in arrays if array is not None]
    return np.concatenate(known, axis=node.attribute("axis")) if len(known) == len(arrays) else None


def _gather(node: KnownNode, _: Shape) -> Array | None:
    array, indices = array_of(node.fact(0)), array_of(node.fact(1))
    axis = node.attribute("axis", 0)
    if array is None or indices is None or not all(isinstance(i, int) for i in indices.reshape(-1)):
        return None
    size = array.shape[axis]
    if any(not -size <= i < size for i in indices.reshape(-1)):
        return None
    return np.take(array, indices.astype(np.int64), axis=axis)


def _slice(node: KnownNode, _: Shape) -> Array | None:
    array, bounds = array_of(node.fact(0)), slices_of(node)
    if array is None or bounds is None:
        return None
    index = [slice(None)] * array.ndim
    for axis, start, end, step in bounds:
        if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int):
            return None
        stop = None if step < 0 and end < -array.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return np.asarray(array[tuple(index)], object)


def _reduced(
    apply: Callable[[Size, Size], Element], empty: int | None
) -> Callable[[KnownNode, Shape], Array | None]:
    """A rule for a reduction of all axes of at most one dim."""

    def lifted(a: Element, b: Element) -> Element:
        return None if a is None or b is None else apply(a, b)

    def rule(node: KnownNode, shape: Shape) -> Array | None:
        array = array_of(node.fact(0))
        if array is None or array.ndim != 1 or product(shape) != 1 or (not array.size and empty is None):
            return None
        start = [] if empty is None else [empty]
        return _vector([functools.reduce(lifted, [*start, *array.tolist()])])

    return rule


RULES: Mapping[str, Callable[[KnownNode, Shape], Array | None]] = {
    "Abs": _elementwise(_absolute),
    "Add": _elementwise(operator.add),
    "And": _elementwise(lambda a, b: a * b),
    "Cast": _cast,
    "Ceil": _same_elements,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _divided,
    "Equal": _elementwise(_equal),
    "Expand": _expand,
    "Flatten": _same_elements,
    "Floor": _same_elements,
    "Gather": _gather,
    "Greater": _elementwise(lambda a, b: _less(b, a)),
    "GreaterOrEqual": _elementwise(lambda a, b: _less_or_equal(b, a)),
    "Identity": _same_elements,
    "Less": _elementwise(_less),
    "LessOrEqual": _elementwise(_less_or_equal),
    "Max": _elementwise(_greatest),
    "Min": _elementwise(_least),
    "Mod": _modulo,
    "Mul": _elementwise(operator.mul),
    "Neg": _elementwise(operator.neg),
    "Not": _elementwise(lambda a: 1 - a),
    "Or": _elementwise(lambda a, b: int(bool(a) or bool(b))),
    "Range": _range,
    "ReduceMax": _reduced(_greatest, None),
    "ReduceMin": _reduced(_least, None),
    "ReduceProd": _reduced(operator.mul, 1),
    "ReduceSum": _reduced(operator.add, 0),
    "Reshape": _same_elements,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _same_elements,
    "Sub": _elementwise(operator.sub),
    "Transpose": _transpose,
    "Unsqueeze": _same_elements,
    "Where": _where,
}

"""Arithmetic on one value: casts that change nothing, powers, and constants that can be multiplied or added instead.

Only what IEEE 754 gives to the last bit either way, or what onnxruntime computes as the same operation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graph_passes.inference.facts import dims
from graph_passes.matching import attribute, constant, make, producer
from graph_passes.structure import Edit, Rule
from graph_passes.structure.constants import Constants

B, I32, I64 = ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64
F16, F32, F64, BF16 = ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16

HELD: Mapping[ir.DataType, frozenset[ir.DataType]] = {
    B: frozenset([B, I32, I64, F16, F32, F64, BF16]),
    I32: frozenset([I32, I64, F64]),
    I64: frozenset([I64]),
    F16: frozenset([F16, F32, F64]),
    BF16: frozenset([BF16, F32, F64]),
    F32: frozenset([F32, F64]),
    F64: frozenset([F64]),
}
"""Types that hold every value of a type exactly."""


def cast(node: ir.Node, constants: Constants) -> Edit | None:
    """cast(cast(x)) ⇒ cast(x) where the type between holds all of x, and none at all for the type of x."""
    source = node.inputs[0]
    if source is None or source.dtype is None:
        return None
    to = ir.DataType(attribute(node, "to", 0))
    inner = producer(source, "Cast")
    origin = inner.inputs[0] if inner is not None else None
    if origin is not None and origin.dtype is not None and source.dtype in HELD.get(origin.dtype, ()):
        source = origin
    if source.dtype == to:
        return Edit([source])
    if source is node.inputs[0]:
        return None
    return Edit.of(make("Cast", [source], str(node.name), to=to))


def power(node: ir.Node, constants: Constants) -> Edit | None:
    """x² ⇒ x · x, which onnxruntime computes for it."""
    x, exponent = node.inputs[0], constant(node.inputs[1])
    if (
        x is None
        or exponent is None
        or exponent.size != 1
        or exponent.item() != 2
        or not _keeps_shape(node, 0)
    ):
        return None
    return Edit.of(make("Mul", [x, x], str(node.name)))


def quotient(node: ir.Node, constants: Constants) -> Edit | None:
    """1 / x ⇒ Reciprocal(x); x / c ⇒ x · (1/c) for a power of two."""
    a, b = node.inputs
    if a is None or b is None or a.dtype not in (F32, F16, F64):
        return None
    over, under = _number(a), _number(b)
    if over == 1 and _keeps_shape(node, 1):
        return Edit.of(make("Reciprocal", [b], str(node.name)))
    if under is None or abs(math.frexp(under)[0]) != 0.5 or not _keeps_shape(node, 0):
        return None
    with np.errstate(all="ignore"):
        factor = np.array(1 / under, a.dtype.numpy())
    if not np.isfinite(factor) or abs(factor) < np.finfo(factor.dtype).tiny:
        return None
    return Edit.of(make("Mul", [a, constants.scalar(factor.item(), a.dtype)], str(node.name)))


def difference(node: ir.Node, constants: Constants) -> Edit | None:
    """x − c ⇒ x + (−c) for a float c."""
    a, b = node.inputs
    number = _number(b)
    if a is None or number is None or a.dtype not in (F32, F16, F64) or not _keeps_shape(node, 0):
        return None
    return Edit.of(make("Add", [a, constants.scalar(-number, a.dtype)], str(node.name)))


def neutral(number: float) -> Rule:
    """A rule: x ∘ n ⇒ x where n is what changes nothing."""

    def rule(node: ir.Node, constants: Constants) -> Edit | None:
        for i in (0, 1) if node.op_type != "Div" else (0,):
            value = node.inputs[i]
            if value is not None and _all_are(node.inputs[1 - i], number) and _keeps_shape(node, i):
                return Edit([value])
        return None

    return rule


def nothing(node: ir.Node, constants: Constants) -> Edit | None:
    """Identity, and Dropout, which drops nothing when a model is run ⇒ the value."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    used = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    if node.inputs[0] is None or used or node.outputs[0].is_graph_output():
        return None
    if training is not None and not _all_are(training, 0):
        return None
    return Edit([node.inputs[0]] * len(node.outputs))


def chosen(node: ir.Node, constants: Constants) -> Edit | None:
    """where(always, a, b) ⇒ a."""
    for i, number in ((1, 1), (2, 0)):
        value = node.inputs[i]
        if value is not None and _all_are(node.inputs[0], number) and _keeps_shape(node, i):
            return Edit([value])
    return None


def _keeps_shape(node: ir.Node, i: int) -> bool:
    value = node.inputs[i]
    shape = dims(value) if value is not None else None
    return shape is not None and shape == dims(node.outputs[0])


def _number(value: ir.Value | None) -> float | None:
    array = constant(value)
    return float(array.item()) if array is not None and array.size == 1 else None


def _all_are(value: ir.Value | None, number: float) -> bool:
    """Whether a constant is a number, or a mask all over; a weight that happens to be so is none."""
    array = constant(value)
    if array is None or not (array.size == 1 or (array.size and array.dtype == np.bool_)):
        return False
    return bool((array == number).all())


RULES: Mapping[str, tuple[Rule, ...]] = {
    "And": (neutral(1),),
    "Cast": (cast,),
    "Div": (neutral(1), quotient),
    "Dropout": (nothing,),
    "Identity": (nothing,),
    "Mul": (neutral(1),),
    "Or": (neutral(0),),
    "Pow": (power,),
    "Sub": (difference,),
    "Where": (chosen,),
}
"""Rules by op."""

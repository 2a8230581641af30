"""A graph in the opset of the canonical graph: older spellings of the same ops, rewritten in place.

Axes that older opsets have as attributes become inputs; an op whose newer schema asks for nothing else stays as it
is. Anything that means something else in the newer opset is refused by name. No weight is touched, unlike by
onnx's own converter, which works on a serialized model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import onnx
import onnx_ir as ir

from graph_passes.inference.facts import dims
from graph_passes.matching import attribute, make

OLDEST = 11
"""Opset from which on older spellings are known."""

CHANGED_MEANING = frozenset(["AveragePool", "BatchNormalization", "GroupNormalization", "Resize", "RoiAlign"])
"""Ops that compute something else although their schemas look alike; decoders have no use for them."""

Conversion = Callable[[], object]
"""What has to be done to a node, in place."""


def upgrade(model: ir.Model, version: int) -> tuple[str, ...]:
    """Bring a model to an opset, its functions included; a newer one stays.

    Returns:
        Why it cannot be: ``"node: reason"``, and then nothing is changed. Empty where it is in the opset now.
    """
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    old = [graph for graph in graphs if graph.opset_imports.get("", version) < version]
    conversions: list[Conversion] = []
    refused = []
    for graph in old:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            found = _conversion(node, graph, version)
            if isinstance(found, str):
                refused.append(f"{node.name or node.op_type}: {found}")
            elif found is not None:
                conversions.append(found)
    if refused:
        return tuple(refused)
    for convert in conversions:
        convert()
    for graph in old:
        graph.opset_imports[""] = version
    return ()


def _conversion(node: ir.Node, graph: ir.Graph, version: int) -> Conversion | str | None:
    """None for nothing to do, text for what cannot be done."""
    current = graph.opset_imports[""]
    if node.domain != "":
        return None
    if current < OLDEST:
        return f"opset {current} is older than {OLDEST}"
    if node.op_type in CONVERTED:
        return CONVERTED[node.op_type](node, current)
    if means_the_same(node.op_type, current, version):
        return None
    return f"{node.op_type} of opset {current} means something else in opset {version}"


@functools.cache
def means_the_same(op_type: str, current: int, version: int) -> bool:
    """Whether an op needs no conversion; a runtime's own ones, of which onnx knows nothing, have no opsets."""
    if not onnx.defs.has(op_type, current):
        return not onnx.defs.has(op_type)
    before, after = (onnx.defs.get_schema(op_type, opset) for opset in (current, version))
    if before.since_version == after.since_version:
        return True
    return op_type not in CHANGED_MEANING and not after.deprecated and _is_extended(before, after)


def _is_extended(before: onnx.defs.OpSchema, after: onnx.defs.OpSchema) -> bool:
    """Whether a node of the older schema is one of the newer, with the same defaults."""
    given = [parameter.name for parameter in before.inputs]
    needed = onnx.defs.OpSchema.FormalParameterOption.Single
    added = after.inputs[len(given) :]
    return (
        [parameter.name for parameter in after.inputs[: len(given)]] == given
        and all(parameter.option != needed for parameter in added)
        and all(
            name in after.attributes and str(after.attributes[name].default_value) == str(found.default_value)
            for name, found in before.attributes.items()
        )
        and not any(
            found.required for name, found in after.attributes.items() if name not in before.attributes
        )
    )


# Ops that are spelled differently -------------------------------------------------------------------------


def _axes_to_input(node: ir.Node, _: int) -> Conversion | None:
    return _moved(node, "axes") if "axes" in node.attributes else None


def _split(node: ir.Node, current: int) -> Conversion | None:
    if "split" in node.attributes:
        return _moved(node, "split")
    if len(node.inputs) > 1 or "num_outputs" in node.attributes or current >= 18:
        return None
    return lambda: _set(node, "num_outputs", len(node.outputs))


def _softmax(node: ir.Node, current: int) -> Conversion | str | None:
    """Up to opset 12 it works on all dims from the axis on, and the axis is 1 by default."""
    if current >= 13:
        return None
    shape = dims(node.inputs[0]) if node.inputs[0] is not None else None
    if shape is None or attribute(node, "axis", 1) not in (-1, len(shape) - 1):
        return "it works on more than the last axis"
    return lambda: _set(node, "axis", -1)


def _dropout(node: ir.Node, current: int) -> Conversion | None:
    """When a model is run it drops nothing, whatever the ratio."""
    return (lambda: node.attributes.pop("ratio", None)) if current < 12 else None


CONVERTED: Mapping[str, Callable[[ir.Node, int], Conversion | str | None]] = {
    **{
        f"Reduce{which}": _axes_to_input
        for which in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min")
    },
    **{f"Reduce{which}": _axes_to_input for which in ("Prod", "Sum", "SumSquare")},
    "Dropout": _dropout,
    "Hardmax": _softmax,
    "LogSoftmax": _softmax,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _axes_to_input,
    "Unsqueeze": _axes_to_input,
}


def _moved(node: ir.Node, name: str) -> Conversion:
    """Makes an attribute of integers the second input. A node holds them: functions have no initializers."""

    def move() -> None:
        assert node.graph is not None
        source = f"{node.outputs[0].name}.{name}"
        held = make("Constant", [], source, value_ints=list(node.attributes[name].as_ints()))
        node.graph.insert_before(node, held)
        node.attributes.pop(name)
        node.resize_inputs(2)
        node.replace_input_with(1, held.outputs[0])

    return move


def _set(node: ir.Node, name: str, value: int) -> None:
    node.attributes[name] = ir.AttrInt64(name, value)

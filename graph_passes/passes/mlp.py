"""(x·Wg, x·Wu) ⇒ split(x·[Wg Wu]); x·σ(αx) ⇒ QuickGelu(x; α); gelu_tanh(x + b) ⇒ FastGelu(x, b).

BiasGelu, com.microsoft's Gelu and FastGelu without a bias give the same bits as the standard ops and are no
faster, so those stay (docs/experiments.md).
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.lowering.linear import linear_of, split_last, stacked
from graph_passes.matching import (
    MICROSOFT,
    attribute,
    constant,
    either_order,
    is_private,
    make,
    producer,
    replace,
    role_of,
    same_shape,
)
from graph_passes.outcome import NearMiss, Outcome

KIND = "fp"

ACTIVATIONS = frozenset(["QuickGelu", "Gelu", "Relu"])
"""What makes a product of two values a gated one."""


def apply(model: ir.Model) -> Outcome:
    found: list[bool | NearMiss] = []
    for op_type, rule in (("Mul", _silu), ("Mul", _gate), ("Gelu", _biased_gelu)):
        nodes = [node for node in model.graph if node.op_type == op_type and node.domain == ""]
        found += [rule(node) for node in nodes]
    return Outcome.of(found.count(True), [miss for miss in found if isinstance(miss, NearMiss)])


def _silu(node: ir.Node) -> bool | NearMiss:
    """x · σ(αx) ⇒ QuickGelu; α = 1 is SiLU."""
    miss = None
    for x, gate in either_order(node):
        sigmoid = producer(gate, "Sigmoid")
        if sigmoid is None:
            continue
        if not is_private(gate):
            miss = NearMiss.of(node, "the sigmoid is used elsewhere")
            continue
        alpha, scaling = _scale(sigmoid.inputs[0], x)
        if alpha is not None:
            fused = make("QuickGelu", [x], str(node.name), domain=MICROSOFT, alpha=alpha)
            replace(node, [*scaling, sigmoid, node], [fused], [(node.outputs[0], fused.outputs[0])])
            return True
        miss = NearMiss.of(node, "the sigmoid is of another value")
    return miss or False


def _scale(value: ir.Value | None, x: ir.Value) -> tuple[float | None, list[ir.Node]]:
    """α where a value is αx, and the node that scales."""
    if value is x:
        return 1.0, []
    scaling = producer(value, "Mul")
    if scaling is None or value is None or not is_private(value):
        return None, []
    for scaled, factor in either_order(scaling):
        number = constant(factor)
        if scaled is x and number is not None and number.size == 1:
            return float(number.item()), [scaling]
    return None, []


def _gate(node: ir.Node) -> bool | NearMiss:
    """act(gate(x)) · up(x): one linear map, split."""
    miss = None
    for activated, up in either_order(node):
        activation = activated.producer()
        if activation is None or len(activation.inputs) != 1 or not is_private(activated):
            continue
        gate_map, up_map = linear_of(activation.inputs[0]), linear_of(up)
        if gate_map is None or up_map is None:
            if activation.op_type in ACTIVATIONS:
                other = "up" if gate_map is not None else "gate"
                miss = NearMiss.of(
                    node, f"{other}: no private linear map (a product with a weight, used here alone)"
                )
            continue
        linears = [gate_map, up_map]
        new = stacked(linears, "gate_up")
        if isinstance(new, str):
            miss = NearMiss.of(node, new)
            continue
        sizes = [linear.weight.shape[0] for linear in linears]
        graph = node.graph
        assert graph is not None
        split = split_last(graph, new[-1].outputs[0], sizes, f"{role_of(new[0])}.split")
        old = [n for linear in linears for n in linear.nodes]
        values = [(linear.output, part) for linear, part in zip(linears, split.outputs, strict=True)]
        replace(linears[0].first, old, [*new, split], values)
        return True
    return miss or False


def _biased_gelu(node: ir.Node) -> bool:
    """gelu_tanh(x + b) ⇒ FastGelu(x, b)."""
    summed = node.inputs[0]
    add = producer(summed, "Add")
    if add is None or summed is None or not is_private(summed):
        return False
    if attribute(node, "approximate", "none") != "tanh":
        return False
    for x, bias in either_order(add):
        if bias.is_initializer() and len(bias.shape or ()) == 1 and same_shape(x, summed):
            fused = make("FastGelu", [x, bias], str(node.name), domain=MICROSOFT)
            replace(node, [add, node], [fused], [(node.outputs[0], fused.outputs[0])])
            return True
    return False

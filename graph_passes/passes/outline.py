"""act(a) · b with [a b] = x ⇒ SwiGLU(x), GeGLU(x) or ReGLU(x) (Shazeer 2020): functions of the model itself.

onnxruntime has no fast CPU kernel for a gated activation, so the function's three nodes are what it runs: it
inlines the calls when it loads the model. The file gets smaller and reads as the model is thought of; the
speed is the same.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.matching import attribute, either_order, is_private, make, producer, replace
from graph_passes.outcome import Outcome

KIND = "exact"

DOMAIN = "onnx_gpt"
NAMES = {"QuickGelu": "SwiGLU", "Gelu": "GeGLU", "Relu": "ReGLU"}


def apply(model: ir.Model) -> Outcome:
    fired = 0
    for node in [n for n in model.graph if n.op_type == "Mul" and n.domain == ""]:
        gated = next((found for a, b in either_order(node) if (found := _gated(a, b)) is not None), None)
        if gated is None:
            continue
        activation, split = gated
        function = _function(activation, model.opset_imports)
        model.functions.setdefault(function.identifier(), function)
        call = make(function.name, [split.inputs[0]], str(node.name), domain=DOMAIN)
        replace(node, [split, activation, node], [call], [(node.outputs[0], call.outputs[0])])
        fired += 1
    return Outcome(fired)


def _gated(activated: ir.Value, other: ir.Value) -> tuple[ir.Node, ir.Node] | None:
    """The activation and the Split of ``act(first half) · second half``."""
    activation, split = activated.producer(), producer(other, "Split")
    if activation is None or split is None or activation.op_type not in NAMES:
        return None
    halves = attribute(split, "axis", 0) in (-1, 2) and attribute(split, "num_outputs", 0) == 2
    fits = (
        len(activation.inputs) == 1 and activation.inputs[0] is split.outputs[0] and other is split.outputs[1]
    )
    private = all(is_private(value) for value in (*split.outputs, activated))
    return (activation, split) if halves and fits and private else None


def _name(activation: ir.Node) -> str:
    """One name for one function: what tells two bodies apart is part of it."""
    tanh = "Tanh" if attribute(activation, "approximate", "none") == "tanh" else ""
    alpha = attribute(activation, "alpha", 1.0)
    return NAMES[activation.op_type] + tanh + ("" if alpha == 1.0 else f"_{alpha:g}".replace(".", "_"))


def _function(activation: ir.Node, opsets: dict[str, int]) -> ir.Function:
    """``y = act(a) · b`` with the activation's own attributes."""
    x = ir.Value(name="x")
    split = make("Split", [x], "gate", outputs=2, axis=-1, num_outputs=2)
    act = make(activation.op_type, [split.outputs[0]], "activated", domain=activation.domain)
    for name in activation.attributes:
        act.attributes[name] = activation.attributes[name]
    gated = make("Mul", [act.outputs[0], split.outputs[1]], "y")
    body = ir.Graph(
        [x], gated.outputs, nodes=[split, act, gated], opset_imports={d: opsets[d] for d in {"", act.domain}}
    )
    return ir.Function(DOMAIN, _name(activation), graph=body, attributes=[])

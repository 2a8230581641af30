"""act(a) · b with [a b] = x ⇒ SwiGLU(x), GeGLU(x) or ReGLU(x) (Shazeer 2020): functions of the model itself.

onnxruntime has no fast CPU kernel for a gated activation, so the function's three nodes are what it runs: it
inlines the calls when it loads the model. The file gets smaller and reads as the model is thought of; the
speed is the same.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.matching import attribute, is_private, make, producer, replace
from graph_passes.outcome import Outcome

KIND = "exact"

DOMAIN = "onnx_gpt"
NAMES = {"QuickGelu": "SwiGLU", "Gelu": "GeGLU", "Relu": "ReGLU"}


def apply(model: ir.Model) -> Outcome:
    fired = 0
    for node in [n for n in model.graph if n.op_type == "Mul" and n.domain == ""]:
        activation = node.inputs[0].producer() if node.inputs[0] is not None else None
        split = producer(node.inputs[1], "Split")
        if activation is None or split is None or not _is_gated(activation, split):
            continue
        function = _function(activation, model.opset_imports)
        model.functions.setdefault(function.identifier(), function)
        call = make(function.name, [split.inputs[0]], str(node.name), domain=DOMAIN)
        replace(node, [split, activation, node], [call], [(node.outputs[0], call.outputs[0])])
        fired += 1
    return Outcome(fired)


def _is_gated(activation: ir.Node, split: ir.Node) -> bool:
    return (
        activation.op_type in NAMES
        and len(activation.inputs) == 1
        and activation.inputs[0] is split.outputs[0]
        and attribute(split, "axis", 0) in (-1, 2)
        and attribute(split, "num_outputs", 0) == 2
        and all(is_private(value) for value in (*split.outputs, activation.outputs[0]))
    )


def _function(activation: ir.Node, opsets: dict[str, int]) -> ir.Function:
    """``y = act(a) · b`` with the activation's own attributes."""
    tanh = attribute(activation, "approximate", "none") == "tanh"
    x = ir.Value(name="x")
    split = make("Split", [x], "gate", outputs=2, axis=-1, num_outputs=2)
    act = make(activation.op_type, [split.outputs[0]], "activated", domain=activation.domain)
    for name in activation.attributes:
        act.attributes[name] = activation.attributes[name]
    gated = make("Mul", [act.outputs[0], split.outputs[1]], "y")
    body = ir.Graph(
        [x], gated.outputs, nodes=[split, act, gated], opset_imports={d: opsets[d] for d in {"", act.domain}}
    )
    return ir.Function(
        DOMAIN, NAMES[activation.op_type] + ("Tanh" if tanh else ""), graph=body, attributes=[]
    )

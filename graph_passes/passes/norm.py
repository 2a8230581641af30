"""norm(x + y) ⇒ skip-norm(x, y), which gives x + y too.

One node for two, and no faster on CPU: against Add and RMSNormalization, onnxruntime 1.32 takes as long for
one token and 2.7 times as long for 512; against Add and LayerNormalization 2.5 and 9 times
(docs/experiments.md). ``rms`` and ``layer`` turn either half off where speed matters more than size.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.matching import (
    MICROSOFT,
    attribute,
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

FUSED = {
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}


def apply(model: ir.Model, rms: bool = True, layer: bool = True) -> Outcome:
    wanted = {op for op, on in (("RMSNormalization", rms), ("LayerNormalization", layer)) if on}
    fired, misses = 0, []
    for node in [n for n in model.graph if n.op_type in wanted and n.domain == ""]:
        add = producer(node.inputs[0], "Add")
        if add is None:
            continue
        reason = _why_not(node, add)
        if reason:
            misses.append(NearMiss.of(node, reason))
        else:
            _fuse(node, add)
            fired += 1
    return Outcome.of(fired, misses)


def _why_not(node: ir.Node, add: ir.Node) -> str:
    a, b = add.inputs
    gain = node.inputs[1]
    assert a is not None and b is not None
    if not same_shape(a, b):
        return "the summands are not known to have the same shape"
    if a.shape is None or len(a.shape) != 3:
        return "the sum is not [B, S, E]"
    if attribute(node, "axis", -1) not in (-1, 2):
        return "it normalises more than the last axis"
    if gain is None or gain.shape is None or len(gain.shape) != 1 or gain.shape[0] != a.shape[2]:
        return "its gain is not a vector [E]"
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return "its statistics are used"
    return ""


def _fuse(node: ir.Node, add: ir.Node) -> None:
    a, b = add.inputs
    gain, *shift = node.inputs[1:]
    layer_norm = node.op_type == "LayerNormalization"
    bias = None
    old = [add, node]
    assert a is not None and b is not None
    if _bias_of(b) is None:
        a, b = b, a  # GPT-2 adds what it was to what the branch gives, Llama the other way round
    biased = _bias_of(b)
    if biased is not None:
        inner, b, bias = biased
        old.insert(0, inner)
    inputs = [a, b, gain, *((shift or [None]) if layer_norm else []), bias]
    while inputs[-1] is None:
        inputs.pop()
    summed = add.outputs[0]
    used = len(summed.uses()) > 1 or summed.is_graph_output()
    fused = make(
        FUSED[node.op_type],
        inputs,
        str(node.name),
        domain=MICROSOFT,
        outputs=4 if used else 1,
        role=role_of(node),
        epsilon=attribute(node, "epsilon", 1e-5),
    )
    values = [(node.outputs[0], fused.outputs[0])]
    if used:
        fused.outputs[1].name = fused.outputs[2].name = ""
        values.append((summed, fused.outputs[3]))
    replace(add, old, [fused], values)


def _bias_of(value: ir.Value) -> tuple[ir.Node, ir.Value, ir.Value] | None:
    """(Add, y, bias) of a private ``y + bias`` with a vector of the last dim's size."""
    add = producer(value, "Add")
    if add is None or not is_private(value):
        return None
    for y, bias in either_order(add):
        if bias.is_initializer() and bias.shape is not None and len(bias.shape) == 1 and same_shape(y, value):
            return add, y, bias
    return None

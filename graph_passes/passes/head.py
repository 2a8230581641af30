"""x · transpose(table) ⇒ FusedMatMul(x, table; transB=1): a tied table is stored once, never transposed."""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.matching import MICROSOFT, attribute, make, producer, replace, role_of
from graph_passes.outcome import Outcome

KIND = "fp"  # another kernel than of the transposed product


def apply(model: ir.Model) -> Outcome:
    fired = 0
    for node in [n for n in model.graph if n.op_type == "MatMul" and n.domain == ""]:
        transpose = producer(node.inputs[1], "Transpose")
        if transpose is None or list(attribute(transpose, "perm", ())) != [1, 0]:
            continue
        table = transpose.inputs[0]
        if table is None or not table.is_initializer():
            continue
        fused = make(
            "FusedMatMul",
            [node.inputs[0], table],
            str(node.name),
            domain=MICROSOFT,
            role=role_of(node),
            transB=1,
        )
        old = [node] if len(transpose.outputs[0].uses()) > 1 else [node, transpose]
        replace(node, old, [fused], [(node.outputs[0], fused.outputs[0])])
        fired += 1
    return Outcome(fired)

"""Identity(x) ⇒ x, with the graph's outputs declared as they were."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from graph_passes.inference.facts import declare


def bridge_identities(model: ir.Model) -> None:
    """Take out Identity nodes. A value that becomes an output in a node's place takes its name, type and shape."""
    declared = [(value.type, value.shape) for value in model.graph.outputs]
    common.IdentityEliminationPass()(model)
    for value, (dtype, shape) in zip(model.graph.outputs, declared, strict=True):
        value.type = dtype
        if value.shape != shape:
            declare(value, shape)

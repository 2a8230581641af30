"""Dead code: nodes, initializers and optional outputs that nothing uses go; Identity nodes are bridged."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from graph_passes.outcome import Outcome
from graph_passes.structure.identities import bridge_identities

KIND = "exact"


def apply(model: ir.Model) -> Outcome:
    before = model.graph.num_nodes() + len(model.graph.initializers)
    bridge_identities(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return Outcome(before - model.graph.num_nodes() - len(model.graph.initializers))

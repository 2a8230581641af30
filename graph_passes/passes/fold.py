"""f(constants) ⇒ constant, for small integers and shapes; equal expressions are computed once; dead code goes."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from graph_passes.outcome import Outcome

KIND = "exact"


def apply(model: ir.Model) -> Outcome:
    before = model.graph.num_nodes()
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return Outcome(before - model.graph.num_nodes())

"""Bodies of functions in the place of their calls, for a runtime that inlines none."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnx_gpt.linting.checks.operators import is_opaque
from onnx_gpt.linting.draft import Draft

OF = "graph"
CODES = ("function-not-inlined",)


def repair(draft: Draft) -> Draft:
    contrib = draft.subject.expected.contrib
    for graph in draft.graphs:
        nodes = [node for node in graph.graph if is_opaque(contrib, graph.model, node)]
        called = {node.op_identifier() for node in nodes}

        def is_called(function: ir.Function, called: set[ir.OperatorIdentifier] = called) -> bool:
            return function.identifier() in called

        InlinePass(is_called)(graph.model)
        draft = draft.note(
            *(f"{graph.name}: the function {name} is inlined" for name in sorted({n.op_type for n in nodes}))
        )
    return draft

"""reshape(reshape(x)) ⇒ reshape(x), split(x) ⇒ slices of x, x / 2 ⇒ x · ½: one spelling for what an exporter may
say in many ways, and nothing for what changes nothing.

Targets of Reshape and Expand and bounds of Slice become constants, so that shape arithmetic dies out; what is left of
it asks the graph's inputs. The equations are in graph_passes/structure/.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common

from graph_passes.matching import replace
from graph_passes.outcome import Outcome
from graph_passes.refusal import refusing
from graph_passes.structure import Edit, Rule, arithmetic, moves, parts
from graph_passes.structure.constants import Constants
from graph_passes.structure.sizes import Sizes

KIND = "exact"

TABLES = (arithmetic.RULES, moves.RULES, parts.RULES)


def apply(model: ir.Model) -> Outcome:
    graph = model.graph
    fired = rewrite(graph, Constants(graph), rules_of)
    common.RemoveUnusedNodesPass()(model)
    constants = Constants(graph)
    sizes = Sizes(graph, constants)
    fired += rewrite(graph, constants, lambda op_type: (sizes.rule,))
    common.RemoveUnusedNodesPass()(model)
    return Outcome(fired)


def rules_of(op_type: str) -> tuple[Rule, ...]:
    """The rules for an op, in the order in which they are tried."""
    return tuple(rule for table in TABLES for rule in table.get(op_type, ()))


def rewrite(graph: ir.Graph, constants: Constants, rules: Callable[[str], tuple[Rule, ...]]) -> int:
    """Apply rules to every node of a graph in topological order, and to what they put there.

    Returns:
        How often one fired.
    """
    fired = 0
    waiting = list(graph)[::-1]
    while waiting:
        node = waiting.pop()
        edit = _edit(node, constants, rules) if node.domain == "" else None
        if edit is not None:
            replace(node, [node], edit.nodes, list(zip(node.outputs, edit.values, strict=True)))
            waiting.extend(reversed(edit.nodes))
            fired += 1
    return fired


def _edit(node: ir.Node, constants: Constants, rules: Callable[[str], tuple[Rule, ...]]) -> Edit | None:
    with refusing(node):
        for rule in rules(node.op_type):
            edit = rule(node, constants)
            if edit is not None:
                return edit
    return None

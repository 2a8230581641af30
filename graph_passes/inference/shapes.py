"""Types and shapes that ops give, by op: exact on symbolic dims.

A rule is a function of one node's inputs. It says None for a shape that it cannot know, and a dim that nothing
tells is a symbol of its own, named after the value: two such dims are equal only if they are the same.

Three things are assumed, because a decoder cannot run otherwise: a symbolic target of a Reshape is the dim itself
and never the code for "copy this dim"; a symbolic bound of a Slice lies within a dim that is a number (positions
lie within the context); the key-value cache of an attention grows by the tokens of the call.
"""

from __future__ import annotations

from collections.abc import Mapping

from graph_passes.inference import arithmetic, attention, movement
from graph_passes.inference.known import Rule
from graph_passes.matching import MICROSOFT

RULES: Mapping[tuple[str, str], Rule] = {
    ("", op): rule
    for table in (arithmetic.RULES, attention.RULES, movement.RULES)
    for op, rule in table.items()
} | {
    (MICROSOFT, op): rule
    for table in (arithmetic.OF_MICROSOFT, attention.OF_MICROSOFT)
    for op, rule in table.items()
}
"""Rules by domain and op. Ops that are missing here are left to onnx's own inference."""

"""Rewrites that say the same in a fixed spelling, and exactly: nothing is computed in another order.

A rule looks at one node and says what to put in its place. It may go through what makes the node's inputs, and need
not ask who else uses them: those nodes stay, and go as dead code where nobody does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import onnx_ir as ir

from graph_passes.structure.constants import Constants


@dataclasses.dataclass(frozen=True)
class Edit:
    """What takes the place of a node.

    Attributes:
        values: one for each output of the node; may be there already.
        nodes: new ones, in topological order.
    """

    values: Sequence[ir.Value]
    nodes: Sequence[ir.Node] = ()

    @classmethod
    def of(cls, *nodes: ir.Node) -> Edit:
        """New nodes, of which the last gives the value."""
        return cls([nodes[-1].outputs[0]], nodes)


Rule = Callable[[ir.Node, Constants], Edit | None]

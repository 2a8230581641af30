"""masks, rotary tables, positions, in any spelling ⇒ the canonical one, counted from ``attention_mask``.

The edges between what depends on control inputs and the data (`graph_passes.control`) are run on calls with and
without padding, past and window. An edge that does on all of them what a canonical mask, table or position does is
replaced by it; one that does not is left alone, and the refusal names the first call on which it differs.

Equal for every token that is not padding. Where a graph counts padding as positions, the contract's positions
(counted over the real tokens, docs/architecture.md) take their place: for rows without padding between their tokens
they differ by a constant at most, which rotary positions do not see.
"""

from __future__ import annotations

import onnx_ir as ir

from exporter.errors import Exit, OnnxGptError
from graph_passes.control.edges import rewrite_edges
from graph_passes.control.interface import interface_of
from graph_passes.control.names import adopt_contract
from graph_passes.outcome import Outcome

KIND = "fp"
INTERFACE = True
"""Inputs and outputs take the names and shapes of the graph's contract."""


def apply(model: ir.Model, context_length: int = 0) -> Outcome:
    """Rewrite the control island.

    Args:
        context_length: rows of the rotary tables; 0 for as many as the graph's own tables have.

    Raises:
        OnnxGptError: ``context-length-unknown`` (exit 2) for a graph that computes its rotary tables itself and does
            not say how far.
    """
    interface = interface_of(model.graph)
    if isinstance(interface, str):
        return Outcome(0, (f"graph: {interface}",))
    edges = rewrite_edges(model, interface, context_length)
    if edges.unbounded:
        raise OnnxGptError(
            "context-length-unknown",
            f"the graph computes its rotary positions ({edges.unbounded}) and does not say how many there may be",
            "say it with --context-length, as max_position_embeddings in the model's config.json",
            exit=Exit.USAGE,
        )
    told, names = edges.outcome, adopt_contract(model, interface, edges.attention_mask)
    return Outcome(told.fired + names.fired, (*told.refused, *names.refused), told.misses)

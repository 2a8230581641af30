"""Dims of caches as the runtime reads them: the batch by the literal name that it knows, sizes as numbers."""

from __future__ import annotations

import onnx_ir as ir

from onnx_gpt.linting.draft import Draft, substitute
from onnx_gpt.linting.graph_file import GraphFile

OF = "graph"
CODES = ("batch-symbol", "cache-dim-open")
SIZES = {1: "kv_heads", 3: "head_dim"}


def repair(draft: Draft) -> Draft:
    sizes = {axis: draft.subject.size(which) for axis, which in SIZES.items()}
    for graph in draft.graphs:
        found: dict[str, int | str] = {}
        for (layer, which), past in graph.pasts.items():
            present = graph.output(f"present.{layer}.{which}")
            for value in (past, present):
                if value is not None and value.shape is not None and len(value.shape) == 4:
                    found |= _symbols(draft.subject.expected.batch_symbol, sizes, value)
        draft = draft.note(*_apply(graph, found))
    return draft


def _symbols(batch: str, sizes: dict[int, int | None], value: ir.Value) -> dict[str, int | str]:
    """Names to replace; a dim without a name is written at once."""
    shape = list(value.shape or ())
    wanted: dict[int, int | str | None] = {0: batch or None, **sizes}
    found: dict[str, int | str] = {}
    for axis, want in wanted.items():
        dim = shape[axis]
        if want is None or isinstance(dim, int) or dim.value == want:
            continue
        if dim.value:
            found[dim.value] = want
        shape[axis] = want if isinstance(want, int) else ir.SymbolicDim(want)
    value.shape = ir.Shape(shape)
    return found


def _apply(graph: GraphFile, symbols: dict[str, int | str]) -> list[str]:
    if not symbols:
        return []
    substitute(graph.model, symbols)
    return [f"{graph.name}: the dim {old} is {new}" for old, new in symbols.items()]

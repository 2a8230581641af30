"""Literal symbols and static dims: what a runtime makes an empty cache of.

transformers.js reads the shapes in the graph: a number stays, ``batch_size`` becomes the batch, any other symbol 0. A
cache with another name at dim 0 has no rows, one with a name at dims 1 or 3 no heads, and attention refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.graph_file import GraphFile
from onnx_gpt.linting.subject import Subject

PARTS = {1: "kv heads", 3: "head dim"}


def check(subject: Subject) -> Iterator[Finding]:
    for graph in subject.graphs:
        for past in graph.pasts.values():
            if past.shape is None or len(past.shape) != 4:
                shape = past.shape if past.shape is not None else "no shape"
                yield Finding(
                    "cache-rank",
                    "error",
                    f"{graph.name}: {past.name}",
                    f"it has {shape}, and [batch, kv heads, past, head dim] is expected",
                    "export caches with four dims in that order",
                )
                continue
            yield from _batch(subject, graph, past)
            yield from _sizes(subject, graph, past)
            yield from _length(graph, past)


def _batch(subject: Subject, graph: GraphFile, past: ir.Value) -> Iterator[Finding]:
    symbol, dim = subject.expected.batch_symbol, _spelled(past, 0)
    if isinstance(dim, int):
        yield Finding(
            "batch-fixed",
            "warning",
            f"{graph.name}: {past.name}",
            f"its batch is always {dim}",
            "export with a batch of any size",
        )
    elif symbol and dim != symbol:
        name = repr(dim) if dim else "without a name"
        yield Finding(
            "batch-symbol",
            "error",
            f"{graph.name}: {past.name}",
            f"dim 0 is {name}, which {subject.expected.runtime} takes for 0: the empty cache has no rows",
            f"call it {symbol}",
            mechanical=True,
        )


def _sizes(subject: Subject, graph: GraphFile, past: ir.Value) -> Iterator[Finding]:
    for axis, part in PARTS.items():
        dim = _spelled(past, axis)
        if isinstance(dim, int):
            continue
        known = subject.size("kv_heads" if axis == 1 else "head_dim") is not None
        error = subject.expected.literal_cache
        name = repr(dim) if dim else "without a name"
        yield Finding(
            "cache-dim-open",
            "error" if error else "warning",
            f"{graph.name}: {past.name}",
            f"dim {axis}, {part}, is {name}"
            + (f", which {subject.expected.runtime} takes for 0" if error else ": it is told elsewhere"),
            "write the number into the graph",
            mechanical=known,
        )


def _length(graph: GraphFile, past: ir.Value) -> Iterator[Finding]:
    dim = _spelled(past, 2)
    if isinstance(dim, int) or dim == "batch_size":
        yield Finding(
            "past-dim-fixed",
            "error",
            f"{graph.name}: {past.name}",
            f"dim 2, the tokens before, is {dim!r}, and not free to grow from 0",
            "export with a cache that grows",
        )


def _spelled(value: ir.Value, axis: int) -> int | str:
    dim = (value.shape or ())[axis]
    return dim if isinstance(dim, int) else str(dim.value or "")

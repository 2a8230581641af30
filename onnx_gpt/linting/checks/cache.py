"""The key/value cache: a pair for each layer without a gap, and for every past a present of the same type and sizes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.graph_file import GraphFile
from onnx_gpt.linting.sizes import told_apart
from onnx_gpt.linting.subject import Subject

CACHE_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def check(subject: Subject) -> Iterator[Finding]:
    for graph in subject.graphs:
        pasts = graph.pasts
        if not pasts:
            yield from _absent(subject, graph)
            continue
        last = max(layer for layer, _ in pasts)
        if 2 * (last + 1) != len(pasts):
            missing = 2 * (last + 1) - len(pasts)
            yield _incomplete(graph, f"{missing} inputs are missing of the layers 0 to {last}")
        for (layer, which), past in pasts.items():
            yield from _pair(subject, graph, past, graph.output(f"present.{layer}.{which}"))


def _absent(subject: Subject, graph: GraphFile) -> Iterator[Finding]:
    floats = [value for value in graph.graph.inputs if value.dtype and value.dtype.is_floating_point()]
    if floats:
        cause = f"no input is called past_key_values.0.key: {', '.join(str(value.name) for value in floats[:3])} …"
        yield Finding(
            "cache-names",
            "error",
            f"{graph.name}: inputs",
            cause,
            "call caches past_key_values.{i}.key and .value, and present.{i}.key and .value",
            mechanical=told_apart(graph) is not None,
        )
    elif subject.expected.needs_cache:
        yield Finding(
            "cache-absent",
            "error",
            graph.name,
            f"it has no key/value cache, and {subject.expected.runtime} runs decoders that have one",
            "make one with `onnx-gpt optimize`, which adds it",
        )
    else:
        yield Finding(
            "cache-absent",
            "warning",
            graph.name,
            "it has no key/value cache: each token costs as much as the whole text before it",
            "make one with `onnx-gpt optimize`, which adds it",
        )


def _pair(subject: Subject, graph: GraphFile, past: ir.Value, present: ir.Value | None) -> Iterator[Finding]:
    if present is None:
        yield _incomplete(
            graph, f"no output is called {str(past.name).replace('past_key_values', 'present')}"
        )
        return
    fixed = [
        (i, a, b)
        for i, (a, b) in enumerate(zip(past.shape or (), present.shape or (), strict=False))
        if i != 2 and isinstance(a, int) and isinstance(b, int) and a != b
    ]
    if past.dtype != present.dtype or fixed or len(past.shape or ()) != len(present.shape or ()):
        yield Finding(
            "cache-mismatch",
            "error",
            f"{graph.name}: {past.name}",
            f"it is {_typed(past)}, and what becomes of it, {present.name}, is {_typed(present)}",
            "export past and present with one type and the same sizes",
        )
    if past.dtype is not None and past.dtype not in CACHE_TYPES and subject.target in ("genai", "optimum"):
        yield Finding(
            "cache-dtype",
            "error",
            f"{graph.name}: {past.name}",
            f"it is {past.dtype.name.lower()}, and {subject.expected.runtime} makes caches of floats",
            "export with a float cache",
        )


def _incomplete(graph: GraphFile, cause: str) -> Finding:
    return Finding(
        "cache-incomplete", "error", f"{graph.name}: cache", cause, "export every layer's keys and values"
    )


def _typed(value: ir.Value) -> str:
    return f"{value.dtype.name.lower() if value.dtype else '?'}{value.shape or ''}"

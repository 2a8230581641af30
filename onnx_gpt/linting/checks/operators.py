"""Operators against the runtime's version: the format, the operator sets, and the kernels that it has."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import onnx_ir as ir

from exporter.onnx_format.structure import RUNTIME_DOMAIN, RUNTIME_NORM
from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.graph_file import GraphFile
from onnx_gpt.linting.subject import Subject

STANDARD = ("", "ai.onnx")
DEEPEST = 8
"""Functions within functions that are looked into; a function that calls itself has no end."""


def check(subject: Subject) -> Iterator[Finding]:
    expected = subject.expected
    for graph in subject.graphs:
        if graph.opset > expected.opset:
            yield Finding(
                "opset-newer",
                "error",
                graph.name,
                f"it uses operator set {graph.opset}, and {expected.runtime} loads up to {expected.opset}",
                "export it with an older operator set",
            )
        if graph.model.ir_version > expected.ir_version:
            yield Finding(
                "ir-version-newer",
                "error",
                graph.name,
                f"its file format is version {graph.model.ir_version}, and {expected.runtime} loads up to "
                f"{expected.ir_version}",
                f"declare version {expected.ir_version}",
                mechanical=True,
            )
        yield from _unavailable(subject, graph)


def _unavailable(subject: Subject, graph: GraphFile) -> Iterator[Finding]:
    found: collections.Counter[str] = collections.Counter()
    first: dict[str, str] = {}
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        for op in lacking(subject.expected.contrib, graph.model, node):
            found[op] += 1
            first.setdefault(op, str(node.name))
    for op, count in found.items():
        nodes = f" ({count} nodes)" if count > 1 else ""
        yield Finding(
            "operator-unavailable",
            "error",
            f"{graph.name}: {first[op]}",
            f"{subject.expected.runtime} has no {op}{nodes}",
            "make the bundle for this target",
        )
    called = [node for node in graph.graph if is_opaque(subject.expected.contrib, graph.model, node)]
    if called:
        yield Finding(
            "function-not-inlined",
            "error",
            f"{graph.name}: {called[0].name}",
            f"{called[0].domain}::{called[0].op_type} is a function of the model, and {subject.expected.runtime} "
            f"inlines none ({len(called)} nodes)",
            "write its body in its place",
            mechanical=True,
        )


def is_opaque(contrib: frozenset[str] | None, model: ir.Model, node: ir.Node) -> bool:
    """Whether a node calls a function of the model, which a runtime neither inlines nor has an operator for."""
    known = contrib is None or (node.domain == RUNTIME_DOMAIN and node.op_type in contrib)
    return node.op_identifier() in model.functions and not known


def lacking(contrib: frozenset[str] | None, model: ir.Model, node: ir.Node, depth: int = 0) -> Iterator[str]:
    """Operators that a node needs, or the function that it calls, and that a runtime has not."""
    if node.domain in STANDARD or (contrib is None and node.op_identifier() in model.functions):
        return
    if is_opaque(contrib, model, node) and depth < DEEPEST:
        for inner in model.functions[node.op_identifier()]:
            yield from lacking(contrib, model, inner, depth + 1)
        return
    own = node.domain == RUNTIME_DOMAIN and (contrib is None or node.op_type in (*contrib, RUNTIME_NORM))
    if not own:
        yield f"{node.domain}::{node.op_type}"

"""Config against graph: layers, kv heads, head dim, heads, hidden size and vocabulary are the same in both."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.sizes import sizes_of
from onnx_gpt.linting.subject import ALIASES, Subject


def check(subject: Subject) -> Iterator[Finding]:
    for graph in subject.graphs:
        for which, found in sizes_of(graph).items():
            stated = subject.size(which)
            if stated is not None and stated != found:
                yield Finding(
                    "config-graph-mismatch",
                    "error",
                    f"{subject.expected.config or 'config.json'}: {ALIASES[which][0]}",
                    f"it says {stated}, and {graph.name} has {found}",
                    "state what the graph has, or take the graph that belongs to this configuration",
                    mechanical=True,
                )

"""Performance cliffs of onnxruntime's CPU kernels, and operators that it has none for: `graph_passes.lint` knows them.

In the browser the same kernels run in WebAssembly, but for models that are named for WebGPU: there all that counts here
is what has no kernel in either.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator

from graph_passes import lint
from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.graph_file import GraphFile
from onnx_gpt.linting.subject import Subject

REFUSED = {"no-cpu-kernel", "attention-opset-25", "attention-head-norm", "nbits-no-such-grid"}
"""What does not run at all; everything else runs, slowly or wrongly on some hosts."""


def check(subject: Subject) -> Iterator[Finding]:
    for graph in subject.graphs:
        if subject.expected.contrib is not None:
            continue
        found = [f for f in lint.lint(graph.model) if f.code != "protobuf-too-large"]
        if not subject.expected.cliffs:
            found = [f for f in found if f.code in REFUSED]
        yield from _once_a_code(graph, found)


def _once_a_code(graph: GraphFile, found: list[lint.Finding]) -> Iterator[Finding]:
    counts = collections.Counter(finding.code for finding in found)
    for finding in {f.code: f for f in reversed(found)}.values():
        more = f" ({counts[finding.code]} nodes)" if counts[finding.code] > 1 else ""
        yield Finding(
            finding.code,
            "error" if finding.code in REFUSED else "warning",
            f"{graph.name}: {finding.role or finding.node or 'model'}",
            f"{finding.cause}{more}",
            finding.remedy,
        )

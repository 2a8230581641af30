"""Left padding: GroupQueryAttention reads how long a row is and not where it starts."""

from __future__ import annotations

from collections.abc import Iterator

from graph_passes.matching import MICROSOFT
from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.subject import Subject

BIAS = 10
"""Input of GroupQueryAttention that can hide padding."""


def check(subject: Subject) -> Iterator[Finding]:
    if not subject.expected.left_pads:
        return
    for graph in subject.graphs:
        blind = [
            node
            for node in graph.graph
            if node.op_type == "GroupQueryAttention"
            and node.domain == MICROSOFT
            and (len(node.inputs) <= BIAS or node.inputs[BIAS] is None)
        ]
        if blind:
            yield Finding(
                "left-padding",
                "warning",
                f"{graph.name}: {blind[0].name}",
                f"{subject.expected.runtime} pads the shorter rows of a batch on the left, where this attention does "
                "not see it: their text is wrong, unless the graph refuses such a batch",
                "generate for one prompt at a time, or for prompts of one length",
            )

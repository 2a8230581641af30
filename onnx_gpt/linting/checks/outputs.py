"""Outputs: logits of every token by that name, in a float type, as wide as the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.sizes import told_apart
from onnx_gpt.linting.subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    for graph in subject.graphs:
        logits = graph.output("logits")
        if logits is None:
            names = ", ".join(str(value.name) for value in graph.graph.outputs)
            yield Finding(
                "output-missing",
                "error",
                f"{graph.name}: outputs",
                f"no output is called logits: {names}",
                "call the scores logits",
                mechanical=told_apart(graph) is not None,
            )
        elif logits.shape is not None and len(logits.shape) != 3:
            yield Finding(
                "logits-rank",
                "error",
                f"{graph.name}: logits",
                f"they have the shape {logits.shape}, and [batch, sequence, vocabulary] is expected",
                "export the logits of each token of each sequence",
            )
        elif logits.dtype is not None and not logits.dtype.is_floating_point():
            yield Finding(
                "logits-dtype",
                "error",
                f"{graph.name}: logits",
                f"they are {logits.dtype.name.lower()}",
                "export logits as floats",
            )

"""Inputs: those that a decoder needs are there, in a type that the runtime feeds, and no other is required."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from exporter.control import KEEP
from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.graph_file import PAST, GraphFile
from onnx_gpt.linting.sizes import told_apart
from onnx_gpt.linting.subject import Subject

TOKENS = ("input_ids", "attention_mask", "position_ids")


def check(subject: Subject) -> Iterator[Finding]:
    for graph in subject.graphs:
        yield from _missing(graph)
        for value in graph.graph.inputs:
            yield from _unknown(subject, graph, value)
            yield from _type(subject, graph, value)


def _missing(graph: GraphFile) -> Iterator[Finding]:
    if graph.input("input_ids") is None:
        names = ", ".join(str(value.name) for value in graph.graph.inputs)
        yield Finding(
            "input-missing",
            "error",
            f"{graph.name}: inputs",
            f"no input is called input_ids: {names}",
            "call the tokens input_ids",
            mechanical=told_apart(graph) is not None,
        )


def _unknown(subject: Subject, graph: GraphFile, value: ir.Value) -> Iterator[Finding]:
    name = str(value.name)
    if name in subject.expected.inputs or PAST.fullmatch(name) or value.is_initializer():
        return
    if subject.target == "genai":  # it is told the names; `checks.genai` compares them
        return
    yield Finding(
        "input-unknown",
        "error",
        f"{graph.name}: {name}",
        f"{subject.expected.runtime} never feeds {name}, which has no default",
        "rename it to what the contract calls it, or give it a default",
        mechanical=name == KEEP or not value.uses() or told_apart(graph) is not None,
    )


def _type(subject: Subject, graph: GraphFile, value: ir.Value) -> Iterator[Finding]:
    if value.name not in TOKENS or value.dtype is None or value.dtype in subject.expected.integers:
        return
    wanted = " or ".join(dtype.name.lower() for dtype in subject.expected.integers)
    yield Finding(
        "input-dtype",
        "error",
        f"{graph.name}: {value.name}",
        f"it is {value.dtype.name.lower()}, and {subject.expected.runtime} feeds {wanted}",
        f"make it {subject.expected.integers[0].name.lower()}, and cast it inside",
        mechanical=value.dtype.is_integer(),
    )

"""The version of the file format that a runtime still loads."""

from __future__ import annotations

from onnx_gpt.linting.draft import Draft

OF = "graph"
CODES = ("ir-version-newer",)


def repair(draft: Draft) -> Draft:
    newest = draft.subject.expected.ir_version
    for graph in draft.graphs:
        if graph.model.ir_version > newest:
            draft = draft.note(f"{graph.name}: file format {newest}, and was {graph.model.ir_version}")
            graph.model.ir_version = newest
    return draft

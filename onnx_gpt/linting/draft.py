"""A folder on its way to what a runtime expects: graphs and documents that repairs change, and what they changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import onnx_ir as ir

from onnx_gpt.bundle.targets import data_name
from onnx_gpt.linting.graph_file import GraphFile
from onnx_gpt.linting.subject import Subject


@dataclasses.dataclass(frozen=True)
class Draft:
    """What is to be written.

    Attributes:
        subject: as it was read. The models of its graphs are this draft's own: repairs of graphs change them in place.
        codes: codes of the findings.
        places: path of each model file in the new folder, by its old one.
        data_files: how many files of weights each model gets, by its new path.
        documents: JSON documents of the new folder by name.
        changes: what was done, one line each.
    """

    subject: Subject
    codes: frozenset[str]
    places: Mapping[str, str]
    data_files: Mapping[str, int]
    documents: Mapping[str, Mapping[str, Any]]
    changes: tuple[str, ...] = ()

    @property
    def graphs(self) -> tuple[GraphFile, ...]:
        return self.subject.graphs

    def place(self, graph: GraphFile) -> str:
        """New path of a model file."""
        return self.places[graph.name]

    def data_name(self, graph: GraphFile, i: int) -> str:
        """Name of the i-th file of weights of a model, beside it."""
        return data_name(
            PurePosixPath(self.place(graph)).name, self.subject.expected.data_suffix or ".data", i
        )

    def write(self, name: str, document: Mapping[str, Any], change: str) -> Draft:
        """The draft with a document, and what changed in it."""
        return dataclasses.replace(
            self,
            documents={**self.documents, name: dict(document)},
            changes=(*self.changes, f"{name}: {change}"),
        )

    def note(self, *changes: str) -> Draft:
        """The draft with more said of it."""
        return dataclasses.replace(self, changes=(*self.changes, *changes))


def substitute(model: ir.Model, symbols: Mapping[str, int | str]) -> None:
    """Replace named dims by other names, or by numbers, in every shape of a model."""
    graph = model.graph
    nodes = ir.traversal.RecursiveGraphIterator(graph)
    values = [*graph.inputs, *graph.outputs, *(value for node in nodes for value in node.outputs)]
    for value in dict.fromkeys(values):
        if value.shape is not None and any(_symbol(dim) in symbols for dim in value.shape):
            value.shape = ir.Shape([symbols.get(_symbol(dim), dim) for dim in value.shape])


def _symbol(dim: int | ir.SymbolicDim) -> str:
    return "" if isinstance(dim, int) else str(dim.value or "")

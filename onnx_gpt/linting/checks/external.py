"""External data: files that are there, regular, small enough, and called what the runtime fetches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from graph_passes.lint import PROTOBUF_LIMIT
from onnx_gpt.bundle.targets import data_name
from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.graph_file import GraphFile
from onnx_gpt.linting.subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    for graph in subject.graphs:
        if graph.problem is not None and graph.problem.code != "onnx-feature":
            yield Finding(
                "external-data-unusable", "error", graph.name, graph.problem.cause, graph.problem.remedy
            )
        if graph.nbytes > PROTOBUF_LIMIT:
            yield Finding(
                "protobuf-too-large",
                "error",
                graph.name,
                f"{graph.nbytes} bytes are in one model file, which can hold {PROTOBUF_LIMIT}",
                "save the weights as external data",
                mechanical=True,
            )
        for location in graph.data:
            yield from _file(subject, graph, location)
        yield from _names(subject, graph)


def _file(subject: Subject, graph: GraphFile, location: str) -> Iterator[Finding]:
    path = graph.path.parent / location
    if PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts or not path.is_file():
        return  # said above
    stat = path.stat()
    if path.is_symlink() or graph.path.is_symlink():
        link = path if path.is_symlink() else graph.path
        yield Finding(
            "external-data-link",
            "warning",
            f"{graph.name}: {location}",
            f"{link.name} is a symbolic link, which onnxruntime follows within the folder only",
            "put the file itself there",
            mechanical=True,
        )
    elif stat.st_nlink > 1:
        yield Finding(
            "external-data-link",
            "warning",
            f"{graph.name}: {location}",
            "it is a hard link, which onnx's own loader refuses",
            "put a file of its own there",
            mechanical=True,
        )
    limit = subject.expected.data_limit
    if limit is not None and stat.st_size > limit:
        yield Finding(
            "external-data-large",
            "error",
            f"{graph.name}: {location}",
            f"it has {stat.st_size} bytes, and {subject.expected.runtime} takes {limit} at most in one file",
            "split it",
            mechanical=True,
        )


def _names(subject: Subject, graph: GraphFile) -> Iterator[Finding]:
    suffix = subject.expected.data_suffix
    if suffix is None:
        return
    wanted = [data_name(Path(graph.name).name, suffix, i) for i in range(len(graph.data))]
    if sorted(graph.data) != sorted(wanted):
        yield Finding(
            "external-data-name",
            "error",
            graph.name,
            f"its weights are in {', '.join(graph.data[:3])}, and {subject.expected.runtime} fetches "
            f"{', '.join(wanted[:3])}",
            "rename the files, in the graph too",
            mechanical=True,
        )
    limit = subject.expected.data_files
    if limit is not None and len(graph.data) > limit:
        yield Finding(
            "external-data-count",
            "error",
            graph.name,
            f"its weights are in {len(graph.data)} files, and {subject.expected.runtime} takes {limit} at most",
            "write fewer and larger ones",
            mechanical=True,
        )

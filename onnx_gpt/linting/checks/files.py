"""Files: the models where the runtime looks for them by names that it knows, and the documents that it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from onnx_gpt.linting.expectation import Expectation
from onnx_gpt.linting.finding import Finding, Severity
from onnx_gpt.linting.subject import Subject

LOST: Mapping[str, str] = {
    "config.json": "without it sizes have to be guessed",
    "generation_config.json": "without it a text has the end and the sampling of config.json, if that names any",
    "tokenizer.json": "without it there are tokens and no text",
    "tokenizer_config.json": "without it there are no special tokens and no chat template",
}
"""What a runtime lacks that loads without a document."""

WRITTEN = {"config.json", "generation_config.json", "genai_config.json"}
"""Documents that can be made of what is there."""


def check(subject: Subject) -> Iterator[Finding]:
    expected = subject.expected
    if not subject.graphs and subject.target != "mobile":
        where = expected.model_folder or "the folder"
        yield Finding(
            "model-absent", "error", where, "it holds no .onnx file", "make one with `onnx-gpt optimize`"
        )
    for graph in subject.graphs:
        path = PurePosixPath(graph.name)
        folder = "" if path.parent == PurePosixPath() else str(path.parent)
        misplaced = bool(expected.model_names) and folder != expected.model_folder
        if misplaced or (expected.model_names and path.name not in expected.model_names):
            yield Finding(
                "model-misplaced",
                "error",
                graph.name,
                f"{expected.runtime} looks for {_names(expected)}",
                "move and rename it",
                mechanical=True,
            )
    for name in expected.needs:
        if name not in subject.files:
            yield _absent(subject, name, "error", f"{expected.runtime} does not load without it")
    for name in expected.wants:
        if name not in subject.files:
            yield _absent(subject, name, "warning", LOST[name])


def _absent(subject: Subject, name: str, severity: Severity, cause: str) -> Finding:
    return Finding(
        "file-absent",
        severity,
        name,
        f"it is not there: {cause}",
        "make it of the graph and the other documents" if name in WRITTEN else "copy it from the checkpoint",
        mechanical=name in WRITTEN and bool(subject.graphs),
    )


def _names(expected: Expectation) -> str:
    first, others = expected.place(expected.model_names[0]), len(expected.model_names) - 1
    return f"{first} and {others} other names" if others else first

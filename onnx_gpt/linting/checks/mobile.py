"""The reduced build: one .ort file that holds all, and the list of operators that the build must have."""

from __future__ import annotations

from collections.abc import Iterator

from graph_passes.lint import PROTOBUF_LIMIT
from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.subject import Subject

TARGETS = ("mobile",)

IDENTIFIER = b"ORTM"
"""Bytes 4 to 8 of a flatbuffer of this kind (onnxruntime/core/flatbuffers/schema/ort.fbs)."""


def check(subject: Subject) -> Iterator[Finding]:
    models = sorted(name for name in subject.files if name.endswith(".ort"))
    if not models:
        yield Finding(
            "ort-format-absent",
            "error",
            "the folder",
            "it holds no .ort file, the only kind that a reduced build opens",
            "make one with `onnx-gpt optimize --target mobile`",
        )
        return
    for name in models:
        path = subject.folder / name
        if not path.is_file():
            continue
        with path.open("rb") as file:
            head = file.read(8)
        if head[4:] != IDENTIFIER:
            yield Finding(
                "ort-format-invalid",
                "error",
                name,
                "it is no flatbuffer of onnxruntime's",
                "convert the model again",
            )
        if path.stat().st_size > PROTOBUF_LIMIT:
            yield Finding(
                "ort-format-large",
                "error",
                name,
                f"it has {path.stat().st_size} bytes, and a flatbuffer can hold {PROTOBUF_LIMIT}",
                "quantize the model, or take a smaller one",
            )
    if not any(name.endswith(".config") for name in subject.files):
        yield Finding(
            "operators-config-absent",
            "warning",
            "required_operators.config",
            "nothing says which operators the build must have",
            "make it with onnxruntime.tools.convert_onnx_models_to_ort",
        )

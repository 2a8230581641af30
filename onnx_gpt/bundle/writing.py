"""Writes a model and lays out the folders of its targets. Tensors are computed here, a piece at a time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from onnx_gpt.progress import Progress
from onnx_gpt.report import Report

MODEL, DATA, REPORT = "model.onnx", "model.onnx.data", "report.json"
WRITERS = 2
"""Threads that compute and write tensors."""


def nbytes(model: ir.Model) -> int:
    """Bytes that the weights will take."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def save(model: ir.Model, folder: Path, progress: Progress) -> None:
    """Stream a model into ``model.onnx`` and ``model.onnx.data`` of a folder; the model keeps its lazy tensors."""
    ir.save(
        model,
        folder / MODEL,
        external_data=DATA,
        max_workers=WRITERS,
        max_in_flight_bytes=64 << 20,
        alignment=4096,
        align_threshold=4096,
        callback=lambda tensor, info: progress.advance(info.index + 1, info.total, tensor.name or ""),
    )


def lay_out(stage: Path, extra: Mapping[str, Mapping[str, bytes]], report: Report) -> None:
    """One target fills the bundle itself, several fill a folder each."""
    if len(extra) == 1:
        folders = dict.fromkeys(extra, stage)
    else:
        folders = {name: stage / name for name in extra}
        for folder in folders.values():
            folder.mkdir()
            for name in (MODEL, DATA):
                if (stage / name).exists():
                    shutil.copyfile(stage / name, folder / name)
        for name in (MODEL, DATA):
            (stage / name).unlink(missing_ok=True)
    for name, folder in folders.items():
        for file, content in extra[name].items():
            (folder / file).write_bytes(content)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        (folder / REPORT).write_text(report.model_copy(update={"files": files}).json_text(), "utf-8")

"""What a candidate is held against: PyTorch's model, or a graph as its exporter left it, and how exact it is."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoint import Checkpoint, GraphSource, Opened
from exporter.errors import Exit, OnnxGptError
from exporter.onnx_format.halves import has_halves
from exporter.onnx_format.reader import read_file
from exporter.sources.module import instantiate
from graph_passes import ORT_PIPELINE, run_pipeline
from onnx_gpt.bundle.writing import MODEL, save
from onnx_gpt.exporting import Exported, export
from onnx_gpt.parity import noise
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.gate import Either, Facts, Reference
from onnx_gpt.parity.limits import scheme_of
from onnx_gpt.progress import Progress
from onnx_gpt.report import Noise


class Standard:
    """A reference, what is known of the model, and its own noise, which is measured once and when it is needed."""

    def __init__(self, model: Reference, facts: Facts) -> None:
        self.model, self.facts = model, facts
        self._noise: Noise | None = None

    def noise(self, windows: np.ndarray) -> Noise:
        if self._noise is None:
            self._noise = noise.measure(self.model, windows)
        return self._noise


def facts_of(exported: Exported) -> Facts:
    """What an exported model says of itself."""
    layers = exported.decoder.layers if exported.decoder is not None else ()
    windows = [layer.attention.window for layer in layers if layer.attention.window is not None]
    return Facts(exported.parameters, exported.context_length, max(windows, default=None))


@contextmanager
def torch_or_float_bundle(opened: Checkpoint, context: int | None, progress: Progress) -> Iterator[Either]:
    """PyTorch in float32; where it is not installed, our own float bundle of the checkpoint."""
    if has_torch():
        from onnx_gpt.parity.torch_model import TorchModel

        yield TorchModel(opened)
        return
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-float-") as folder:
        model = export(opened, context).model
        run_pipeline(model, ORT_PIPELINE)
        save(model, Path(folder), progress)
        yield Candidate(Path(folder) / MODEL, name="onnx-gpt float32 bundle (torch is not installed)")


@contextmanager
def original(opened: GraphSource, progress: Progress, threads: int) -> Iterator[Either]:
    """The file's graph, run as it stands; one in half precision in float32, where its own rounding is not in the way.

    A quantized graph is optimized as it is when it is used: some of its kernels need folded constants.
    """
    name = opened.path.name
    quantized = scheme_of(opened.path) not in ("none", "fp16")
    if quantized or not has_halves(read_file(opened.path)):
        yield Candidate(opened.path, threads, optimized=quantized, name=name)
        return
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-original-") as folder:
        save(opened.read(), Path(folder), progress)
        yield Candidate(Path(folder) / MODEL, threads, optimized=False, name=f"{name} in float32")


@contextmanager
def reference_model(
    opened: Opened, progress: Progress, *, context: int | None = None, threads: int = 0, module: Any = None
) -> Iterator[Either]:
    """The model of a source, run as exactly as it can be.

    Args:
        context: tokens that a checkpoint is exported for, where torch is not there to run it; its own where None.
        threads: of onnxruntime; its own choice where 0.
        module: what a module's source has been made to be, where that has been done.

    Raises:
        OnnxGptError: ``reference-missing`` (exit 8) where a module's torch is not installed; what opening raises.
    """
    if isinstance(opened, GraphSource):
        with original(opened, progress, threads) as graph:
            yield graph
    elif isinstance(opened, Checkpoint):
        with torch_or_float_bundle(opened, context, progress) as model:
            yield model
    else:
        if not has_torch():
            raise reference_missing()
        from onnx_gpt.parity.torch_model import TorchModel

        yield TorchModel(instantiate(opened) if module is None else module)


def has_torch() -> bool:
    """Whether PyTorch's models can be run."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def reference_missing() -> OnnxGptError:
    return OnnxGptError(
        "reference-missing",
        "parity of a float bundle needs torch and transformers, which are not installed",
        "pip install 'onnx-gpt[reference]', or pass --no-parity",
        exit=Exit.ENVIRONMENT,
    )

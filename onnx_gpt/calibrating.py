"""Runs the float graph on calibration text, for what is measured on whole activations."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.data.documents import Render, digest_of, documents_of, files_of
from calibration.data.windows import Encoder, Windows, pack
from calibration.kv_cache import CacheRanges
from calibration.statistics.histogram import Distribution, Histogram
from exporter.checkpoint import Opened
from onnx_gpt.bundle.writing import MODEL, save
from onnx_gpt.chat import chat_template
from onnx_gpt.exporting import Exported
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.text import calibration_text
from onnx_gpt.progress import Progress

WINDOWS, WINDOW = 16, 512
"""Text that ranges are taken from, where the model's context holds windows of so many tokens."""
CHUNK, SAMPLED = 128, 4
"""Tokens of a window that activations are kept of at once, and of which one is counted."""
DEFAULT_ORIGIN = "pydoc_data.topics, first four fifths (no --calibration was given)"


def calibration_windows(
    opened: Opened, exported: Exported, path: Path | None, count: int = WINDOWS
) -> Windows:
    """The text that activations are measured on: the user's, or the part of Python's documentation for it.

    Raises:
        OnnxGptError: see `calibration.data`; ``tokenizer-missing`` where there is text and no tokenizer to read it.
    """
    encoder = Encoder(opened.files.get("tokenizer.json"), exported.vocab_size)
    window = min(WINDOW, exported.context_length or WINDOW)
    if path is None:
        tokens = pack([calibration_text()], encoder, count=count, window=window)
        return Windows(tokens, DEFAULT_ORIGIN, 0, {})
    files = files_of(path)
    documents = (document for file in files for document in documents_of(file, _render(opened)))
    tokens = pack(documents, encoder, count=count, window=window)
    return Windows(tokens, str(path), 0, {file.name: digest_of(file) for file in files})


def _render(opened: Opened) -> Render | None:
    """How the model's own template writes a conversation; None where it has none."""
    config = json.loads(opened.files.get("tokenizer_config.json", b"{}"))
    jinja = opened.files.get("chat_template.jinja")
    template = chat_template(config, jinja.decode("utf-8") if jinja is not None else None)
    return None if template is None else functools.partial(template.render, add_generation_prompt=False)


def cache_ranges(model: ir.Model, windows: np.ndarray, folder: Path, progress: Progress) -> CacheRanges:
    """What the key/value cache of a float graph holds on a text; the graph keeps its lazy weights.

    Args:
        model: a graph that keeps the contract, as passes leave it.
        windows: int64 ``[N, S]``, every token real.
        folder: made for the graph while it runs.
    """
    ranges = CacheRanges()
    with _runnable(model, folder, progress) as candidate:
        for i, window in enumerate(windows):
            _, cache = candidate.run(window[None], keep=1)
            ranges = ranges.add(
                {name.replace("past_key_values", "present", 1): a for name, a in cache.items()}
            )
            progress.advance(i + 1, len(windows), "windows of calibration text")
    return ranges


def distributions(
    model: ir.Model, values: Sequence[ir.Value], windows: np.ndarray, folder: Path, progress: Progress
) -> dict[ir.Value, Distribution]:
    """How the values of a float graph are spread on a text; memory does not grow with the text.

    Windows go through the graph as a text does, a chunk after the other with the cache of those before. One token in
    `SAMPLED` is counted, another one in each window: a share of a million values is known well enough from that.

    Args:
        model, windows, folder: as `cache_ranges` takes them.
        values: made by nodes of the graph. They are given out by it while it runs here.
    """
    histograms = {value: Histogram.empty() for value in values}
    outputs = len(model.graph.outputs)
    model.graph.outputs.extend(histograms)
    try:
        with _runnable(model, folder, progress) as candidate:
            for i, window in enumerate(windows):
                seen: dict[str, np.ndarray] | None = None
                for start in range(0, len(window), CHUNK):
                    _, seen = candidate.run(window[None, start : start + CHUNK], past=seen)
                    for value, histogram in histograms.items():
                        histogram.add(seen.pop(str(value.name))[:, i % SAMPLED :: SAMPLED])
                progress.advance(i + 1, len(windows), "windows of calibration text")
    finally:
        del model.graph.outputs[outputs:]
    return {value: histogram.finish() for value, histogram in histograms.items()}


@contextmanager
def _runnable(model: ir.Model, folder: Path, progress: Progress) -> Iterator[Candidate]:
    folder.mkdir(parents=True)
    try:
        save(model, folder, progress)
        yield Candidate(folder / MODEL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

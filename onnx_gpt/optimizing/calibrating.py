"""Runs the float graph on calibration text, for what is measured on whole activations."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.data.documents import Document, Render, digests_of, documents_of, files_of
from calibration.data.windows import Encoder, Windows, pack
from calibration.kv_cache import CacheRanges, rotations_of
from calibration.statistics.half_range import HalfFit, HalfRange
from calibration.statistics.histogram import Distribution, Histogram
from exporter.checkpoint import Opened
from onnx_gpt.bundle.writing import MODEL, save
from onnx_gpt.exporting import Exported
from onnx_gpt.generation.chat import template_of
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.text import calibration_text
from onnx_gpt.progress import Progress

WINDOWS, WINDOW = 16, 512
"""Text that ranges are taken from, where the model's context holds windows of so many tokens."""
CHUNK, SAMPLED = 128, 4
"""Tokens of a window that activations are kept of at once, and of which one is counted."""
STEPS = 4
"""Tokens at the end of a window that go through the graph one at a time."""
DEFAULT_ORIGIN = "pydoc_data.topics, first four fifths (no --calibration was given)"


def calibration_windows(
    opened: Opened, exported: Exported, path: Path | None, count: int | None = None
) -> Windows:
    """The text that activations are measured on: the user's, or the part of Python's documentation for it.

    Raises:
        OnnxGptError: see `calibration.data`; ``tokenizer-missing`` where there is text and no tokenizer to read it.
    """
    count = count or WINDOWS
    encoder = Encoder(opened.files.get("tokenizer.json"), exported.vocab_size)
    window = min(WINDOW, exported.context_length or WINDOW)
    if path is None:
        tokens = pack([calibration_text()], encoder, count=count, window=window)
        return Windows(tokens, DEFAULT_ORIGIN, 0, {})
    tokens = pack(documents(opened, files_of(path)), encoder, count=count, window=window)
    return Windows(tokens, str(path), 0, digests_of(path))


def documents(opened: Opened, files: Sequence[Path]) -> Iterator[Document]:
    """The documents of some files, conversations as the model's own template writes them."""
    render = _render(opened)
    return (document for file in files for document in documents_of(file, render))


def _render(opened: Opened) -> Render | None:
    """How the model's own template writes a conversation; None where it has none."""
    template = template_of(opened.files)
    return None if template is None else functools.partial(template.render, add_generation_prompt=False)


def cache_ranges(model: ir.Model, windows: np.ndarray, folder: Path, progress: Progress) -> CacheRanges:
    """What the key/value cache of a float graph holds on a text; the graph keeps its lazy weights.

    Args:
        model: a graph that keeps the contract, as passes leave it.
        windows: int64 ``[N, S]``, every token real.
        folder: made for the graph while it runs.
    """
    ranges, rotations = CacheRanges(), rotations_of(model)
    with runnable(model, folder, progress) as candidate:
        for i, window in enumerate(windows):
            _, cache = candidate.run(window[None], keep=1)
            presents = {name.replace("past_key_values", "present", 1): a for name, a in cache.items()}
            ranges = ranges.add(presents, rotations)
            progress.advance(i + 1, len(windows), "windows of calibration text")
    return ranges


def distributions(
    model: ir.Model, values: Sequence[ir.Value], windows: np.ndarray, folder: Path, progress: Progress
) -> dict[ir.Value, Distribution]:
    """How the values of a float graph are spread on a text; memory does not grow with the text.

    One token in `SAMPLED` is counted, another one in each window: a share of a million values is known well enough from
    that.

    Args:
        model, values, windows, folder: as `activations` takes them.
    """
    histograms = {value: Histogram.empty() for value in values}
    for seen in activations(model, values, windows, folder, progress):
        counted = (seen.window - seen.start) % SAMPLED
        for value, histogram in histograms.items():
            histogram.add(seen.values[value][:, counted::SAMPLED])
    return {value: histogram.finish() for value, histogram in histograms.items()}


def half_fits(
    model: ir.Model, values: Sequence[ir.Value], windows: np.ndarray, folder: Path, progress: Progress
) -> dict[ir.Value, HalfFit]:
    """How the values of a float graph lie in float16 on a text, every token counted.

    Args:
        model, values, windows, folder: as `activations` takes them.
    """
    ranges = {value: HalfRange.empty() for value in values}
    for seen in activations(model, values, windows, folder, progress):
        for value, known in ranges.items():
            known.add(seen.values[value])
    return {value: known.finish() for value, known in ranges.items()}


@dataclasses.dataclass(frozen=True)
class Seen:
    """What some values of a graph were for some tokens of a window.

    Attributes:
        window: its number.
        start: how many tokens were before these.
        values: ``[1, S, …]`` each.
    """

    window: int
    start: int
    values: Mapping[ir.Value, np.ndarray]


def activations(
    model: ir.Model, values: Sequence[ir.Value], windows: np.ndarray, folder: Path, progress: Progress
) -> Iterator[Seen]:
    """Values of a float graph on a text, as it is used: a prompt in pieces, then `STEPS` tokens one at a time.

    Every piece has the cache of those before, and every token is real: windows are full, there is no padding to mask.

    Args:
        model: a graph that keeps the contract, as passes leave it; its lazy weights stay so.
        values: made by its nodes. They are given out by it while it runs here.
        windows: int64 ``[N, S]``, every token real.
        folder: made for the graph while it runs.
    """
    names = {value: str(value.name) for value in dict.fromkeys(values)}
    outputs = len(model.graph.outputs)
    for value in names:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)  # what is given out has to say it
    model.graph.outputs.extend(value for value in names if not value.is_graph_output())
    try:
        with runnable(model, folder, progress) as candidate:
            for i, window in enumerate(windows):
                cache = candidate.empty_cache(1)
                for start, stop in _phases(len(window)):
                    found = _step(candidate.session, window[None, :stop], start, cache, list(names.values()))
                    yield Seen(i, start, {value: found[name] for value, name in names.items()})
                progress.advance(i + 1, len(windows), "windows of calibration text")
    finally:
        del model.graph.outputs[outputs:]


def _step(
    session: Any, tokens: np.ndarray, start: int, cache: dict[str, np.ndarray], wanted: Sequence[str]
) -> dict[str, np.ndarray]:
    """Run ``tokens[:, start:]`` after those before; the cache is brought up to date, the wanted values are returned."""
    feeds = {"input_ids": tokens[:, start:], "attention_mask": np.ones_like(tokens), **cache}
    feeds["num_logits_to_keep"] = np.array(0, np.int64)  # for the graphs in which it has no default
    presents = {past: past.replace("past_key_values", "present", 1) for past in cache}
    asked = list(dict.fromkeys([*wanted, *presents.values()]))
    taken = {value.name for value in session.get_inputs()}
    given = session.run(asked, {name: array for name, array in feeds.items() if name in taken})
    found = dict(zip(asked, given, strict=True))
    cache.update({past: found[present] for past, present in presents.items()})
    return {name: found[name] for name in wanted}


def _phases(length: int) -> Iterator[tuple[int, int]]:
    """A window cut into the pieces of its prompt and its steps."""
    steps = min(STEPS, length // 2)
    for start in range(0, length - steps, CHUNK):
        yield start, min(start + CHUNK, length - steps)
    yield from ((at, at + 1) for at in range(length - steps, length))


@contextmanager
def runnable(
    model: ir.Model, folder: Path, progress: Progress, *, optimized: bool = True
) -> Iterator[Candidate]:
    """A graph written into a folder, which is made for it, and loaded; the folder vanishes afterwards."""
    folder.mkdir(parents=True)
    try:
        save(model, folder, progress)
        yield Candidate(folder / MODEL, optimized=optimized)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

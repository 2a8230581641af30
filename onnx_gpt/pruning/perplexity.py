"""How well a checkpoint predicts a text, by itself and without PyTorch: its own float graph on onnxruntime."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from exporter.checkpoint import Checkpoint
from exporter.errors import rejected
from graph_passes import ORT_PIPELINE, run_pipeline
from onnx_gpt.exporting import export
from onnx_gpt.optimizing.calibrating import runnable
from onnx_gpt.parity.metrics import log_softmax
from onnx_gpt.parity.text import evaluation_tokens
from onnx_gpt.progress import Progress

WINDOW = 512
"""Tokens of a window of text, where the model's context holds as many."""
MOST_NATS = 700.0
"""A token's loss from which on its exponential is no number."""
ROWS = 64
"""Positions that are summed up at once."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one model on one text.

    Attributes:
        perplexity: exp of the mean of −log p, a token.
        bits_per_byte: of the text as UTF-8; comparable between tokenizers. None where the model has no tokenizer.
        tokens: positions whose next token was predicted.
        text: where the text came from.
    """

    perplexity: float
    bits_per_byte: float | None
    tokens: int
    text: str


def windows_of(checkpoint: Checkpoint, tokens: int, path: Path | None) -> tuple[np.ndarray, str]:
    """Windows ``[N, S]`` of held-out text with at least so many predicted positions, and where they come from."""
    exported = export(checkpoint)
    found = evaluation_tokens(
        checkpoint.files.get("tokenizer.json"),
        exported.vocab_size,
        tokens=tokens,
        window=min(WINDOW, exported.context_length or WINDOW),
        path=path,
    )
    return found.windows, found.origin


def score(
    checkpoint: Checkpoint, windows: np.ndarray, origin: str, folder: Path, progress: Progress
) -> Score:
    """Run a checkpoint on windows of tokens, int64 ``[N, S]``.

    Args:
        folder: made for its float graph, and removed again.

    Raises:
        OnnxGptError: ``logits-not-finite``.
    """
    model = export(checkpoint).model
    run_pipeline(model, ORT_PIPELINE, verify=False)
    losses = []
    with runnable(model, folder, progress) as candidate:
        for i, window in enumerate(windows):
            losses.append(_losses(candidate.logits(window[None])[0], window))
            progress.advance(i + 1, len(windows), "windows of text")
    loss = np.concatenate(losses)
    mean = float(loss.mean())
    if not mean < MOST_NATS:
        raise rejected(
            "logits-not-finite",
            f"the model's loss on {origin} is {mean:.3g} nats a token",
            "check the checkpoint with `onnx-gpt ranges`",
        )
    return Score(
        perplexity=math.exp(mean),
        bits_per_byte=_bits_per_byte(checkpoint.files.get("tokenizer.json"), windows, float(loss.sum())),
        tokens=len(loss),
        text=origin,
    )


def _losses(logits: np.ndarray, window: np.ndarray) -> np.ndarray:
    """−log p of each next token, ``[S − 1]``."""
    targets = window[1:]
    starts = range(0, len(targets), ROWS)
    parts = [log_softmax(logits[a : min(a + ROWS, len(targets))]) for a in starts]
    losses: np.ndarray = -np.concatenate(
        [part[np.arange(len(part)), targets[a : a + ROWS]] for a, part in zip(starts, parts, strict=True)]
    )
    return losses


def _bits_per_byte(
    tokenizer_json: bytes | None, windows: Sequence[np.ndarray] | np.ndarray, nats: float
) -> float | None:
    if tokenizer_json is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
    size = sum(len(tokenizer.decode([int(t) for t in window[1:]]).encode("utf-8")) for window in windows)
    return nats / math.log(2) / max(size, 1)

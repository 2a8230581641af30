"""A reference that runs a text once, however many candidates are held against it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from onnx_gpt.parity.gate import Reference

FEWEST = 128
"""Tokens of a text that is kept; a shorter one is run again in less time."""


class Recalled:
    """Another reference, whose logits of texts are kept in files and read from there again.

    Args:
        model: what is asked.
        folder: that the files lie in, as long as this lives.
        most: texts that are kept; 4 bytes a token and entry of the vocabulary each.
    """

    def __init__(self, model: Reference, folder: Path, most: int) -> None:
        self.model, self.folder, self.most = model, folder, most
        self.name, self.cached, self.remembers = model.name, model.cached, model.remembers
        self.pads, self.batches, self.cache_axis = model.pads, model.batches, model.cache_axis

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """float32 ``[B, S, V]`` of whole sequences, int64 ``[B, S]``."""
        digest = hashlib.sha256(np.array(tokens.shape).tobytes() + tokens.tobytes()).hexdigest()
        path = self.folder / f"{digest}.npy"
        if path.exists():
            kept: np.ndarray = np.load(path, mmap_mode="r")
            return kept
        logits = self.model.logits(tokens)
        if tokens.shape[1] >= FEWEST and len(list(self.folder.glob("*.npy"))) < self.most:
            np.save(path, logits)
        return logits

    def run(
        self,
        tokens: np.ndarray,
        mask: np.ndarray | None = None,
        past: Mapping[str, np.ndarray] | None = None,
        *,
        keep: int = 0,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """As the reference's own."""
        return self.model.run(tokens, mask, past, keep=keep)

    def alternatives(self, tokens: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Logits computed in other ways, as the reference gives them."""
        return self.model.alternatives(tokens)

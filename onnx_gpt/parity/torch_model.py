"""PyTorch's model as parity sees it: the reference, and where two checkpoints are compared the candidate too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from exporter.checkpoint import Checkpoint
from exporter.errors import OnnxGptError
from exporter.reference import Reference

Cache = dict[str, np.ndarray]
SIDES = ("key", "value")
LARGEST = 2 << 30
"""Parameters of a model that is also run in float64; twice the memory of a larger one is not taken for that."""


class TorchModel:
    """transformers' model of a checkpoint, or a user's module, on the CPU in float32.

    Args:
        source: a checkpoint, or the ``torch.nn.Module`` itself.
    """

    batches = True
    cache_axis = 2
    cached = False
    """transformers' own cache is nothing that is to be proven."""

    def __init__(self, source: Checkpoint | Any) -> None:
        self.reference = Reference(source)
        self.name = self.reference.name
        self.pads = self.remembers = isinstance(source, Checkpoint)
        self._parameters = sum(int(parameter.numel()) for parameter in self.reference.model.parameters())

    def run(
        self,
        tokens: np.ndarray,
        mask: np.ndarray | None = None,
        past: Mapping[str, np.ndarray] | None = None,
        *,
        keep: int = 0,
    ) -> tuple[np.ndarray, Cache]:
        """As `Candidate.run`; a cache has the contract's names, and none comes back where a mask or a past is given."""
        cache: Cache = {}
        if past:
            layers = range(len(past) // 2)
            pairs = [tuple(past[f"past_key_values.{i}.{side}"] for side in SIDES) for i in layers]
            logits, _ = self.reference.after(tokens, pairs)  # type: ignore[arg-type]
        elif mask is None and self.remembers:
            logits, kept = self.reference.remember(tokens)
            cache = {
                f"past_key_values.{i}.{side}": array
                for i, pair in enumerate(kept)
                for side, array in zip(SIDES, pair, strict=True)
            }
        else:
            logits = self.reference.logits(tokens, mask)
        return logits[:, -keep:] if keep else logits, cache

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Logits ``[B, S, V]`` of whole sequences ``[B, S]``."""
        return self.reference.logits(tokens)

    def greedy(self, tokens: np.ndarray, count: int) -> list[int]:
        """The ``count`` most likely next tokens after ``tokens`` ``[S]``."""
        return self.reference.greedy(tokens, count)

    def alternatives(self, tokens: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Logits of the same function computed in other ways, each with its name."""
        for name in self.reference.variants() if self._parameters <= LARGEST else ():
            try:
                logits = self.reference.logits(tokens)
            except OnnxGptError:  # a module that makes float32 tensors of its own cannot run in float64
                continue
            yield name, logits

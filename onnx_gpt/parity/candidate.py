"""A bundle as parity sees it: batches, padding and a growing cache on plain onnxruntime, nothing clever."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Cache = dict[str, np.ndarray]

CACHE_DTYPES = {"tensor(float)": np.float32, "tensor(int8)": np.int8}
"""Types that a bundle of ours keeps its cache in."""


class Candidate:
    """An ONNX decoder under test.

    Args:
        model: path of the .onnx file.
        threads: intra-op threads; onnxruntime's choice by default.
    """

    def __init__(self, model: Path, threads: int = 0) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.inputs: dict[str, Any] = {value.name: value for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.cached = any(name.startswith("past_key_values") for name in self.inputs)

    def run(
        self,
        tokens: np.ndarray,
        mask: np.ndarray | None = None,
        past: Mapping[str, np.ndarray] | None = None,
        *,
        keep: int = 0,
    ) -> tuple[np.ndarray, Cache]:
        """One forward pass.

        Args:
            tokens: int64 ``[B, S]``.
            mask: int64 ``[B, T]``, 1 for real tokens; all real by default.
            past: a cache that `run` returned; empty by default.
            keep: give the last so many tokens' logits alone, where the graph has a cache; 0 for all.

        Returns:
            logits ``[B, S, V]`` float32 and the cache after these tokens, in the graph's own type.
        """
        past = past or self._empty_cache(len(tokens))
        seen = next(iter(past.values())).shape[2] if past else 0
        feeds = {"input_ids": tokens, **past}
        if "attention_mask" in self.inputs:
            feeds["attention_mask"] = (
                np.ones((len(tokens), seen + tokens.shape[1]), np.int64) if mask is None else mask
            )
        if keep:
            feeds["num_logits_to_keep"] = np.array(keep, np.int64)
        outputs = dict(zip(self.outputs, self.session.run(None, feeds), strict=True))
        logits = outputs.pop("logits")
        return logits, {
            name.replace("present", "past_key_values", 1): value for name, value in outputs.items()
        }

    def _empty_cache(self, batch: int) -> Cache:
        return {
            name: np.zeros((batch, value.shape[1], 0, value.shape[3]), CACHE_DTYPES[value.type])
            for name, value in self.inputs.items()
            if name.startswith("past_key_values")
        }

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Logits ``[B, S, V]`` of whole sequences ``[B, S]``."""
        return self.run(tokens)[0]

    def greedy(self, tokens: np.ndarray, count: int) -> list[int]:
        """The ``count`` most likely next tokens after ``tokens`` ``[S]``, one at a time through the cache."""
        chosen: list[int] = []
        sequence = tokens.reshape(1, -1)
        logits, past = self.run(sequence)
        for _ in range(count):
            chosen.append(int(logits[0, -1].argmax()))
            last = np.array([[chosen[-1]]], np.int64)
            if self.cached:
                logits, past = self.run(last, past=past)
            else:
                sequence = np.concatenate([sequence, last], axis=1)
                logits, _ = self.run(sequence)
        return chosen

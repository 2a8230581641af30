"""Weights before any training: normal matrices, the maps into the residual stream smaller (Radford et al. 2019)."""

from __future__ import annotations

import numpy as np

from exporter.decoder import Decoder

DEVIATION = 0.02
INTO_RESIDUAL = ("attention.o.weight", "ffn.down.weight")


def drawn(decoder: Decoder, seed: int) -> dict[str, np.ndarray]:
    """Float32 weights by role: gains 1, biases 0, matrices of deviation 0.02, ``0.02/√(2 · layers)`` where they end in
    the residual stream."""
    rng = np.random.default_rng(seed)
    narrow = DEVIATION / np.sqrt(2 * len(decoder.layers))

    def weight(role: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.full(shape, 0.0 if role.endswith(".bias") else 1.0, np.float32)
        deviation = narrow if role.endswith(INTO_RESIDUAL) else DEVIATION
        return (rng.standard_normal(shape, np.float32) * np.float32(deviation)).astype(np.float32)

    return {role: weight(role, part.shape) for role, part in decoder.parts()}

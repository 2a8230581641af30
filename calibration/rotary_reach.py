"""How large a rotated key's channels become at other positions than the one where it was seen.

Rotary positions turn each pair of channels by an angle that grows with the token's place: pair j of a key at place t is

    r · (cos ψ, sin ψ),   and at place p   r · (cos(ψ + (p − t)·θ_j), sin(ψ + (p − t)·θ_j))

The slow pairs of a long context hardly turn within a text of calibration. What they hold there in one channel moves
into the other one thousands of tokens later (Su et al. 2021, RoFormer), so the largest values of the text are no bound
for it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from exporter.errors import unsupported
from graph_passes.matching import attribute, producer, role_of


@dataclasses.dataclass(frozen=True)
class Rotation:
    """How keys turn.

    Attributes:
        steps: θ, radians a token, float32 ``[R/2]``.
        context: C, places that there are.
        interleaved: whether the two of a pair are neighbours; else they are R/2 channels apart.
    """

    steps: np.ndarray
    context: int
    interleaved: bool

    @property
    def pairs(self) -> tuple[slice, slice]:
        """The first and the second channels of all pairs."""
        half = len(self.steps)
        if self.interleaved:
            return slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        return slice(0, half), slice(half, 2 * half)


def rotation_of(attention: ir.Node) -> Rotation | None:
    """How a GroupQueryAttention's keys are turned, inside it or in front of it; None where they are not.

    Raises:
        OnnxGptError: ``cannot-quantize-cache`` (exit 3) where the angles are no constants.
    """
    if attribute(attention, "do_rotary", 0):
        cos, sin = attention.inputs[7:9]
        interleaved = bool(attribute(attention, "rotary_interleaved", 0))
    elif (turning := producer(attention.inputs[1], "RotaryEmbedding")) is not None:
        cos, sin = turning.inputs[1:3]
        interleaved = bool(attribute(turning, "interleaved", 0))
    else:
        return None
    tables = [
        None if value is None or value.const_value is None else value.const_value.numpy()
        for value in (cos, sin)
    ]
    if tables[0] is None or tables[1] is None:
        raise unsupported(
            "cannot-quantize-cache",
            f"the rotary angles of {role_of(attention)} are computed as the graph runs",
            "leave the cache in float, or export the model with tables of cosines and sines",
        )
    last = min(1, len(tables[0]) - 1)
    return Rotation(np.arctan2(tables[1][last], tables[0][last]), len(tables[0]), interleaved)


def reach(keys: np.ndarray, rotation: Rotation) -> np.ndarray:
    """The largest size that each channel has at any place of the context.

    Args:
        keys: rotated, of places 0 … T−1, ``[B, K, T, D]``. Channels behind the rotated ones keep their size.

    Returns:
        float32 ``[B, K, T, D]``.
    """
    sizes: np.ndarray = np.abs(keys)
    first, second = rotation.pairs
    radius, angle = (
        np.hypot(keys[..., first], keys[..., second]),
        np.arctan2(keys[..., second], keys[..., first]),
    )
    places = np.arange(keys.shape[2], dtype=np.float32)[:, None]
    ends = angle - places * rotation.steps, angle + (rotation.context - 1 - places) * rotation.steps
    low, high = np.minimum(*ends), np.maximum(*ends)
    sizes[..., first] = radius * _largest_cosine(low, high)
    sizes[..., second] = radius * _largest_cosine(low - np.pi / 2, high - np.pi / 2)
    return sizes


def _largest_cosine(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Of the sizes of cosines between two angles: 1 where a multiple of π lies between them."""
    turns = np.floor(high / np.pi) >= np.ceil(low / np.pi)
    return np.where(turns, np.float32(1), np.maximum(np.abs(np.cos(low)), np.abs(np.cos(high))))

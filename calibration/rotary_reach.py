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
from graph_passes.matching import NORMS, attribute, producer, role_of


@dataclasses.dataclass(frozen=True)
class Rotation:
    """How keys turn.

    Attributes:
        steps: θ, radians a token, float32 ``[R/2]``.
        context: C, places that there are.
        interleaved: whether the two of a pair are neighbours; else they are R/2 channels apart.
        gain: float32 ``[D]``, of a norm over each head behind the rotation (HunYuan). The rest of a norm multiplies all
            channels of a key alike, at every place by the same.
    """

    steps: np.ndarray
    context: int
    interleaved: bool
    gain: np.ndarray | None = None

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
        OnnxGptError: ``cannot-quantize-cache`` (exit 3) where the angles are no constants, or a gain is 0.
    """
    gain = None
    if attribute(attention, "do_rotary", 0):  # a norm in front of that is none behind the rotation
        cos, sin = attention.inputs[7:9]
        interleaved = bool(attribute(attention, "rotary_interleaved", 0))
    else:
        key, gain = _before_norm(attention.inputs[1])
        turning = producer(key, "RotaryEmbedding")
        if turning is None:
            return None
        cos, sin = turning.inputs[1:3]
        interleaved = bool(attribute(turning, "interleaved", 0))
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
    if gain is not None and not gain.all():
        raise unsupported(
            "cannot-quantize-cache",
            f"the norm of {role_of(attention)}'s keys has a gain of 0 behind their rotation",
            "leave the cache in float",
        )
    last = min(1, len(tables[0]) - 1)
    return Rotation(np.arctan2(tables[1][last], tables[0][last]), len(tables[0]), interleaved, gain)


def _before_norm(key: ir.Value | None) -> tuple[ir.Value | None, np.ndarray | None]:
    """What a norm over each head reads that gives a key, and its gain; the key itself where there is no such norm."""
    merge = producer(key, "Reshape")
    norm = merge.inputs[0].producer() if merge is not None and merge.inputs[0] is not None else None
    split = producer(norm.inputs[0], "Reshape") if norm is not None and norm.op_type in NORMS else None
    if norm is None or split is None:
        return key, None
    gain = norm.inputs[1].const_value if norm.inputs[1] is not None else None
    return split.inputs[0], None if gain is None else gain.numpy()


def reach(keys: np.ndarray, rotation: Rotation) -> np.ndarray:
    """The largest size that each channel has at any place of the context.

    Args:
        keys: rotated, of places 0 … T−1, ``[B, K, T, D]``. Channels behind the rotated ones keep their size.

    Returns:
        float32 ``[B, K, T, D]``.
    """
    sizes: np.ndarray
    if rotation.gain is not None:
        sizes = reach(keys / rotation.gain, dataclasses.replace(rotation, gain=None))
        sizes *= np.abs(rotation.gain)
        return sizes
    sizes = np.abs(keys)
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

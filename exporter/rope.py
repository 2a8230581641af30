"""Inverse frequencies of rotary positions, by the kinds of scaling that configurations name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from exporter.config import HeadsConfig, invalid
from exporter.decoder import Rope
from exporter.errors import unsupported

DEFAULT_THETA = 10_000.0
"""Base of the frequencies where a configuration names none (Su et al. 2021)."""


def rope_of(config: HeadsConfig, *, theta: float = DEFAULT_THETA, partial: float | None = None) -> Rope:
    """Rotary positions as a configuration states them.

    transformers 5 keeps everything in ``rope_parameters``; transformers 4 has ``rope_theta`` and
    ``rope_scaling``.

    Args:
        theta: base of the frequencies where the configuration names none.
        partial: share of a head's channels that rotate, unless ``rope_parameters`` says otherwise. None for
            families that always rotate all of them: there a ``partial_rotary_factor`` other than 1 is
            refused.
    """
    parameters = (config.rope_scaling or {}) | (config.rope_parameters or {})
    stated = parameters.pop("rope_theta", config.rope_theta)
    base = theta if stated is None else stated
    return rope(parameters, base, config.head_size, config.max_position_embeddings, partial=partial)


def rope(
    parameters: Mapping[str, Any],
    theta: float,
    head_dim: int,
    context_length: int,
    *,
    partial: float | None = None,
) -> Rope:
    """Rotary frequencies in float32, as transformers computes them.

    Args:
        parameters: ``rope_type`` (or transformers 4's ``type``) and what that type needs.
        theta: base of the frequencies.
        head_dim: channels of a head, D.
        context_length: what the model was trained for, where a type needs it and does not say it itself.
        partial: see `rope_of`.

    Raises:
        OnnxGptError: ``rope-unknown`` (exit 3) for a type or parameter that is not implemented,
            ``config-invalid`` (exit 4) for one that is missing or no number.
    """
    rest = dict(parameters)
    legacy = rest.pop("type", None)
    kind = rest.pop("rope_type", None) or legacy or "default"
    scaling = _SCALINGS.get(kind) if isinstance(kind, str) else None
    if scaling is None:
        raise unsupported(
            "rope-unknown",
            f"rotary scaling of type {kind!r} is not implemented",
            f"use a model with {', '.join(_SCALINGS)} rotary scaling",
        )
    rotated = _rotated(head_dim, rest.pop("partial_rotary_factor", None), partial)
    frequencies = scaling(_frequencies(_positive("rope_theta", theta), rotated), rest, context_length)
    if rest:
        raise unsupported(
            "rope-unknown",
            f"{kind} rotary scaling has parameters that are not implemented: {', '.join(sorted(rest))}",
            "remove them if they have no effect, or use another model",
        )
    return Rope(tuple(float(f) for f in frequencies))


def _rotated(head_dim: int, stated: Any, partial: float | None) -> int:
    share = partial if stated is None else stated
    if share is None or (partial is None and share == 1):
        share = 1.0
    elif partial is None:
        raise unsupported(
            "rope-unknown",
            f"this family rotates whole heads, and partial_rotary_factor is {share!r}",
            "use a family with partial rotary positions, such as gpt_neox or phi3",
        )
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise invalid(
            "rotary positions are misconfigured", f"partial_rotary_factor is {share!r}, not in (0, 1]"
        )
    rotated = int(head_dim * share)
    if rotated < 2 or rotated % 2:
        raise invalid(
            "rotary positions are misconfigured", f"{rotated} channels rotate; they rotate in pairs"
        )
    return rotated


def _frequencies(theta: float, rotated: int) -> np.ndarray:
    """``theta^(−2i/rotated)`` for each pair i, the power rounded correctly as torch's is, numpy's is not."""
    exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    power = (np.float64(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1) / power


def _default(base: np.ndarray, rest: dict[str, Any], context_length: int) -> np.ndarray:
    return base


def _linear(base: np.ndarray, rest: dict[str, Any], context_length: int) -> np.ndarray:
    """Position interpolation (Chen et al. 2023): positions divided are frequencies divided."""
    scaled: np.ndarray = base / np.float32(_number(rest, "factor"))
    return scaled


def _llama3(base: np.ndarray, rest: dict[str, Any], context_length: int) -> np.ndarray:
    """Llama 3.1's smooth blend of scaled low frequencies and untouched high ones (Grattafiori 2024)."""
    factor = np.float32(_number(rest, "factor"))
    low, high = _number(rest, "low_freq_factor"), _number(rest, "high_freq_factor")
    if low >= high:
        raise invalid(
            "rotary positions are misconfigured",
            f"low_freq_factor {low} is not below high_freq_factor {high}",
        )
    context = _number(rest, "original_max_position_embeddings", context_length)
    wavelength = np.float32(2 * math.pi) / base
    smooth = np.clip((np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low), 0, 1)
    blended: np.ndarray = ((1 - smooth) * base / factor + smooth * base).astype(np.float32)
    return blended


def _number(rest: dict[str, Any], key: str, default: float | None = None) -> float:
    return _positive(key, rest.pop(key, default))


def _positive(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise invalid("rotary positions are misconfigured", f"{key} is {value!r}, not a positive number")
    return float(value)


_SCALINGS: Mapping[str, Callable[[np.ndarray, dict[str, Any], int], np.ndarray]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
}

"""Inverse frequencies of rotary positions, by the kinds of scaling that configurations name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from exporter.decoder import Rope
from exporter.errors import unsupported


def rope_of(config: Any, head_dim: int, *, rotated: int | None = None) -> Rope:
    """Rotary positions as a configuration states them.

    transformers 5 keeps everything in ``rope_parameters``; transformers 4 keeps ``rope_theta`` and ``rope_scaling``.

    Args:
        config: has ``rope_parameters``, ``rope_theta`` and ``rope_scaling``.
        rotated: channels of a head that rotate; all by default.
    """
    parameters: dict[str, Any] = dict(config.rope_scaling or {}) | dict(config.rope_parameters or {})
    theta = parameters.pop("rope_theta", None) or config.rope_theta or 10000.0
    return rope(parameters, float(theta), rotated or head_dim)


def rope(parameters: Mapping[str, Any], theta: float, rotated: int) -> Rope:
    """Rotary frequencies in float32, computed as transformers does.

    Raises:
        OnnxGptError: ``rope-unknown`` (exit 3) for a type or parameter that is not implemented.
    """
    rest = dict(parameters)
    kind = rest.pop("rope_type", None) or rest.pop("type", None) or "default"
    rest.pop("type", None)
    rest.pop("partial_rotary_factor", None)  # the family has turned it into `rotated`
    base = np.float32(1) / (
        np.float32(theta) ** (np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated))
    )
    if kind == "default":
        frequencies = base
    elif kind == "linear":
        frequencies = base / np.float32(rest.pop("factor"))
    elif kind == "llama3":
        frequencies = _llama3(base, rest)
    else:
        raise unsupported(
            "rope-unknown",
            f"rotary scaling of type {kind!r} is not implemented",
            "use a model with default, linear or llama3 rotary scaling",
        )
    if rest:
        raise unsupported(
            "rope-unknown",
            f"rotary scaling has parameters that are not implemented: {', '.join(sorted(rest))}",
            "remove them if they have no effect, or use another model",
        )
    return Rope(tuple(float(f) for f in frequencies))


def _llama3(base: np.ndarray, rest: dict[str, Any]) -> np.ndarray:
    """Llama 3.1's smooth blend of scaled low frequencies and untouched high ones (Grattafiori et al. 2024)."""
    factor = np.float32(rest.pop("factor"))
    low, high = float(rest.pop("low_freq_factor")), float(rest.pop("high_freq_factor"))
    context = float(rest.pop("original_max_position_embeddings"))
    wavelength = np.float32(2 * math.pi) / base
    smooth = np.clip((np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low), 0, 1)
    return ((1 - smooth) * base / factor + smooth * base).astype(np.float32)

"""Rotary scaling as a GGUF file states it, in the words of a Hugging Face configuration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from exporter.errors import OnnxGptError, unsupported
from exporter.gguf_format.blocks import weight_of
from exporter.gguf_format.keys import Keys
from exporter.gguf_format.reader import Header

FREQUENCY_FACTORS = "rope_freqs.weight"
LONG_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")

_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0
_LLAMA3_CONTEXTS = (8192, 4096, 2048, 16384, 32768, 65536, 131072)


def rope_keys(keys: Keys, head_dim: int, theta: float | None = None) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` of a configuration.

    Args:
        head_dim: rotated channels of a head.
        theta: where the file may leave it out; llama.cpp then takes 10000.

    Raises:
        OnnxGptError: ``gguf-rope-unsupported`` (exit 3) for scaling of a kind that is not implemented.
    """
    header = keys.header
    base = keys.number("rope.freq_base", 10000.0 if theta is None else theta)
    if base < 1:
        raise header.invalid(f"rope.freq_base is {base}")
    keys.inert("rope.scaling.finetuned", "rope.scaling.original_context_length")
    keys.only("rope.scaling.attn_factor", 1.0)
    scaling = _by_type(keys)
    for name in LONG_FACTORS:
        if name in header.tensors:
            raise _unsupported(header, f"rotary scaling by the tensor {name} (longrope)")
    if FREQUENCY_FACTORS in header.tensors:
        if scaling is not None:
            raise _unsupported(
                header, f"rotary scaling by a factor together with the tensor {FREQUENCY_FACTORS}"
            )
        scaling = _llama3(header, base, head_dim)
    return {"rope_theta": base, "rope_scaling": scaling}


def _by_type(keys: Keys) -> dict[str, Any] | None:
    """Scaling by a factor. llama.cpp takes an unnamed type for linear, and the factors 0 and 1 for none."""
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    if kind not in ("linear", "none", "yarn"):
        raise _unsupported(keys.header, f"rotary scaling of type {kind[:80]!r}")
    if factor != 0 and factor < 1:
        raise keys.header.invalid(f"rotary positions are scaled by {factor}")
    scaled = kind != "none" and factor > 1
    if kind == "yarn":
        parameters = _yarn(keys)
        return {"rope_type": kind, "factor": factor, **parameters} if scaled else None
    return {"rope_type": kind, "factor": factor} if scaled else None


def _yarn(keys: Keys) -> dict[str, Any]:
    """YaRN's own parameters (Peng et al. 2024), those that the file states; -1 is for what it leaves open."""
    keys.only("rope.scaling.yarn_ext_factor", 1.0, -1.0)
    stated = {
        "attention_factor": "yarn_attn_factor",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }
    numbers = {ours: keys.number(f"rope.scaling.{theirs}", -1.0) for ours, theirs in stated.items()}
    return {
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length"),
        **{ours: number for ours, number in numbers.items() if number != -1},
    }


def _llama3(header: Header, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Llama 3.1's parameters, recovered from the frequencies' divisors, which the file has in their place.

    The largest divisor is the factor. The rest is tried, and taken only where it gives every divisor of the
    file to within what float32 rounding leaves.
    """
    entry = header.tensors[FREQUENCY_FACTORS]
    if entry.shape != (head_dim // 2,):
        raise header.invalid(f"{FREQUENCY_FACTORS} has shape {list(entry.shape)}, not [{head_dim // 2}]")
    divisors = weight_of(header.path, entry).read()
    if (divisors == 1).all():
        return None
    factor = float(str(divisors.max()))
    if np.isfinite(divisors).all() and factor > 1:
        for context in _LLAMA3_CONTEXTS:
            if np.allclose(_divisors(theta, head_dim, factor, context), divisors, rtol=5e-6, atol=0):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": _LLAMA3_LOW,
                    "high_freq_factor": _LLAMA3_HIGH,
                    "original_max_position_embeddings": context,
                }
    raise _unsupported(header, f"rotary frequencies divided by {FREQUENCY_FACTORS}, which are not Llama 3's")


def _divisors(theta: float, head_dim: int, factor: float, context: int) -> np.ndarray:
    """What a converter writes for Llama 3.1: 1 for short waves, ``factor`` for long ones, a blend between."""
    frequencies = 1 / theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = context * frequencies / (2 * math.pi)
    smooth = np.clip((turns - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0, 1)
    divisors: np.ndarray = 1 / ((1 - smooth) / factor + smooth)
    return divisors


def _unsupported(header: Header, what: str) -> OnnxGptError:
    return unsupported(
        "gguf-rope-unsupported",
        f"{header.path.name}: {what} is not implemented",
        "use a model with default, linear, YaRN or Llama 3 rotary scaling",
    )

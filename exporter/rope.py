"""Inverse frequencies of rotary positions, by the kinds of scaling that configurations name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from exporter.config import HeadsConfig, LayerType, invalid
from exporter.decoder import Rope
from exporter.errors import unsupported

DEFAULT_THETA = 10_000.0
"""Base of the frequencies where a configuration names none (Su et al. 2021)."""


def rope_of(
    config: HeadsConfig,
    *,
    theta: float = DEFAULT_THETA,
    partial: float | None = None,
    default: Mapping[str, Any] | None = None,
) -> Rope:
    """Rotary positions as a configuration states them.

    Args:
        theta: base of the frequencies where the configuration names none.
        partial: share of a head's channels that rotate, unless ``rope_parameters`` says otherwise. None for
            families that always rotate all of them: there a ``partial_rotary_factor`` other than 1 is
            refused.
        default: as `stated_parameters` takes it.
    """
    parameters = stated_parameters(config, theta, default)
    base = parameters.pop("rope_theta")
    return rope(parameters, base, config.head_size, config.max_position_embeddings, partial=partial)


def stated_parameters(
    config: HeadsConfig, theta: float = DEFAULT_THETA, default: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a configuration says of rotary positions, with the ``rope_theta``.

    transformers 5 keeps everything in ``rope_parameters``; transformers 4 has ``rope_theta`` and
    ``rope_scaling``.

    Args:
        theta: base of the frequencies where the configuration names none.
        default: what holds where it says nothing, of families for which transformers has more than a base.

    Raises:
        OnnxGptError: ``config-invalid`` where it says a base alone, and the default another one.
    """
    parameters = dict(config.rope_scaling or config.rope_parameters or {})
    if not parameters and default is not None:
        if config.rope_theta not in (None, default["rope_theta"]):
            raise invalid(
                "rotary positions are misconfigured",
                f"rope_theta {config.rope_theta} without rope_parameters",
            )
        return dict(default)
    if parameters.get("rope_theta") is None:
        parameters["rope_theta"] = theta if config.rope_theta is None else config.rope_theta
    return parameters


def ropes_by_type(config: HeadsConfig, thetas: Mapping[LayerType, float | None]) -> dict[LayerType, Rope]:
    """Rotary positions of a family in which layers that see a window have others than those that see everything.

    transformers 5 keeps ``rope_parameters`` for each type of layer; transformers 4's ``rope_scaling`` is of those that
    see everything.

    Args:
        thetas: bases of the frequencies where ``rope_parameters`` name none.
    """
    nested = config.rope_parameters or {}
    wrong = [key for key, of in nested.items() if key not in thetas or not isinstance(of, dict | None)]
    if wrong:
        raise invalid("rope_parameters are by layer type", *(f"rope_parameters.{key}" for key in wrong))
    scaling = {"full_attention": config.rope_scaling or {}}
    ropes = {}
    for kind, theta in thetas.items():
        parameters = {"rope_theta": theta} | scaling.get(kind, {}) | (nested.get(kind) or {})
        base = parameters.pop("rope_theta")
        ropes[kind] = rope(parameters, base, config.head_size, config.max_position_embeddings)
    return ropes


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
    base = _frequencies(positive("rope_theta", theta), rotated)
    frequencies, factor = scaling(base, theta, rest, context_length)
    if rest:
        raise unsupported(
            "rope-unknown",
            f"{kind} rotary scaling has parameters that are not implemented: {', '.join(sorted(rest))}",
            "remove them if they have no effect, or use another model",
        )
    return Rope(tuple(float(f) for f in frequencies), factor)


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


Scaled: TypeAlias = tuple[np.ndarray, float]
"""Frequencies, and what multiplies cos and sin."""


def _default(base: np.ndarray, theta: float, rest: dict[str, Any], context_length: int) -> Scaled:
    return base, 1.0


def _linear(base: np.ndarray, theta: float, rest: dict[str, Any], context_length: int) -> Scaled:
    """Position interpolation (Chen et al. 2023): positions divided are frequencies divided."""
    return base / np.float32(_number(rest, "factor")), 1.0


def _dynamic(base: np.ndarray, theta: float, rest: dict[str, Any], context_length: int) -> Scaled:
    """Dynamic NTK scaling (emozilla 2023): other frequencies in texts beyond the context, which no graph runs."""
    _number(rest, "factor")
    return base, 1.0


def _llama3(base: np.ndarray, theta: float, rest: dict[str, Any], context_length: int) -> Scaled:
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
    return ((1 - smooth) * base / factor + smooth * base).astype(np.float32), 1.0


def _yarn(base: np.ndarray, theta: float, rest: dict[str, Any], context_length: int) -> Scaled:
    """YaRN (Peng et al. 2024): pairs that turn often within the context of the training stay as they are, those that
    turn little have their positions interpolated, and between the two it is a ramp; scores grow with the context.

    The factor is the one that is stated, as in transformers 5 and llama.cpp, even where it is not the ratio of the
    contexts, which some versions of transformers 4 took.
    """
    factor = _number(rest, "factor")
    context = _number(rest, "original_max_position_embeddings", context_length)
    turns = [_optional(rest, "beta_fast") or 32.0, _optional(rest, "beta_slow") or 1.0]
    if rest.pop("truncate", True) is not True:
        raise unsupported(
            "rope-unknown",
            "yarn rotary scaling has truncate turned off, which is not implemented",
            "use another model",
        )
    if theta <= 1:
        raise invalid(
            "rotary positions are misconfigured", f"rope_theta is {theta!r}, and yarn divides by its log"
        )
    pairs, times = len(base), [context / (2 * math.pi * often) for often in turns]
    if not all(0 < share < math.inf for share in times):
        raise invalid("rotary positions are misconfigured", f"beta_fast and beta_slow are {turns}")
    fast, slow = (pairs * math.log(share) / math.log(theta) for share in times)
    first, last = max(math.floor(fast), 0), float(min(math.ceil(slow), 2 * pairs - 1))
    if first == last:
        last += 0.001
    ramp = np.clip((np.arange(pairs, dtype=np.float32) - first) / np.float32(last - first), 0, 1)
    blended = (base / np.float32(factor) * ramp + base * (1 - ramp)).astype(np.float32)
    return blended, _attention_factor(factor, rest)


def _attention_factor(factor: float, rest: dict[str, Any]) -> float:
    """What YaRN multiplies cos and sin by: as stated, or by the two ``mscale`` together, or 0.1·ln(factor) + 1."""
    stated, once, always = (_optional(rest, key) for key in ("attention_factor", "mscale", "mscale_all_dim"))

    def size(times: float) -> float:
        return 0.1 * times * math.log(factor) + 1 if factor > 1 else 1.0

    if stated is not None:
        return stated
    return size(1.0) if once is None or always is None else size(once) / size(always)


def _number(rest: dict[str, Any], key: str, default: float | None = None) -> float:
    return positive(key, rest.pop(key, default))


def _optional(rest: dict[str, Any], key: str) -> float | None:
    value = rest.pop(key, None)
    return None if value is None else positive(key, value)


def positive(key: str, value: Any) -> float:
    """A number of a rotary configuration.

    Raises:
        OnnxGptError: ``config-invalid`` where it is none, or not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise invalid("rotary positions are misconfigured", f"{key} is {value!r}, not a positive number")
    return float(value)


_SCALINGS: Mapping[str, Callable[[np.ndarray, float, dict[str, Any], int], Scaled]] = {
    "default": _default,
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}

"""Channels made larger in one map and smaller in the next: the same function, whatever the scales s > 0.

    norm(x)·γ, then W      γ ⇒ γ/s, β ⇒ β/s,  W ⇒ W·diag(s)        q, k, v after attention_norm; gate, up after ffn_norm
    values, then o         v ⇒ v/s,  o ⇒ o·diag(s)                 attention mixes tokens, never channels
    up, then down          up ⇒ up/s,  down ⇒ down·diag(s)         act(gate)·up and relu(up) let a scale through,
                                                                   relu(up)² its square, which is left alone

What is rounded in between then has channels of like size, or weights that matter more are rounded more finely. Which
scales serve is what SmoothQuant (Xiao et al. 2022, arXiv 2211.10438) and AWQ (Lin et al. 2023, arXiv 2306.00978)
answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from calibration.transforms.expressions import TimesDiagonal, TimesRows
from exporter.decoder import Decoder, Layer, Norm
from exporter.weights import Array, Weight

Scales = Mapping[str, np.ndarray]
"""Scales of channels, float32, by the role of what gives them: ``layers.3.attention_norm`` and ``layers.3.ffn_norm``
``[E]``, ``layers.3.attention.v`` ``[K·D]``, ``layers.3.ffn.up`` ``[F]``."""


def scalable(layer: Layer) -> tuple[str, ...]:
    """The ends of roles of `Scales` that a layer can take."""
    able = {  # what reads a shared norm is searched for apart, and would have to agree
        "attention_norm": _has_gain(layer.attention_norm) and not layer.shares_norm,
        "attention.v": True,
        "ffn_norm": _has_gain(layer.ffn_norm),
        "ffn.up": layer.ffn.gate is not None or layer.ffn.activation == "relu",
    }
    return tuple(end for end, can in able.items() if can)


def _has_gain(norm: Norm | None) -> bool:
    return norm is not None and norm.weight is not None


def scaled(
    decoder: Decoder, weights: Mapping[str, Weight], scales: Scales
) -> tuple[Decoder, dict[str, Weight]]:
    """The same decoder, and its weights by role with channels scaled; nothing is read.

    Raises:
        KeyError: for a role that cannot be scaled; see `scalable`.
    """
    changed = dict(weights)
    known = dict(_groups(decoder))
    for giver, scale in scales.items():
        givers, readers, repeats = known[giver]
        down, up = Array(np.float32(1) / scale), Array(_repeated(scale, repeats))
        for role in givers:
            if role in changed:
                changed[role] = TimesRows(changed[role], down)
        for role in readers:
            changed[role] = TimesDiagonal(changed[role], up)
    return decoder, changed


def _groups(
    decoder: Decoder,
) -> Iterator[tuple[str, tuple[tuple[str, ...], tuple[str, ...], tuple[int, int]]]]:
    """By the role of a giver: tensors that are made smaller, those that read it, and how its channels are repeated."""
    for i, layer in enumerate(decoder.layers):
        at, heads = f"layers.{i}", layer.attention
        inner = ("gate", "up") if layer.ffn.gate is not None else ("up",)
        once = (1, 1)
        found = {
            "attention_norm": (("attention_norm",), ("attention.q", "attention.k", "attention.v"), once),
            "ffn_norm": (("ffn_norm",), tuple(f"ffn.{name}" for name in inner), once),
            "attention.v": (
                ("attention.v",),
                ("attention.o",),
                (heads.head_dim, heads.heads // heads.kv_heads),
            ),
            "ffn.up": (("ffn.up",), ("ffn.down",), once),
        }
        for name in scalable(layer):
            givers, readers, repeats = found[name]
            yield (
                f"{at}.{name}",
                (
                    tuple(f"{at}.{giver}.{part}" for giver in givers for part in ("weight", "bias")),
                    tuple(f"{at}.{reader}.weight" for reader in readers),
                    repeats,
                ),
            )


def _repeated(scale: np.ndarray, repeats: tuple[int, int]) -> np.ndarray:
    """Scales of key/value heads as those of the query heads that share them."""
    width, times = repeats
    return np.repeat(scale.reshape(-1, width), times, axis=0).reshape(-1) if times > 1 else scale


def givers(decoder: Decoder) -> tuple[str, ...]:
    """Roles whose channels can be scaled, in order."""
    return tuple(giver for giver, _ in _groups(decoder))


def roles_of(decoder: Decoder, giver: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tensors that a giver's scales make smaller (not every model has all of them), and those that read it."""
    sources, readers, _ = dict(_groups(decoder))[giver]
    return sources, readers


def of_giver(decoder: Decoder, giver: str, scale: np.ndarray) -> np.ndarray:
    """Scales of a reader's inputs as those of what gives them: a key/value head that several query heads share gets the
    geometric mean of theirs."""
    width, times = dict(_groups(decoder))[giver][2]
    if times == 1:
        return scale
    mean: np.ndarray = np.exp(np.log(scale.reshape(-1, times, width)).mean(axis=1)).reshape(-1)
    return mean.astype(scale.dtype)


def of_readers(decoder: Decoder, giver: str, scale: np.ndarray) -> np.ndarray:
    """The other way round: scales of a giver for every input of what reads it."""
    return _repeated(scale, dict(_groups(decoder))[giver][2])

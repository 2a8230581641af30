"""Norms folded, residual stream and value heads rotated: the same function, without channels that stand out.

With R orthogonal, ``norm(x·R) = norm(x)·R`` for an RMSNorm without gain, and for a LayerNorm without gain and bias
where R keeps the vector of ones. So what writes to the residual stream is turned by R, and what reads it is turned
back, after its norm's gain γ and bias β have gone into it:

    embedding, positions:  E ⇒ E·R            q, k, v, gate, up:  W ⇒ W·diag(γ)·R,  b ⇒ b + W·β
    o, down:  W ⇒ Rᵀ·W,  b ⇒ Rᵀ·b             head, untied: as the readers

A tied head reads the table that was turned, so a map of its own comes before it:
``logits = (norm(x)·M + β·R) · (E·R)ᵀ`` with ``M = Rᵀ·diag(γ)·R``. Values of each head are turned by H, and o turns them
back: ``v ⇒ Hᵀ·v,  o ⇒ o·H``. Sources: Ashkboos et al. 2024 (SliceGPT, QuaRot), Liu et al. 2024 (SpinQuant).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from calibration.transforms.expressions import Diagonal, MatrixTimes, TimesDiagonal, TimesMatrix, TimesVector
from calibration.transforms.orthogonal import keeping_ones, spreading
from exporter.decoder import Decoder, FeedForward, Layer, Linear, Norm, Part, Sinusoids
from exporter.weights import Array, Weight, Zeros

Weights = Mapping[str, Weight]
NormOrNone = TypeVar("NormOrNone", Norm, Norm | None)


def rotated(decoder: Decoder, weights: Weights, seed: int = 0) -> tuple[Decoder, dict[str, Weight]]:
    """A decoder of the same function, and its weights by role; nothing is read.

    Where norms stand behind blocks (Gemma 3) or the embedding (BLOOM), or sines are added (XGLM), the residual stream
    is written by them and cannot be turned: gains are folded and values rotated all the same.

    Args:
        weights: by role, as `exporter.match.match_weights` gives them.
    """
    return _Rotation(decoder, weights, seed).apply()


class _Rotation:
    """One decoder being rewritten; ``weights`` is the state."""

    def __init__(self, decoder: Decoder, weights: Weights, seed: int) -> None:
        self.decoder = decoder
        self.weights = dict(weights)
        self.seed = seed
        behind = any(layer.attention_post_norm or layer.ffn_post_norm for layer in decoder.layers)
        behind |= decoder.embedding_norm is not None or isinstance(decoder.positions, Sinusoids)
        make = keeping_ones if _kinds(decoder) == {"layer"} else spreading
        turns = not behind and len(_kinds(decoder)) == 1
        self.matrix = make(decoder.hidden_size, seed) if turns else None

    def apply(self) -> tuple[Decoder, dict[str, Weight]]:
        decoder = self.decoder
        layers = tuple(self.layer(f"layers.{i}", layer) for i, layer in enumerate(decoder.layers))
        head, before = self.head()
        self.turn_columns("embedding.weight")
        if decoder.positions is not None:
            self.turn_columns("positions.weight")
        taken_over = before is not None or not decoder.tied
        norm = self.plain("norm", decoder.norm) if taken_over else decoder.norm
        changed = dataclasses.replace(decoder, layers=layers, norm=norm, head=head, head_input=before)
        return changed, self.weights

    def layer(self, role: str, layer: Layer) -> Layer:
        attention, ffn = layer.attention, layer.ffn
        at = f"{role}.attention"
        q, k, v = (
            self.reader(f"{at}.{name}", linear, f"{role}.attention_norm")
            for name, linear in (("q", attention.q), ("k", attention.k), ("v", attention.v))
        )
        self.rotate_values(at, attention.head_dim)
        self.writer(f"{at}.o", attention.o)
        read = "attention_norm" if layer.shares_norm else "ffn_norm"
        fed = self.feed_forward(f"{role}.ffn", ffn, f"{role}.{read}")
        return dataclasses.replace(
            layer,
            attention=dataclasses.replace(attention, q=q, k=k, v=v),
            ffn=fed,
            attention_norm=self.plain(f"{role}.attention_norm", layer.attention_norm),
            ffn_norm=self.plain(f"{role}.ffn_norm", layer.ffn_norm),
        )

    def feed_forward(self, role: str, ffn: FeedForward, norm: str) -> FeedForward:
        up = self.reader(f"{role}.up", ffn.up, norm)
        gate = None if ffn.gate is None else self.reader(f"{role}.gate", ffn.gate, norm)
        self.writer(f"{role}.down", ffn.down)
        return dataclasses.replace(ffn, up=up, gate=gate)

    def head(self) -> tuple[Linear, Linear | None]:
        """The head, and what comes before it where it is tied."""
        decoder, size = self.decoder, self.decoder.hidden_size
        if not decoder.tied:
            return self.reader("head", decoder.head, "norm"), None
        if self.matrix is None:
            return decoder.head, None
        ones, shift = Array(np.ones(size, np.float32)), self.weights.get("norm.bias")
        self.weights["head_input.weight"] = Diagonal(self.weights.get("norm.weight", ones))
        self.turn_columns("head_input.weight")
        self.turn_rows("head_input.weight")
        before = Linear(Part("head_input.weight", (size, size)))
        if shift is not None:
            self.weights["head_input.bias"] = shift
            self.turn_rows("head_input.bias")
            before = dataclasses.replace(before, bias=Part("head_input.bias", (size,)))
        return decoder.head, before

    def reader(self, role: str, linear: Linear, norm: str) -> Linear:
        """Take over a norm's gain and bias, where there is one, and turn the columns. The norm itself is still as it
        was."""
        weight, shift = self.weights[f"{role}.weight"], self.weights.get(f"{norm}.bias")
        if shift is not None:
            self.weights[f"{role}.bias"] = TimesVector(weight, shift, self.weights.get(f"{role}.bias"))
            linear = dataclasses.replace(linear, bias=linear.bias or Part(f"{role}.bias", weight.shape[:1]))
        if f"{norm}.weight" in self.weights:
            self.weights[f"{role}.weight"] = TimesDiagonal(weight, self.weights[f"{norm}.weight"])
        self.turn_columns(f"{role}.weight")
        return linear

    def writer(self, role: str, linear: Linear) -> None:
        self.turn_rows(f"{role}.weight")
        if linear.bias is not None:
            self.turn_rows(f"{role}.bias")

    def rotate_values(self, role: str, head_dim: int) -> None:
        turn = spreading(head_dim, self.seed)
        for name in (f"{role}.v.weight", f"{role}.v.bias"):
            if name in self.weights:
                self.weights[name] = MatrixTimes(self.weights[name], turn)
        self.weights[f"{role}.o.weight"] = TimesMatrix(self.weights[f"{role}.o.weight"], turn)

    def plain(self, role: str, norm: NormOrNone) -> NormOrNone:
        """The norm without gain and bias; they are in its readers by now."""
        if norm is None or norm.weight is None:
            return norm
        (size,) = norm.weight.shape
        self.weights[f"{role}.weight"] = Array(np.ones(size, np.float32))
        if norm.bias is not None:
            self.weights[f"{role}.bias"] = Zeros((size,))
        return norm

    def turn_columns(self, name: str) -> None:
        if self.matrix is not None:
            self.weights[name] = TimesMatrix(self.weights[name], self.matrix)

    def turn_rows(self, name: str) -> None:
        if self.matrix is not None:
            self.weights[name] = MatrixTimes(self.weights[name], self.matrix)


def _kinds(decoder: Decoder) -> set[str]:
    """Kinds of the norms that read the residual stream."""
    norms = [norm for layer in decoder.layers for norm in (layer.attention_norm, layer.ffn_norm)]
    return {norm.kind for norm in [*norms, decoder.norm] if norm is not None}

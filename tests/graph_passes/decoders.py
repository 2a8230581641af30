"""Small decoders of every shape that the passes know, and what they must compute, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from exporter.build import build
from exporter.decoder import Alibi, Attention, Decoder, FeedForward, Layer, Linear, Norm, Part, Rope
from exporter.weights import Array, Weight

VOCAB, HIDDEN, FFN = 61, 64, 96

PLAIN = {"kv_heads": 4, "norm": "layer", "bias": True, "gated": False}
GEMMA = {"qk_norm": True, "post_norm": True, "activation": "gelu_tanh", "tied": True, "embedding_scale": 8.0}

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mha": {"kv_heads": 4},
    "mqa_tied": {"kv_heads": 1, "tied": True},
    "window": {"window": 3},
    "window_of_one": {"window": 1},
    "softcap": {"softcap": 2.0, "scale": 0.5},
    "partial_rotary": {"head_dim": 32, "rotated": 16},
    "rotary_outside": {"head_dim": 24, "qk_norm": True},
    "partial_rotary_outside": {"rotated": 8},
    "gpt2": {**PLAIN, "rotated": 0, "activation": "gelu_tanh"},
    "neox": {**PLAIN, "rotated": 16, "head_dim": 64, "activation": "gelu", "parallel": True},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "hunyuan": {"qk_norm": True, "rotates_first": True},
    "gemma3": {**GEMMA, "windows": (3, None)},
    "relu": {"activation": "relu", "bias": True},
    "relu2": {**PLAIN, "bias": False, "activation": "relu2", "gains": False},
    "alibi": {**PLAIN, "rotated": 0, "alibi": Alibi((0.5, 0.25, 0.125, 0.0625)), "embedding_norm": True},
    "alibi_window": {
        "rotated": 0,
        "alibi": Alibi((2.0, 1.0, 0.5, 0.3), 0.5, counts_padding=True),
        "window": 3,
    },
}


def decoder(
    *,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    rotated: int | None = None,
    norm: str = "rms",
    gains: bool = True,
    bias: bool = False,
    qkv_bias: bool = False,
    qk_norm: bool = False,
    rotates_first: bool = False,
    post_norm: bool = False,
    gated: bool = True,
    parallel: bool = False,
    activation: str = "silu",
    tied: bool = False,
    window: int | None = None,
    windows: tuple[int | None, ...] = (),
    softcap: float = 0.0,
    scale: float | None = None,
    embedding_scale: float = 1.0,
    context: int = 32,
    alibi: Alibi | None = None,
    embedding_norm: bool = False,
) -> Decoder:
    rotated = head_dim if rotated is None else rotated
    rope = Rope(tuple(10.0 ** (-np.arange(0, rotated, 2) / rotated))) if rotated else None

    def linear(name: str, out: int, into: int, biased: bool = bias) -> Linear:
        return Linear(Part(f"{name}.w", (out, into)), Part(f"{name}.b", (out,)) if biased else None)

    def norm_of(name: str, size: int = HIDDEN, kind: str = norm) -> Norm:
        shift = Part(f"{name}.b", (size,)) if kind == "layer" and gains else None
        return Norm(kind, Part(f"{name}.g", (size,)) if gains else None, 1e-5, shift)  # type: ignore[arg-type]

    def layer(i: int) -> Layer:
        at = f"l{i}"
        return Layer(
            attention=Attention(
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                q=linear(f"{at}.q", heads * head_dim, HIDDEN, bias or qkv_bias),
                k=linear(f"{at}.k", kv_heads * head_dim, HIDDEN, bias or qkv_bias),
                v=linear(f"{at}.v", kv_heads * head_dim, HIDDEN, bias or qkv_bias),
                o=linear(f"{at}.o", HIDDEN, heads * head_dim),
                scale=scale or head_dim**-0.5,
                rope=rope,
                window=windows[i % len(windows)] if windows else window,
                softcap=softcap,
                q_norm=norm_of(f"{at}.qn", head_dim) if qk_norm else None,
                k_norm=norm_of(f"{at}.kn", head_dim) if qk_norm else None,
                rotates_first=rotates_first,
                alibi=alibi,
            ),
            ffn=FeedForward(
                up=linear(f"{at}.up", FFN, HIDDEN),
                down=linear(f"{at}.down", HIDDEN, FFN),
                activation=activation,  # type: ignore[arg-type]
                gate=linear(f"{at}.gate", FFN, HIDDEN) if gated else None,
            ),
            attention_norm=norm_of(f"{at}.n1"),
            ffn_norm=norm_of(f"{at}.n2"),
            attention_post_norm=norm_of(f"{at}.p1") if post_norm else None,
            ffn_post_norm=norm_of(f"{at}.p2") if post_norm else None,
            parallel=parallel,
        )

    embedding = Part("e", (VOCAB, HIDDEN))
    return Decoder(
        family="test",
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        context_length=context,
        embedding=embedding,
        layers=tuple(layer(i) for i in range(layers)),
        norm=norm_of("n"),
        head=Linear(embedding if tied else Part("head.w", (VOCAB, HIDDEN))),
        embedding_scale=embedding_scale,
        embedding_norm=norm_of("en") if embedding_norm else None,
        positions=None if rotated or alibi else Part("p", (context, HIDDEN)),
    )


def random_weights(described: Decoder, seed: int = 0) -> dict[str, Weight]:
    """Weights by role, of a size at which every part matters to the logits."""
    rng = np.random.default_rng(seed)

    def draw(part: Part) -> Weight:
        spread = 2.0 / math.sqrt(part.shape[-1]) if len(part.shape) == 2 else 0.3
        centre = 1.0 if part.name.endswith(".g") or part.name == "n.g" else 0.0
        return Array((centre + spread * rng.standard_normal(part.shape)).astype(np.float32))

    return {role: draw(part) for role, part in described.parts()}


def canonical(described: Decoder, weights: Mapping[str, Weight] | None = None) -> ir.Model:
    return build(described, random_weights(described) if weights is None else weights)


def session(model: ir.Model) -> ort.InferenceSession:
    """Without ORT's own fusions, which would fuse both sides of a comparison."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def empty_cache(described: Decoder, batch: int) -> dict[str, np.ndarray]:
    shapes = [(batch, at.attention.kv_heads, 0, at.attention.head_dim) for at in described.layers]
    return {
        f"past_key_values.{i}.{which}": np.zeros(shape, np.float32)
        for i, shape in enumerate(shapes)
        for which in ("key", "value")
    }


def run_chunks(
    run: ort.InferenceSession, described: Decoder, chunks: list[tuple[np.ndarray, np.ndarray]]
) -> list[np.ndarray]:
    """Logits of each chunk ``(ids [B, S], mask [B, S])``, fed one after the other with a growing cache."""
    cache = empty_cache(described, len(chunks[0][0]))
    mask = np.zeros((len(chunks[0][0]), 0), np.int64)
    logits = []
    for ids, valid in chunks:
        mask = np.concatenate([mask, valid], axis=1)
        out = run.run(None, {"input_ids": ids, "attention_mask": mask, **cache})
        named = dict(zip([o.name for o in run.get_outputs()], out, strict=True))
        cache = {name: named[name.replace("past_key_values", "present")] for name in cache}
        logits.append(named["logits"])
    return logits


LENGTHS = (7, 4, 6)
"""Tokens of each row's prompt; shorter rows are padded on the right."""

Chunk = tuple[np.ndarray, np.ndarray]


def ragged_batch(steps: int = 5, vocab: int = VOCAB) -> tuple[list[np.ndarray], list[Chunk]]:
    """Whole rows, and the chunks that feed them: a padded prompt, then single tokens."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, vocab, length + steps) for length in LENGTHS]
    prompt = np.zeros((len(rows), max(LENGTHS)), np.int64)
    for i, length in enumerate(LENGTHS):
        prompt[i, :length] = rows[i][:length]
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)
    rest = np.stack([row[length:] for row, length in zip(rows, LENGTHS, strict=True)])
    ones = np.ones((len(rows), 1), np.int64)
    return rows, [(prompt, mask), *((rest[:, i : i + 1], ones) for i in range(steps))]


def rows_of(logits: list[np.ndarray]) -> list[np.ndarray]:
    """Each row's logits at its real tokens."""
    prompt, *rest = logits
    steps = np.concatenate(rest, axis=1)
    return [np.concatenate([prompt[i, :n], steps[i]]) for i, n in enumerate(LENGTHS)]


def whole(row: np.ndarray) -> list[Chunk]:
    return [(row[None], np.ones_like(row[None]))]


def worst(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    return max(float(np.abs(f - w).max()) for f, w in zip(found, wanted, strict=True))


class Oracle:
    """The decoder in float64 on one row without padding, written from the description alone."""

    def __init__(self, described: Decoder, weights: Mapping[str, Weight]) -> None:
        self.decoder = described
        self.w = {role: weight.read().astype(np.float64) for role, weight in weights.items()}

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Logits ``[S, V]`` of tokens ``[S]``."""
        d = self.decoder
        x = self.w["embedding.weight"][ids] * d.embedding_scale
        if d.positions is not None:
            x = x + self.w["positions.weight"][: len(ids)]
        if d.embedding_norm is not None:
            x = self.norm("embedding_norm", d.embedding_norm, x)
        for i, layer in enumerate(d.layers):
            at = f"layers.{i}"
            h = self.norm(f"{at}.attention_norm", layer.attention_norm, x)
            attended = self.attention(f"{at}.attention", layer.attention, h)
            if layer.attention_post_norm is not None:
                attended = self.norm(f"{at}.attention_post_norm", layer.attention_post_norm, attended)
            y = x + attended
            h = self.norm(f"{at}.ffn_norm", layer.ffn_norm, x if layer.parallel else y)
            fed = self.feed_forward(f"{at}.ffn", layer.ffn, h)
            if layer.ffn_post_norm is not None:
                fed = self.norm(f"{at}.ffn_post_norm", layer.ffn_post_norm, fed)
            x = y + fed
        x = self.norm("norm", d.norm, x)
        return x @ self.w["embedding.weight" if d.tied else "head.weight"].T

    def norm(self, role: str, norm: Norm, x: np.ndarray) -> np.ndarray:
        if norm.kind == "layer":
            x = x - x.mean(-1, keepdims=True)
        y = x / np.sqrt((x * x).mean(-1, keepdims=True) + norm.epsilon)
        y = y * self.w[f"{role}.weight"] if norm.weight is not None else y
        return y + self.w[f"{role}.bias"] if norm.bias is not None else y

    def linear(self, role: str, linear: Linear, x: np.ndarray) -> np.ndarray:
        y = x @ self.w[f"{role}.weight"].T
        return y + self.w[f"{role}.bias"] if linear.bias is not None else y

    def attention(self, role: str, a: Attention, x: np.ndarray) -> np.ndarray:
        length = len(x)
        q = self.linear(f"{role}.q", a.q, x).reshape(length, a.heads, a.head_dim)
        k = self.linear(f"{role}.k", a.k, x).reshape(length, a.kv_heads, a.head_dim)
        v = self.linear(f"{role}.v", a.v, x).reshape(length, a.kv_heads, a.head_dim)
        if a.rope is not None and a.rotates_first:
            q, k = self.rotate(a.rope, q), self.rotate(a.rope, k)
        if a.q_norm is not None and a.k_norm is not None:
            q, k = self.norm(f"{role}.q_norm", a.q_norm, q), self.norm(f"{role}.k_norm", a.k_norm, k)
        if a.rope is not None and not a.rotates_first:
            q, k = self.rotate(a.rope, q), self.rotate(a.rope, k)
        k, v = (np.repeat(t, a.heads // a.kv_heads, axis=1) for t in (k, v))
        scores = np.einsum("shd,thd->hst", q, k) * a.scale
        if a.softcap:
            scores = a.softcap * np.tanh(scores / a.softcap)
        distance = np.arange(length)[:, None] - np.arange(length)
        if a.alibi is not None:
            scores = scores - a.alibi.factor * np.array(a.alibi.slopes)[:, None, None] * distance
        seen = (distance >= 0) & (distance < (a.window or length))
        scores = np.where(seen, scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        heads = np.einsum("hst,thd->shd", p / p.sum(-1, keepdims=True), v)
        return self.linear(f"{role}.o", a.o, heads.reshape(length, -1))

    @staticmethod
    def rotate(rope: Rope, x: np.ndarray) -> np.ndarray:
        angle = (np.arange(len(x))[:, None] * np.array(rope.frequencies))[:, None]
        half = rope.rotated // 2
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)

    def feed_forward(self, role: str, ffn: FeedForward, x: np.ndarray) -> np.ndarray:
        up = self.linear(f"{role}.up", ffn.up, x)
        if ffn.gate is None:
            return self.linear(f"{role}.down", ffn.down, _ACTIVATIONS[ffn.activation](up))
        gate = self.linear(f"{role}.gate", ffn.gate, x)
        return self.linear(f"{role}.down", ffn.down, _ACTIVATIONS[ffn.activation](gate) * up)


_ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}

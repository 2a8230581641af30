"""Scaled dot-product attention. Vaswani et al. (arXiv 1706.03762); grouped queries: Ainslie et al.
(arXiv 2305.13245).

First products and softmax become Attention over heads, [B, H, S, D]; then what it can do itself moves into it:
masks of truths, shared heads, the cache; at last heads lie side by side, [B, S, H·D], as in the canonical graph.
"""

from __future__ import annotations

import math
from typing import Any

from graph_passes.engine.rule import Equation, rule
from graph_passes.engine.terms import Op, Term

SWAP = [0, 2, 1, 3]
"""[B, S, H, D] ⇄ [B, H, S, D]"""

INVISIBLE = -1e4
"""What is added to a score, or stands for it, where a key is not to be seen: this or less."""


@rule
def attention(op: Op, q: "B H S D", k: "B H D T", v: "B H T E", m: "*M S T", c: "constant") -> Equation:
    """softmax(c·q·k + m) · v  ⇒  Attention(q, kᵀ, v, m; scale = c)"""
    yield _softmax(op, _scaled(op, q, k, c) + m) @ v
    return op.Attention(q, op.Transpose(k, perm=[0, 1, 3, 2]), v, m, scale=c)


@rule
def attention_scaled_twice(
    op: Op, q: "B H S D", k: "B H D T", v: "B H T E", m: "*M S T", c: "constant", d: "constant"
) -> Equation:
    """softmax((c·q)·(d·k) + m) · v  ⇒  Attention(q, kᵀ, v, m; scale = c·d)"""
    yield _softmax(op, (q * c) @ (k * d) + m) @ v
    return op.Attention(q, op.Transpose(k, perm=[0, 1, 3, 2]), v, m, scale=c * d)


@rule
def attention_unscaled(op: Op, q: "B H S D", k: "B H D T", v: "B H T E", m: "*M S T") -> Equation:
    """softmax(q·k + m) · v  ⇒  Attention(q, kᵀ, v, m; scale = 1)"""
    yield _softmax(op, q @ k + m) @ v
    return op.Attention(q, op.Transpose(k, perm=[0, 1, 3, 2]), v, m, scale=1.0)


@rule(example={"low": -1e9})
def attention_choosing(
    op: Op, q: "B H S D", k: "B H D T", v: "B H T E", m: "bool *M S T", c: "constant", low: "constant"
) -> Equation:
    """softmax(c·q·k where m, −∞ elsewhere) · v  ⇒  Attention(q, kᵀ, v, m; scale = c)"""
    yield _softmax(op, op.Where(m, _scaled(op, q, k, c), low)) @ v
    op.require(low <= INVISIBLE, f"{low} leaves some weight to what is not to be seen")
    return op.Attention(q, op.Transpose(k, perm=[0, 1, 3, 2]), v, m, scale=c)


@rule(example={"cap": 2.0, "inverse": 0.5})
def attention_capped(
    op: Op,
    q: "B H S D",
    k: "B H D T",
    v: "B H T E",
    m: "*M S T",
    c: "constant",
    inverse: "constant",
    cap: "constant",
) -> Equation:
    """softmax(cap·tanh(c·q·k / cap) + m) · v  ⇒  Attention(q, kᵀ, v, m; scale = c, softcap = cap)"""
    yield _softmax(op, op.Tanh(_scaled(op, q, k, c) * inverse) * cap + m) @ v
    op.require(abs(cap * inverse - 1) < 1e-6, f"scores are scaled by {inverse} and back by {cap}")
    return op.Attention(q, op.Transpose(k, perm=[0, 1, 3, 2]), v, m, scale=c, softcap=cap)


@rule(kind="exact", example={"low": -math.inf, "*M": (3, 7), "*X": (2, 3, 7)})
def choosing_otherwise(op: Op, m: "bool *M", x: "*X", low: "constant") -> Equation:
    """−∞ where not to be seen, x elsewhere  ⇒  x where to be seen, −∞ elsewhere"""
    yield op.Where(m, low, x)
    op.require(low <= INVISIBLE, f"{low} is no mask")
    return op.Where(op.Not(m), x, low)


@rule(kind="exact")
def not_not(op: Op, m: "bool *M") -> Equation:
    """¬¬m  ⇒  m"""
    yield op.Not(op.shared(op.Not(m)))
    return m


@rule(example={"low": -math.inf})
def truths_for_numbers(
    op: Op,
    q: "B H S D",
    k: "B K T D",
    v: "B K T E",
    m: "bool *M S T",
    low: "constant",
    c: "attribute",
    cap: "attribute",
) -> Equation:
    """Attention(q, k, v, 0 where m, −∞ elsewhere)  ⇒  Attention(q, k, v, m)"""
    yield op.Attention(q, k, v, op.shared(op.Where(m, 0.0, low)), scale=c, softcap=cap)
    op.require(low <= INVISIBLE, f"{low} leaves some weight to what is not to be seen")
    return op.Attention(q, k, v, m, scale=c, softcap=cap)


@rule(kind="exact")
def repeated_heads(
    op: Op,
    q: "B H S D",
    k: "B K T D",
    v: "B K T E",
    m: "maybe any *M S T",
    c: "attribute",
    cap: "attribute",
    causal: "attribute",
) -> Equation:
    """Attention(q, each head of k and v G times)  ⇒  Attention(q, k, v), which shares heads itself"""
    keys = op.Reshape(op.Expand(op.Reshape(k, "B K 1 T D"), "B K G T D"), "B H T D")
    values = op.Reshape(op.Expand(op.Reshape(v, "B K 1 T E"), "B K G T E"), "B H T E")
    given = {"scale": c, "softcap": cap, "is_causal": causal}
    yield op.Attention(q, keys, values, m, **given)
    return op.Attention(q, k, v, m, **given)


@rule(kind="exact")
def cached_attention(
    op: Op,
    q: "B H S D",
    k: "B K S D",
    v: "B K S E",
    m: "any *M S T",
    past_k: "B K P D",
    past_v: "B K P E",
    c: "attribute",
    cap: "attribute",
) -> Equation:
    """Attention(q, (past, k), (past, v))  ⇒  Attention(q, k, v; past), which gives out what it joined"""
    keys, values = op.Concat(past_k, k, axis=2), op.Concat(past_v, v, axis=2)
    yield op.Attention(q, keys, values, m, scale=c, softcap=cap), keys, values
    return op.Attention(q, k, v, m, past_k, past_v, scale=c, softcap=cap, outputs=3)


@rule(kind="exact")
def attention_on_tokens(
    op: Op,
    q: "B S H D",
    k: "B T K D",
    v: "B T K E",
    m: "maybe any *M S T",
    c: "attribute",
    cap: "attribute",
    causal: "attribute",
) -> Equation:
    """heads of Attention(qᵀ, kᵀ, vᵀ) side by side  ⇒  Attention of [B, S, H·D]"""
    given = {"scale": c, "softcap": cap, "is_causal": causal}
    yield _side_by_side(op, op.Attention(*_swapped(op, q, k, v), m, **given))
    return op.Attention(*_flat(op, q, k, v, "T"), m, **given, **_heads(op))


@rule(kind="exact")
def cached_attention_on_tokens(
    op: Op,
    q: "B S H D",
    k: "B S K D",
    v: "B S K E",
    m: "any *M S T",
    past_k: "B K P D",
    past_v: "B K P E",
    c: "attribute",
    cap: "attribute",
) -> Equation:
    """the same with a cache"""
    given = {"scale": c, "softcap": cap, "outputs": 3}
    y, keys, values = op.Attention(*_swapped(op, q, k, v), m, past_k, past_v, **given)
    yield _side_by_side(op, y), keys, values
    return op.Attention(*_flat(op, q, k, v, "S"), m, past_k, past_v, **given, **_heads(op))


HEADS = {"N": 32, "X": 16, "Y": 12, "heads": 4, "kv_heads": 2, "c": 0.5}


@rule(example=HEADS)
def scaled_queries(
    op: Op,
    q: "B S N",
    k: "B T X",
    v: "B T Y",
    m: "maybe any *M S T",
    factor: "constant",
    c: "attribute",
    cap: "attribute",
    causal: "attribute",
    heads: "attribute",
    kv_heads: "attribute",
) -> Equation:
    """Attention(f·q, k, v; scale = c)  ⇒  Attention(q, k, v; scale = f·c)"""
    given = {"softcap": cap, "is_causal": causal, "q_num_heads": heads, "kv_num_heads": kv_heads}
    yield op.Attention(q * factor, k, v, m, scale=c, **given)
    return op.Attention(q, k, v, m, scale=c * factor, **given)


@rule(example=HEADS)
def cached_scaled_queries(
    op: Op,
    q: "B S N",
    k: "B S X",
    v: "B S Y",
    m: "any *M S T",
    past_k: "B K P D",
    past_v: "B K P E",
    factor: "constant",
    c: "attribute",
    cap: "attribute",
    heads: "attribute",
    kv_heads: "attribute",
) -> Equation:
    """the same with a cache"""
    given = {"softcap": cap, "q_num_heads": heads, "kv_num_heads": kv_heads, "outputs": 3}
    y, keys, values = op.Attention(q * factor, k, v, m, past_k, past_v, scale=c, **given)
    yield y, keys, values
    return op.Attention(q, k, v, m, past_k, past_v, scale=c * factor, **given)


def _scaled(op: Op, q: Term, k: Term, c: Term) -> Term:
    return op.either((q @ k) * c, (q * c) @ k, q @ (k * c))


def _softmax(op: Op, scores: Term) -> Term:
    """Over keys. torch guards rows that see nothing, which mean nothing either way."""
    p = op.Softmax(scores, axis=-1)
    return op.either(p, op.Where(op.IsNaN(p), 0.0, p))


def _swapped(op: Op, *tokens: Term) -> list[Term]:
    return [op.Transpose(x, perm=SWAP) for x in tokens]


def _side_by_side(op: Op, heads: Term) -> Term:
    return op.Reshape(op.Transpose(heads, perm=SWAP), "B S H*E")


def _flat(op: Op, q: Term, k: Term, v: Term, length: str) -> list[Term]:
    return [op.Reshape(q, "B S H*D"), op.Reshape(k, f"B {length} K*D"), op.Reshape(v, f"B {length} K*E")]


def _heads(op: Op) -> dict[str, Any]:
    return {"q_num_heads": op.dim("H"), "kv_num_heads": op.dim("K")}

"""Rotary positions. Su et al., "RoFormer" (arXiv 2104.09864).

Tables arrive as the `control` pass leaves them: rows of a table, gathered by position, and put twice side by
side where the exporter rotates with full-width tables.
"""

from typing import Any

from graph_passes.engine.rule import Equation, rule
from graph_passes.engine.terms import Op, Term


@rule
def rotary(op: Op, x: "B H S D", c: "B S D/2", s: "B S D/2") -> Equation:
    """x·(c,c) + (−x₂, x₁)·(s,s)  ⇒  RotaryEmbedding(x, c, s), on [B, H, S, D]"""
    cos = op.shared(op.Reshape(op.Concat(c, c, axis=-1), "B 1 S D"))
    sin = op.shared(op.Reshape(op.Concat(s, s, axis=-1), "B 1 S D"))
    yield x * cos + _rotate_half(op, x) * sin
    return op.RotaryEmbedding(x, c, s)


@rule
def rotary_of_tokens(op: Op, x: "B S H D", c: "B S D/2", s: "B S D/2") -> Equation:
    """the same before heads and tokens change places, on [B, S, H, D]"""
    cos = op.shared(op.Reshape(op.Concat(c, c, axis=-1), "B S 1 D"))
    sin = op.shared(op.Reshape(op.Concat(s, s, axis=-1), "B S 1 D"))
    yield x * cos + _rotate_half(op, x) * sin
    return _on_tokens(op, x, c, s)


@rule
def rotary_of_halves(op: Op, x: "B H S D", c: "B S D/2", s: "B S D/2") -> Equation:
    """(x₁c − x₂s, x₂c + x₁s)  ⇒  RotaryEmbedding(x, c, s), on [B, H, S, D]"""
    first, second = op.shared(op.Slice(x, 0, "D/2")), op.shared(op.Slice(x, "D/2", None))
    cos, sin = op.shared(op.Reshape(c, "B 1 S D/2")), op.shared(op.Reshape(s, "B 1 S D/2"))
    yield op.Concat(first * cos - second * sin, second * cos + first * sin, axis=-1)
    return op.RotaryEmbedding(x, c, s)


@rule
def rotary_of_halves_of_tokens(op: Op, x: "B S H D", c: "B S D/2", s: "B S D/2") -> Equation:
    """the same before heads and tokens change places, on [B, S, H, D]"""
    first, second = op.shared(op.Slice(x, 0, "D/2")), op.shared(op.Slice(x, "D/2", None))
    cos, sin = op.shared(op.Reshape(c, "B S 1 D/2")), op.shared(op.Reshape(s, "B S 1 D/2"))
    yield op.Concat(first * cos - second * sin, second * cos + first * sin, axis=-1)
    return _on_tokens(op, x, c, s)


@rule
def rotary_interleaved(op: Op, x: "B H S D", c: "B S D/2", s: "B S D/2") -> Equation:
    """x·(c₁,c₁,c₂,c₂…) + (−x₂, x₁, −x₄, x₃…)·(s₁,s₁…)  ⇒  RotaryEmbedding(x, c, s; interleaved)"""
    cos, sin = op.shared(_pairs(op, c, c, "B 1 S D")), op.shared(_pairs(op, s, s, "B 1 S D"))
    even, odd = op.shared(op.Slice(x, 0, None, step=2)), op.shared(op.Slice(x, 1, None, step=2))
    pairs = [op.Reshape(part, "B H S D/2 1") for part in (-odd, even)]
    yield x * cos + op.Reshape(op.Concat(*pairs, axis=-1), "B H S D") * sin
    return op.RotaryEmbedding(x, c, s, interleaved=1)


@rule
def rotary_interleaved_of_tokens(op: Op, x: "B S H D", c: "B S D/2", s: "B S D/2") -> Equation:
    """the same before heads and tokens change places, on [B, S, H, D]"""
    cos, sin = op.shared(_pairs(op, c, c, "B S 1 D")), op.shared(_pairs(op, s, s, "B S 1 D"))
    even, odd = op.shared(op.Slice(x, 0, None, step=2)), op.shared(op.Slice(x, 1, None, step=2))
    pairs = [op.Reshape(part, "B S H D/2 1") for part in (-odd, even)]
    yield x * cos + op.Reshape(op.Concat(*pairs, axis=-1), "B S H D") * sin
    return _on_tokens(op, x, c, s, interleaved=1)


@rule
def rotary_of_pairs(op: Op, x: "B S H D", c: "B S D/2", s: "B S D/2") -> Equation:
    """(x₁ + ix₂)·(c + is) for every pair, on [B, S, H, D]  ⇒  RotaryEmbedding(x, c, s; interleaved)"""
    cos, sin = op.shared(op.Reshape(c, "B S 1 D/2")), op.shared(op.Reshape(s, "B S 1 D/2"))
    pairs = op.shared(op.Reshape(x, "B S H D/2 2"))
    first, second = (op.shared(op.Reshape(op.Slice(pairs, i, i + 1), "B S H D/2")) for i in (0, 1))
    turned = (first * cos - second * sin, first * sin + second * cos)
    yield op.Reshape(op.Concat(*(op.Reshape(y, "B S H D/2 1") for y in turned), axis=-1), "B S H D")
    return _on_tokens(op, x, c, s, interleaved=1)


def _rotate_half(op: Op, x: Term) -> Term:
    """(−x₂, x₁) of x = (x₁, x₂)"""
    return op.Concat(-op.Slice(x, "D/2", None), op.Slice(x, 0, "D/2"), axis=-1)


def _pairs(op: Op, a: Term, b: Term, dims: str) -> Term:
    """(a₁, b₁, a₂, b₂ …)"""
    columns = [op.Reshape(x, "B S D/2 1") for x in (a, b)]
    joined = op.Concat(*columns, axis=-1)
    return op.either(op.Reshape(joined, dims), op.Reshape(op.Reshape(joined, "B S D"), dims))


def _on_tokens(op: Op, x: Term, c: Term, s: Term, **given: Any) -> Term:
    """RotaryEmbedding of [B, S, H, D] by way of [B, S, H·D], as the operator wants it"""
    flat = op.RotaryEmbedding(op.Reshape(x, "B S H*D"), c, s, num_heads=op.dim("H"), **given)
    return op.Reshape(flat, "B S H D")


@rule(kind="exact", example={"*B": (2, 4, 3), "R": 4})
def rotary_of_a_table(
    op: Op,
    x: "*B D",
    cos: "P R",
    sin: "P R",
    p: "int B S",
    heads: "attribute",
    width: "attribute",
    kind: "attribute",
) -> Equation:
    """RotaryEmbedding(x, cos[p], sin[p])  ⇒  RotaryEmbedding(x, cos, sin, p)"""
    c, s = op.shared(op.Gather(cos, p, axis=0)), op.shared(op.Gather(sin, p, axis=0))
    given = {"num_heads": heads, "rotary_embedding_dim": width, "interleaved": kind}
    yield op.RotaryEmbedding(x, c, s, **given)
    return op.RotaryEmbedding(x, cos, sin, p, **given)


@rule(kind="exact")
def partial_rotary(
    op: Op, x: "B H S D", cos: "P R", sin: "P R", p: "int B S", heads: "attribute", kind: "attribute"
) -> Equation:
    """(RotaryEmbedding(x[:2R]), x[2R:])  ⇒  RotaryEmbedding(x; rotary_embedding_dim = 2R)"""
    part = op.RotaryEmbedding(op.Slice(x, 0, "2*R"), cos, sin, p, interleaved=kind, num_heads=heads)
    yield op.Concat(part, op.Slice(x, "2*R", None), axis=-1)
    width = 2 * op.dim("R")
    return op.RotaryEmbedding(x, cos, sin, p, interleaved=kind, num_heads=heads, rotary_embedding_dim=width)


@rule(kind="exact", example={"heads": 4})
def partial_rotary_of_tokens(
    op: Op, x: "B S H D", cos: "P R", sin: "P R", p: "int B S", heads: "attribute", kind: "attribute"
) -> Equation:
    """the same before heads and tokens change places, on [B, S, H, D]"""
    part = op.Reshape(op.Slice(x, 0, "2*R"), "B S H*2*R")
    turned = op.RotaryEmbedding(part, cos, sin, p, interleaved=kind, num_heads=heads)
    yield op.Concat(op.Reshape(turned, "B S H 2*R"), op.Slice(x, "2*R", None), axis=-1)
    given = {"interleaved": kind, "num_heads": op.dim("H"), "rotary_embedding_dim": 2 * op.dim("R")}
    return op.Reshape(op.RotaryEmbedding(op.Reshape(x, "B S H*D"), cos, sin, p, **given), "B S H D")


@rule(kind="exact", example={"R": 4})
def rotary_on_tokens(
    op: Op,
    x: "B S H D",
    cos: "P R",
    sin: "P R",
    p: "int B S",
    heads: "attribute",
    width: "attribute",
    kind: "attribute",
) -> Equation:
    """RotaryEmbedding(xᵀ)  ⇒  RotaryEmbedding(x)ᵀ, with heads side by side in [B, S, H·D]"""
    given = {"rotary_embedding_dim": width, "interleaved": kind}
    yield op.RotaryEmbedding(op.Transpose(x, perm=[0, 2, 1, 3]), cos, sin, p, num_heads=heads, **given)
    flat = op.RotaryEmbedding(op.Reshape(x, "B S H*D"), cos, sin, p, num_heads=op.dim("H"), **given)
    return op.Transpose(op.Reshape(flat, "B S H D"), perm=[0, 2, 1, 3])

"""A decoder in PyTorch, straight from its description and its weights by role.

What `exporter.build` writes as nodes is computed here, in the same order and by the same roles; a test holds the one
against the other in every family. Sequences are whole: nothing comes before them, nothing is padded.

Dims: B batch, S tokens, H heads, K kv heads, D head dim, E hidden, V vocab.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from exporter import alibi, sinusoids
from exporter.decoder import Attention, Decoder, FeedForward, Layer, Linear, Norm, Rope, Sinusoids

Weights: TypeAlias = Mapping[str, Tensor]
"""float32 tensors by role (``layers.3.ffn.down.weight``), each in the shape that its part states."""
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Instructions of CPUs that multiply bfloat16, as torch calls them."""


def device() -> str:
    """A GPU where torch sees one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_bfloat16() -> bool:
    """Whether the device has instructions that multiply bfloat16."""
    if device() == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name) for name in BFLOAT16)


def mixed_precision() -> torch.autocast:
    """Within it matrices are multiplied as bfloat16 and summed up as float32 where instructions for that make it
    faster; weights, their gradients and the residual stream stay float32 (Micikevicius et al. 2018)."""
    return torch.autocast(device(), torch.bfloat16, enabled=has_bfloat16())


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Weights where they will run."""
    return {role: torch.from_numpy(array).to(device()) for role, array in arrays.items()}


def residual(decoder: Decoder, weights: Weights, tokens: Tensor) -> Tensor:
    """The residual stream behind the last layer, ``[B, S, E]``, of tokens int64 ``[B, S]``."""
    x = weights["embedding.weight"][tokens] * decoder.embedding_scale
    if isinstance(decoder.positions, Sinusoids):
        x = x + torch.from_numpy(sinusoids.table(decoder.positions, *x.shape[1:])).to(x.device)
    elif decoder.positions is not None:
        x = x + weights["positions.weight"][: tokens.shape[1]]
    x = _norm(weights, "embedding_norm", decoder.embedding_norm, x)
    for i, layer in enumerate(decoder.layers):
        x = _layer(weights, f"layers.{i}", layer, x)
    return x


def logits(decoder: Decoder, weights: Weights, x: Tensor) -> Tensor:
    """Logits ``[…, V]`` of a residual stream ``[…, E]``: the last norm and the head; of at least float32."""
    x = _norm(weights, "norm", decoder.norm, x)
    if decoder.head_input is not None:
        x = _linear(weights, "head_input", decoder.head_input, x)
    table = "embedding.weight" if decoder.tied else "head.weight"
    found = F.linear(x, weights[table], weights.get("head.bias"))
    if found.dtype == torch.bfloat16:
        found = found.float()
    cap = decoder.logit_softcap
    return torch.tanh(found / cap) * cap if cap else found


def _layer(weights: Weights, role: str, layer: Layer, x: Tensor) -> Tensor:
    normed = _norm(weights, f"{role}.attention_norm", layer.attention_norm, x)
    attended = _attention(weights, f"{role}.attention", layer.attention, normed)
    if layer.parallel:
        if layer.ffn_norm is not None:
            normed = _norm(weights, f"{role}.ffn_norm", layer.ffn_norm, x)
        return x + (attended + _feed_forward(weights, f"{role}.ffn", layer.ffn, normed))
    x = x + _norm(weights, f"{role}.attention_post_norm", layer.attention_post_norm, attended)
    normed = _norm(weights, f"{role}.ffn_norm", layer.ffn_norm, x)
    fed = _feed_forward(weights, f"{role}.ffn", layer.ffn, normed)
    return x + _norm(weights, f"{role}.ffn_post_norm", layer.ffn_post_norm, fed)


def _attention(weights: Weights, role: str, attention: Attention, x: Tensor) -> Tensor:
    def heads(name: str, linear: Linear, count: int, norm: Norm | None, rope: Rope | None) -> Tensor:
        """``[B, count, S, D]``."""
        y = _linear(weights, f"{role}.{name}", linear, x)
        if rope is not None and attention.rotates_first:
            y = _rotated(y.unflatten(-1, (count, -1)).transpose(1, 2), rope).transpose(1, 2).flatten(2)
        if norm is not None and norm.fits(attention.head_dim):
            y = y.unflatten(-1, (count, attention.head_dim))
        y = _norm(weights, f"{role}.{name}_norm", norm, y)
        y = y.reshape(*x.shape[:2], count, attention.head_dim).transpose(1, 2)
        return y if rope is None or attention.rotates_first else _rotated(y, rope)

    q = heads("q", attention.q, attention.heads, attention.q_norm, attention.rope)
    k = heads("k", attention.k, attention.kv_heads, attention.k_norm, attention.rope)
    v = heads("v", attention.v, attention.kv_heads, None, None)
    group = attention.heads // attention.kv_heads
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    y = _attended(q, k, v, attention)
    return _linear(weights, f"{role}.o", attention.o, y.transpose(1, 2).flatten(2))


def _attended(q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
    """Each token's values, of itself and those before it that it sees: ``[B, H, S, D]`` each."""
    length = q.shape[2]
    unlimited = attention.window is None or attention.window >= length
    if unlimited and not attention.softcap and attention.alibi is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attention.scale)
    seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if attention.window is not None:
        seen = seen.triu(1 - attention.window)
    if attention.alibi is not None:
        rises = torch.from_numpy(alibi.table(attention.alibi, length).T).to(q)  # [H, S]
        bias = (rises[:, None] - rises[:, :, None]).masked_fill(~seen, -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=attention.scale)
    if not attention.softcap:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=attention.scale)
    scores = torch.tanh(q @ k.transpose(2, 3) * (attention.scale / attention.softcap)) * attention.softcap
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


def _rotated(x: Tensor, rope: Rope) -> Tensor:
    """Rotary positions, half-split: ``[B, H, S, D]``; angles in float32, as the graph's tables are."""
    angles = np.outer(np.arange(x.shape[2], dtype=np.float32), np.array(rope.frequencies, np.float32))
    factor = np.float32(rope.factor)
    cos, sin = (torch.from_numpy(f(angles) * factor).to(x.device) for f in (np.cos, np.sin))
    turned, rest = x[..., : rope.rotated], x[..., rope.rotated :]
    first, second = turned.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def _feed_forward(weights: Weights, role: str, ffn: FeedForward, x: Tensor) -> Tensor:
    hidden = _linear(weights, f"{role}.up", ffn.up, x)
    if ffn.gate is None:
        hidden = _activation(weights, role, ffn, hidden)
    else:
        hidden = _activation(weights, role, ffn, _linear(weights, f"{role}.gate", ffn.gate, x)) * hidden
    return _linear(weights, f"{role}.down", ffn.down, hidden)


def _activation(weights: Weights, role: str, ffn: FeedForward, x: Tensor) -> Tensor:
    kind = ffn.activation
    if kind == "xielu" and ffn.xielu is not None:
        a, b = (F.softplus(weights[f"{role}.xielu.{name}"]) for name in ("positive", "negative"))
        elu = F.elu(x)
        return a * F.relu(x).square() + b * (elu - x) + ffn.xielu.beta * elu
    if kind == "silu":
        return F.silu(x)
    if kind == "relu":
        return F.relu(x)
    if kind == "relu2":
        return F.relu(x).square()
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def _linear(weights: Weights, role: str, linear: Linear, x: Tensor) -> Tensor:
    bias = None if linear.bias is None else weights[f"{role}.bias"]
    return F.linear(x, weights[f"{role}.weight"], bias)


def _norm(weights: Weights, role: str, norm: Norm | None, x: Tensor) -> Tensor:
    """x itself where there is no norm."""
    if norm is None:
        return x
    weight, size = weights.get(f"{role}.weight"), x.shape[-1:]
    x = x.to(torch.float32 if weight is None else weight.dtype)  # a product of bfloat16
    if norm.kind == "rms":
        return F.rms_norm(x, size, weight, norm.epsilon)
    bias = None if norm.bias is None else weights[f"{role}.bias"]
    return F.layer_norm(x, size, weight, bias, norm.epsilon)

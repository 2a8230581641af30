"""Decoder graphs as other exporters write them: transformers' classes through torch.onnx.export, and users' modules.

``export(name, folder, size)`` writes ``folder/model.onnx`` and gives the module whose graph it is. Names are
`GRAPHS`' keys: ``llama-cache-sdpa-18`` is transformers' Llama, with a KV cache, its sdpa attention, opset 18.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache


@dataclasses.dataclass(frozen=True)
class Size:
    """Dims of a decoder to make. GPT-2 and the users' modules have as many KV heads as heads."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int


TINY = Size(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=131, context=64)


# transformers' classes ----------------------------------------------------------------------------------


def _common(size: Size) -> dict[str, Any]:
    return {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.ffn,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "max_position_embeddings": size.context,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _llama(size: Size) -> Any:
    return transformers.LlamaConfig(**_common(size), tie_word_embeddings=True)


def _qwen2(size: Size) -> Any:
    return transformers.Qwen2Config(**_common(size), tie_word_embeddings=False)


def _gemma3(size: Size) -> Any:
    kinds = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(size.layers)]
    return transformers.Gemma3TextConfig(
        **_common(size), sliding_window=8, layer_types=kinds, query_pre_attn_scalar=size.head_dim + 8
    )


def _gpt2(size: Size) -> Any:
    return transformers.GPT2Config(
        vocab_size=size.vocab,
        n_embd=size.hidden,
        n_layer=size.layers,
        n_head=size.heads,
        n_positions=size.context,
        bos_token_id=1,
        eos_token_id=2,
    )


WIDEN = 6.0
"""Factor of transformers' initial weights, which are so small that logits hardly differ."""

CONFIGS: Mapping[str, Callable[[Size], Any]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
}


def transformers_model(family: str, size: Size) -> Any:
    """A random model of a family, whose every part shows in the logits: biases and gains are random too."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](size)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(WIDEN)
    return model


class WithoutCache(nn.Module):
    """Tokens and mask in, logits out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).logits
        return logits


class WithCache(nn.Module):
    """Tokens, mask, positions and past in, logits and present out, as decoders with a cache are exported."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache()
        for i in range(len(past) // 2):
            cache.update(past[2 * i], past[2 * i + 1], i)
        given = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present = [t for layer in given.past_key_values.layers for t in (layer.keys, layer.values)]
        return (given.logits, *present)


# Modules of users ---------------------------------------------------------------------------------------


class NanoBlock(nn.Module):
    """nanoGPT's block. ``attention``: ``sdpa`` with is_causal, or ``tril``, written out with a buffer."""

    def __init__(self, size: Size, attention: str) -> None:
        super().__init__()
        width = size.hidden
        self.heads, self.attention = size.heads, attention
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        if attention == "tril":
            seen = torch.tril(torch.ones(size.context, size.context))
            self.register_buffer("bias", seen.view(1, 1, size.context, size.context))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        B, S, E = x.size()
        q, k, v = self.c_attn(x).split(E, dim=2)
        k = k.view(B, S, self.heads, E // self.heads).transpose(1, 2)
        q = q.view(B, S, self.heads, E // self.heads).transpose(1, 2)
        v = v.view(B, S, self.heads, E // self.heads).transpose(1, 2)
        if self.attention == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            scores = scores.masked_fill(self.bias[:, :, :S, :S] == 0, float("-inf"))
            y = F.softmax(scores, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, S, E))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.ln_1(x))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


class NanoGPT(nn.Module):
    """A decoder in nanoGPT's manner, its table tied to its head: tokens ``[B, S]`` in, logits out."""

    def __init__(self, size: Size, attention: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(size.vocab, size.hidden), nn.Embedding(size.context, size.hidden)
        self.h = nn.ModuleList(NanoBlock(size, attention) for _ in range(size.layers))
        self.ln_f = nn.LayerNorm(size.hidden)
        self.lm_head = nn.Linear(size.hidden, size.vocab, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        places = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.wte(idx) + self.wpe(places)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class HandRMSNorm(nn.Module):
    """RMSNorm as the Llama paper's code has it."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(1 + 0.1 * torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Half-split rotary of ``[B, H, S, D]`` by tables ``[S, D/2]``, in one cat of four products."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class HandBlock(nn.Module):
    """A Llama block written by hand: grouped KV heads repeated, SwiGLU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        q, kv = size.heads * size.head_dim, size.kv_heads * size.head_dim
        self.wq, self.wk = nn.Linear(size.hidden, q, bias=False), nn.Linear(size.hidden, kv, bias=False)
        self.wv, self.wo = nn.Linear(size.hidden, kv, bias=False), nn.Linear(q, size.hidden, bias=False)
        self.w1 = nn.Linear(size.hidden, size.ffn, bias=False)
        self.w3 = nn.Linear(size.hidden, size.ffn, bias=False)
        self.w2 = nn.Linear(size.ffn, size.hidden, bias=False)
        self.norm1, self.norm2 = HandRMSNorm(size.hidden), HandRMSNorm(size.hidden)

    def attend(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        B, S, _ = x.shape
        size = self.size
        q = self.wq(x).view(B, S, size.heads, size.head_dim).transpose(1, 2)
        k = self.wk(x).view(B, S, size.kv_heads, size.head_dim).transpose(1, 2)
        v = self.wv(x).view(B, S, size.kv_heads, size.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k = k.repeat_interleave(size.heads // size.kv_heads, dim=1)
        v = v.repeat_interleave(size.heads // size.kv_heads, dim=1)
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(size.head_dim) + mask
        y = torch.matmul(torch.softmax(scores.float(), dim=-1).type_as(q), v)
        return self.wo(y.transpose(1, 2).reshape(B, S, -1))

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        x = x + self.attend(self.norm1(x), cos, sin, mask)
        y = self.norm2(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class HandLlama(nn.Module):
    """A Llama written by hand: rotary tables in buffers, an additive causal mask made in forward, untied."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tok_embeddings = nn.Embedding(size.vocab, size.hidden)
        self.layers = nn.ModuleList(HandBlock(size) for _ in range(size.layers))
        self.norm, self.output = HandRMSNorm(size.hidden), nn.Linear(size.hidden, size.vocab, bias=False)
        frequencies = 10000.0 ** (-torch.arange(0, size.head_dim, 2).float() / size.head_dim)
        angles = torch.outer(torch.arange(size.context).float(), frequencies)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        S = tokens.shape[1]
        mask = torch.full((S, S), float("-inf"), device=tokens.device).triu(1)
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, self.cos[:S], self.sin[:S], mask)
        return self.output(self.norm(x))


MODULES: Mapping[str, Callable[[Size], nn.Module]] = {
    "nanogpt_sdpa": lambda size: NanoGPT(size, "sdpa"),
    "nanogpt_tril": lambda size: NanoGPT(size, "tril"),
    "hand_llama": HandLlama,
}


# Exporting ----------------------------------------------------------------------------------------------


def past_names(layers: int, prefix: str) -> list[str]:
    return [f"{prefix}.{i}.{which}" for i in range(layers) for which in ("key", "value")]


def export_cached(model: Any, path: Path, opset: int) -> None:
    """transformers' model with a growing cache, through dynamo; contract names, position_ids beside them."""
    config = model.config
    layers, batch, past, new = config.num_hidden_layers, 2, 5, 3
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = [torch.zeros(batch, kv_heads, past, head_dim) for _ in range(2 * layers)]
    positions = torch.arange(past, past + new).expand(batch, new).contiguous()
    args = (torch.ones(batch, new, dtype=torch.int64), torch.ones(batch, past + new, dtype=torch.int64))
    tokens = {0: "batch_size", 1: "sequence_length"}
    shapes = {
        "input_ids": tokens,
        "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
        "position_ids": tokens,
        "past": [{0: "batch_size", 2: "past_sequence_length"} for _ in cache],
    }
    _dynamo(
        WithCache(model),
        (*args, positions, cache),
        shapes,
        path,
        opset,
        ["input_ids", "attention_mask", "position_ids", *past_names(layers, "past_key_values")],
        ["logits", *past_names(layers, "present")],
    )


def export_uncached(model: Any, path: Path, opset: int) -> None:
    """transformers' model without a cache, through dynamo."""
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, :2] = 0
    tokens = {0: "batch_size", 1: "sequence_length"}
    args = (torch.ones(2, 7, dtype=torch.int64), mask)
    shapes = {"input_ids": tokens, "attention_mask": tokens}
    _dynamo(WithoutCache(model), args, shapes, path, opset, ["input_ids", "attention_mask"], ["logits"])


def export_module(module: nn.Module, path: Path, opset: int, *, dynamo: bool) -> None:
    """A user's module, tokens in, logits out; ``dynamo=False`` is the TorchScript exporter."""
    tokens = (torch.ones(2, 7, dtype=torch.int64),)
    dims = {0: "batch_size", 1: "sequence_length"}
    if dynamo:
        _dynamo(module, tokens, (dims,), path, opset, ["input_ids"], ["logits"])
        return
    with _quiet():
        torch.onnx.export(
            module,
            tokens,
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_axes={"input_ids": dims, "logits": dims},
        )


def _dynamo(
    module: nn.Module, args: Any, shapes: Any, path: Path, opset: int, inputs: list[str], outputs: list[str]
) -> None:
    with _quiet():
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
        )
    program.save(str(path), external_data=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A graph to make.

    Attributes:
        model: a key of `CONFIGS` or `MODULES`.
        how: ``cache`` or ``nocache`` (transformers' classes), ``dynamo`` or ``script`` (modules).
        attention: transformers' implementation; empty for modules.
    """

    model: str
    how: str
    attention: str
    opset: int

    def make(self, size: Size) -> nn.Module:
        if self.model in MODULES:
            return MODULES[self.model](size).eval()
        model = transformers_model(self.model, size)
        model.config._attn_implementation = self.attention
        return model

    def export(self, module: Any, path: Path) -> None:
        if self.model in MODULES:
            export_module(module, path, self.opset, dynamo=self.how == "dynamo")
        elif self.how == "cache":
            export_cached(module, path, self.opset)
        else:
            export_uncached(module, path, self.opset)


def _all() -> dict[str, Foreign]:
    found = {}
    for model in CONFIGS:
        for how in ("cache", "nocache"):
            for attention, opset in (("sdpa", 18), ("sdpa", 23), ("eager", 20)):
                found[f"{model}-{how}-{attention}-{opset}"] = Foreign(model, how, attention, opset)
    for model in MODULES:
        for how, opset in (("dynamo", 18), ("dynamo", 23), ("script", 17)):
            found[f"{model}-{how}-{opset}"] = Foreign(model, how, "", opset)
    return found


GRAPHS: Mapping[str, Foreign] = _all()


def export(name: str, folder: Path, size: Size = TINY) -> nn.Module:
    """Write ``folder/model.onnx`` and, for transformers' classes, ``config.json``; gives the module in eval mode."""
    foreign = GRAPHS[name]
    folder.mkdir(parents=True, exist_ok=True)
    module = foreign.make(size)
    foreign.export(module, folder / "model.onnx")
    if foreign.model in CONFIGS:
        config = module.config.to_dict()  # type: ignore[operator, union-attr]
        (folder / "config.json").write_text(json.dumps(config, default=str), "utf-8")
    return module


@functools.cache
def exported(name: str) -> tuple[Path, nn.Module]:
    """A tiny graph's file and its module; exported once a session, into a folder that nobody may change."""
    folder = Path(_session().name) / name
    return folder / "model.onnx", export(name, folder)


@functools.cache
def _session() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="foreign-")


def loaded(name: str) -> ir.Model:
    """A tiny graph, fresh at each call, so that a pass may change it."""
    return ir.load(exported(name)[0])

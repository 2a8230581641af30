"""Train `sample:tiny`: a byte-level GPT-2 of 1.9M parameters, on English that Python itself carries.

    python samples/train_tiny.py                          # writes samples/tiny, a Hugging Face GPT-2 directory
    python samples/train_tiny.py --nanogpt out/ckpt.pt    # the same weights as a nanoGPT checkpoint, too

The text is `pydoc_data.topics`, joined. Its first 80 % of characters train the model; the rest is held out, and here it
is only ever scored. The recipe is fixed, so one machine with one Python and one torch gives one set of weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = 256
"""The token after the 256 bytes: <|endoftext|>."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """nanoGPT's `model_args`, by its names."""

    n_layer: int = 4
    n_head: int = 6
    n_embd: int = 192
    block_size: int = 256
    bias: bool = True
    vocab_size: int = END + 1
    dropout: float = 0.1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the model is trained. A step sees `batch_size` windows of `block_size` bytes."""

    steps: int = 1000
    batch_size: int = 16
    warmup: int = 50
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    seed: int = 1


# Modules carry nanoGPT's names, so that a state dict is a nanoGPT checkpoint. Shapes: B batch, S query, H heads,
# D head dim, E hidden, V vocab.


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.dropout = shape.n_head, shape.dropout
        self.c_attn = nn.Linear(shape.n_embd, 3 * shape.n_embd, shape.bias)
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd, shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.c_attn(x).chunk(3, -1))  # B H S D
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return F.dropout(self.c_proj(y.transpose(1, 2).flatten(2)), self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.c_fc = nn.Linear(shape.n_embd, 4 * shape.n_embd, shape.bias)
        self.c_proj = nn.Linear(4 * shape.n_embd, shape.n_embd, shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.n_embd, bias=shape.bias)
        self.attn = Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.n_embd, bias=shape.bias)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A pre-norm decoder with learned positions and a tied head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(shape.vocab_size, shape.n_embd),
                "wpe": nn.Embedding(shape.block_size, shape.n_embd),
                "h": nn.ModuleList(Block(shape) for _ in range(shape.n_layer)),
                "ln_f": nn.LayerNorm(shape.n_embd, bias=shape.bias),
            }
        )
        self.lm_head = nn.Linear(shape.n_embd, shape.vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight
        for name, weight in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape.n_layer))
            elif weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, ids: Tensor) -> Tensor:  # B S -> B S V
        x = self.transformer["wte"](ids) + self.transformer["wpe"].weight[: ids.shape[1]]
        x = F.dropout(x, self.shape.dropout, self.training)
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def corpus() -> tuple[Tensor, Tensor]:
    """Token ids to train on, <|endoftext|> after each topic, and the held-out bytes."""
    text = "".join(topics.values())
    left = len(text) * 4 // 5
    held_out = text[left:]
    ids: list[int] = []
    for topic in topics.values():
        ids += [*topic[:left].encode(), END]
        left = max(0, left - len(topic))
        if left == 0:
            break
    return torch.tensor(ids), torch.tensor(list(held_out.encode()))


def train(model: GPT, ids: Tensor, recipe: Recipe) -> None:
    """AdamW with a linear warm-up and a cosine to zero."""
    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.dim() == 2], "weight_decay": recipe.weight_decay},
        {"params": [w for w in weights if w.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / recipe.warmup,
            0.5 + 0.5 * math.cos(math.pi * step / recipe.steps),
        ),
    )
    window = torch.arange(model.shape.block_size + 1)
    model.train()
    start = time.monotonic()
    for step in range(1, recipe.steps + 1):
        starts = torch.randint(len(ids) - len(window) + 1, (recipe.batch_size, 1))
        batch = ids[starts + window]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        if step % 100 == 0:
            print(f"step {step:5}  {loss.item() / math.log(2):.3f} bits/byte  {time.monotonic() - start:.0f} s", flush=True)
    model.eval()


@torch.no_grad()
def surprise(model: GPT, ids: Tensor) -> Tensor:
    """Bits for each byte but the first, each seen with at least half a block of context (where there is one)."""
    size = model.shape.block_size
    half = size // 2
    bits = torch.empty(len(ids) - 1)
    for start in range(0, len(ids) - 1, half):
        chunk = ids[start : start + size + 1]
        loss = F.cross_entropy(model(chunk[None, :-1])[0], chunk[1:], reduction="none") / math.log(2)
        skip = half if start else 0
        bits[start + skip : start + len(loss)] = loss[skip:]
    return bits

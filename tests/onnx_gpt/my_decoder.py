"""A user's own decoders, as `module:` finds them: nanoGPT-style, attention fused or written out."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        B, S, E = x.shape
        q, k, v = (t.view(B, S, self.heads, -1).transpose(1, 2) for t in self.qkv(x).split(E, dim=2))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            hidden = torch.ones(S, S, dtype=torch.bool, device=x.device).triu(1)
            y = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(B, S, E))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    def __init__(
        self, fused: bool, vocab: int = 61, width: int = 32, layers: int = 2, context: int = 128
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, 4, fused) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def fused() -> nn.Module:
    return Decoder(fused=True)


def written_out() -> nn.Module:
    return Decoder(fused=False)


class Training(nn.Module):
    """As a training script leaves it: its forward gives a loss too, its weights are half, its context is short."""

    def __init__(self) -> None:
        super().__init__()
        print("loading weights")
        self.decoder = Decoder(fused=True, context=32).half()

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
        assert tokens.shape[1] <= 32, "the context has 32 tokens"
        print("forward")
        return self.decoder(tokens), None


class Bigram(nn.Module):
    """No attention: nothing reads a mask. Untrained: all tokens are as likely."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(31, 16), nn.Linear(16, 31)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.tokens(tokens))
        return {"loss": logits.mean(), "logits": logits}


class LastOnly(Bigram):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens)["logits"][:, [-1], :]


class Noisy(Bigram):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens)["logits"] + torch.rand(31)


class Masked(Bigram):
    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens)["logits"] * mask[..., None]


class Flat(Bigram):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens)["logits"].flatten(0, 1)


def unloaded() -> nn.Module:
    with torch.device("meta"):
        return Bigram()


def number() -> int:
    return 7


def ends() -> nn.Module:
    raise SystemExit("usage: train.py --out OUT")


def untraceable() -> nn.Module:
    class Moody(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            logits = tokens[..., None].float()
            return logits if tokens.sum().item() > 3 else 2 * logits

    return Moody()


def broken() -> nn.Module:
    raise RuntimeError("the factory's own mistake")


NOT_CALLABLE = 7

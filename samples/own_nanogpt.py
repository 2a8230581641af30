"""Export a decoder of your own: any nn.Module that takes tokens [B, S] and gives logits [B, S, V].

python samples/own_nanogpt.py OUT
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

import onnx_gpt


class NanoGPT(nn.Module):
    """One block in the manner of nanoGPT. It has no KV cache; the exported graph is given one."""

    def __init__(self, vocab: int = 65, width: int = 64, heads: int = 4, context: int = 64) -> None:
        super().__init__()
        self.heads = heads
        self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        B, S = tokens.shape
        x = self.tokens(tokens) + self.places(torch.arange(S, device=tokens.device))
        q, k, v = (
            t.view(B, S, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(x + self.out(y))


def build() -> nn.Module:
    """The module with its weights: load your checkpoint here."""
    torch.manual_seed(0)
    return NanoGPT()


if __name__ == "__main__":
    report = onnx_gpt.optimize("module:own_nanogpt:build", sys.argv[1], tokens=256)
    print(report.parity.verdict, onnx_gpt.Generator(sys.argv[1]).generate([1, 2, 3], max_new_tokens=8).tokens)

"""Train `sample:tiny`: a byte-level GPT-2 of 1.9M parameters, on English that Python itself carries.

    python samples/train_tiny.py                         # writes samples/tiny, a Hugging Face GPT-2 directory
    python samples/train_tiny.py --nanogpt out/ckpt.pt   # the same weights as a nanoGPT checkpoint, too

The text is `pydoc_data.topics`, joined. Its first 80 % of characters train the model; the rest is held out,
and here it is only ever scored. The recipe is fixed: one machine, Python and torch give one set of weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

END, END_TEXT = 256, "<|endoftext|>"
"""The one token that is not a byte."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """nanoGPT's `model_args`, by its names."""

    n_layer: int = 4
    n_head: int = 6
    n_embd: int = 192
    block_size: int = 256
    bias: bool = True
    vocab_size: int = END + 1
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Each step sees `batch_size` windows of the text. Rates rise for `warmup` steps, then fall to 0."""

    steps: int = 1000
    batch_size: int = 8
    warmup: int = 20
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 1


# Modules carry nanoGPT's names, so that a state dict is a nanoGPT checkpoint's.
# Shapes: B batch, S query, H heads, D head dim, E hidden, V vocab.


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.n_head
        self.c_attn = nn.Linear(shape.n_embd, 3 * shape.n_embd, shape.bias)
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd, shape.bias)

    def forward(self, x: Tensor) -> Tensor:  # B S E -> B S E
        q, k, v = self.c_attn(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each B H S D
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.c_fc = nn.Linear(shape.n_embd, 4 * shape.n_embd, shape.bias)
        self.c_proj = nn.Linear(4 * shape.n_embd, shape.n_embd, shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


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
            if weight.dim() == 2:
                residual = name.endswith("c_proj.weight")
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape.n_layer) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, ids: Tensor) -> Tensor:  # B S -> B S V
        x = self.transformer["wte"](ids) + self.transformer["wpe"].weight[: ids.shape[1]]
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def corpus() -> tuple[Tensor, Tensor]:
    """Token ids to train on, with <|endoftext|> after each topic, and the bytes that are held out."""
    text = "".join(topics.values())
    left = len(text) * 4 // 5
    held_out = text[left:]
    ids: list[int] = []
    for topic in topics.values():
        ids += topic[:left].encode()
        if len(topic) > left:
            break
        ids.append(END)
        left -= len(topic)
    return torch.tensor(ids), torch.tensor(list(held_out.encode()))


def train(model: GPT, ids: Tensor, recipe: Recipe) -> None:
    """Muon (K. Jordan, 2024) for the matrices inside the blocks, AdamW for everything else."""
    weights = list(model.parameters())
    matrices = [w for w in model.transformer["h"].parameters() if w.dim() == 2]
    others = [w for w in weights if all(w is not m for m in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    rates = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    window = torch.arange(model.shape.block_size + 1)
    start = time.monotonic()
    for step in range(recipe.steps):
        for group, rate in rates:
            group["lr"] = rate * min((step + 1) / recipe.warmup, 1 - step / recipe.steps)
        batch = ids[torch.randint(len(ids) - len(window) + 1, (recipe.batch_size, 1)) + window]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 100 == 0:
            bits, seconds = loss.item() / math.log(2), time.monotonic() - start
            print(f"step {step + 1:5}   {bits:.3f} bits/byte   {seconds:4.0f} s", flush=True)


@torch.no_grad()
def surprise(model: GPT, ids: Tensor) -> Tensor:
    """Bits of each byte but the first, seen with at least half a block of context where there is as much."""
    size, half = model.shape.block_size, model.shape.block_size // 2
    bits = torch.empty(len(ids) - 1)
    for start in range(0, len(bits), half):
        chunk = ids[start : start + size + 1]
        loss = F.cross_entropy(model(chunk[None, :-1])[0], chunk[1:], reduction="none")
        seen = half if start else 0
        bits[start + seen : start + len(loss)] = loss[seen:] / math.log(2)
    return bits


def novel(ids: Tensor, held_out: Tensor, run: int = 80) -> Tensor:
    """Which held-out bytes are in no run of `run` bytes of the training text. (Topics quote one another.)"""
    known, text = bytes(ids[ids != END].tolist()), bytes(held_out.tolist())
    runs = {known[i : i + run] for i in range(len(known) - run + 1)}
    new = torch.ones(len(text), dtype=torch.bool)
    for i in range(len(text) - run + 1):
        if text[i : i + run] in runs:
            new[i : i + run] = False
    return new


def byte_tokenizer() -> Tokenizer:
    """Byte b is token b. GPT-2's byte alphabet: printable Latin-1 is itself, the rest moves to 256 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    vocab = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_TEXT])
    return tokenizer


def save(model: GPT, folder: Path) -> None:
    """Write a Hugging Face GPT-2 directory in float16. Conv1D keeps [in, out], nn.Linear [out, in]."""
    shape = model.shape
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.block_size,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        resid_pdrop=shape.dropout,
        bos_token_id=END,
        eos_token_id=END,
    )
    twin = GPT2LMHeadModel(config)
    linear = {name for name, module in model.transformer.named_modules() if isinstance(module, nn.Linear)}
    state = {
        name: weight.T if name.removesuffix(".weight") in linear else weight
        for name, weight in model.transformer.state_dict().items()
    }
    twin.transformer.load_state_dict(state)
    twin.half().save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_TEXT,
        "eos_token": END_TEXT,
        "model_max_length": shape.block_size,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def save_nanogpt(model: GPT, recipe: Recipe, path: Path) -> None:
    """Write what nanoGPT's train.py writes, less the optimizer. nanoGPT's own GELU is erf's, not tanh's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "model": model.state_dict(),
        "model_args": dataclasses.asdict(model.shape),
        "iter_num": recipe.steps,
        "config": dataclasses.asdict(recipe),
    }
    torch.save(checkpoint, path)


@torch.no_grad()
def check(model: GPT, held_out: Tensor, folder: Path) -> float:
    """Load the folder as anyone would; return max |Δlogit| between transformers and this module."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = bytes(held_out.tolist()).decode(errors="ignore") + "naïve 2×3 → 😀\r\n\t  end"
    assert tokenizer(text, verbose=False)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.convert_tokens_to_ids(END_TEXT) == END
    twin = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    ids = held_out[: 8 * model.shape.block_size].view(8, -1)
    for how in ({"do_sample": False}, {"do_sample": True, "temperature": 0.7, "top_k": 0}):
        torch.manual_seed(0)
        prompt = tokenizer("The ", return_tensors="pt")
        story = twin.generate(**prompt, max_new_tokens=200, pad_token_id=END, **how)[0]
        print(f"\n--- {how}\n{tokenizer.decode(story)}")
    return (twin(ids).logits - model(ids)).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train sample:tiny.")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "tiny")
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="write a nanoGPT checkpoint, too")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    args = parser.parse_args()

    recipe = Recipe(steps=args.steps)
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(2)
    ids, held_out = corpus()
    model = GPT(Shape())
    size = sum(w.numel() for w in model.parameters())
    print(f"{size:,} parameters, {len(ids):,} tokens to train on, {len(held_out):,} bytes held out")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {recipe}")
    train(model, ids, recipe)

    model.half().float()  # the weights that are saved are the ones that are measured
    save(model, args.out)
    if args.nanogpt:
        save_nanogpt(model, recipe, args.nanogpt)
    print(f"\nmax |Δlogit| against transformers: {check(model, held_out, args.out):.1e}")
    bits, new = surprise(model, held_out), novel(ids, held_out)[1:]
    print(f"held out: {bits.mean():.3f} bits/byte")
    print(f"  {bits[new].mean():.3f} on the {new.float().mean():.0%} that the training text does not quote")


if __name__ == "__main__":
    main()

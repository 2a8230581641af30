"""The fp32 model in PyTorch, eager: what every contender is compared with.

python -m benchmarks.reference logits FOLDER TOKENS.npy LOGITS.npy
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.protocol import THREADS, main, write_logits


def logits(folder: Path, tokens: Path, out: Path) -> None:
    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        write_logits(tokens, out, lambda window: model(torch.from_numpy(window)[None]).logits[0].numpy())


if __name__ == "__main__":
    main(logits=logits)

"""How long greedy text stays that of the float model: the first of 64 tokens that differs, over 20 prompts.

    python -m benchmarks.greedy [--remake] [--only NAME] [--json]

Prompts are runs of 32 tokens of the text that `quality` evaluates on. Float is our own fp32 bundle, whose KL to PyTorch
is 0 in `quality`; all run in turn in this process.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks import contenders as c
from benchmarks.measure import Row, median, parser, publish, say
from benchmarks.models import ensure
from benchmarks.paths import PERMUTED, SMOLLM2
from benchmarks.peers.protocol import THREADS
from benchmarks.text import evaluation_windows
from onnx_gpt.generation.decoder_session import DecoderSession

PROMPTS, PROMPT, STEPS = 20, 32, 64

CONTENDERS = (
    *(c.OURS_INT8_PERMUTED, c.OURS_W8A8_PERMUTED, c.OURS_W8A8_TOKEN_PERMUTED),
    *(c.OURS_INT4_90MB_PERMUTED, c.OURS_INT4_100MB_PERMUTED),
)


def main() -> int:
    chosen = parser(__doc__, only="contenders", remake=c.REMAKE).parse_args()
    ensure(SMOLLM2, PERMUTED)
    wanted, failed = c.prepared([c.OURS_FLOAT, *c.selected(CONTENDERS, chosen.only, remake=chosen.remake)])
    prompts = evaluation_windows(SMOLLM2 / "tokenizer.json", PROMPTS * PROMPT).reshape(-1, PROMPT)[:PROMPTS]
    float_text, *texts = (greedy(contender, prompts) for contender in wanted)
    rows = [row(one.name, float_text, text) for one, text in zip(wanted[1:], texts, strict=True)]
    document = {"tables": {"greedy": rows}, "failed": failed}
    return publish("greedy", document, as_json=chosen.json, partial=bool(chosen.only))


def greedy(contender: c.Contender, prompts: np.ndarray) -> np.ndarray:
    """``[N, S]`` prompts → ``[N, STEPS]`` tokens."""
    say(f"running {contender.name}")
    session = DecoderSession(contender.path / "model.onnx", threads=THREADS)
    text = np.empty((len(prompts), STEPS), np.int64)
    for tokens, prompt in zip(text, prompts, strict=True):
        session.truncate(0)
        logits = session.append(prompt)
        for i in range(STEPS):
            tokens[i] = logits.argmax()
            logits = session.append(tokens[i : i + 1])
    return text


def row(name: str, reference: np.ndarray, text: np.ndarray) -> Row:
    """How many tokens agree before the first that does not."""
    agreed = np.logical_and.accumulate(reference == text, axis=1).sum(axis=1)
    return {
        "file": name,
        "first divergence, median": median(agreed.tolist()),
        "mean": float(agreed.mean()),
        f"all {STEPS} agree": int((agreed == STEPS).sum()),
    }


if __name__ == "__main__":
    sys.exit(main())

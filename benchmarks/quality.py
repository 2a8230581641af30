"""How close each file stays to the fp32 model: KL, top-1 agreement and size, on English no method has seen.

    python -m benchmarks.quality [--model smollm2|tiny] [--tokens 4096] [--remake] [--only NAME] [--json]

The reference is PyTorch eager in fp32. The permuted model is the same function (the first row checks it), but
its weights do not lie on a 4-bit grid already: those rows are the honest figures of 4 bits. `tiny` is the sample in
the repository, a GPT-2 of bytes (LayerNorm, biases, learned positions), in every scheme and by every method.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import contenders as c
from benchmarks.measure import ChildFailedError, Row, parser, publish, say
from benchmarks.models import ensure
from benchmarks.paths import CACHE, PERMUTED, SMOLLM2
from benchmarks.text import WINDOW, evaluation_windows
from onnx_gpt.parity.metrics import divergence, log_softmax

SCRATCH = CACHE / "quality"

CONTENDERS = (
    c.TORCH_PERMUTED,
    *(c.OURS_FLOAT, c.MOBIUS_FLOAT, c.OPTIMUM_FLOAT),
    *(c.OURS_INT8, c.OURS_INT8_PERMUTED, c.OURS_W8A8, c.OURS_W8A8_PERMUTED, c.OURS_W8A8_TOKEN_PERMUTED),
    *(c.OPENVINO_INT8, c.OPENVINO_INT8_PERMUTED, c.ORT_DYNAMIC, c.ORT_STATIC),
    *(c.OURS_INT4, c.OURS_INT4_PERMUTED, c.OURS_INT4_WIDE, c.OURS_INT4_WIDE_PERMUTED),
    c.OURS_INT4_LARGE_PERMUTED,
    *(c.OURS_INT4_CALIBRATED_PERMUTED, c.OURS_INT4_90MB_PERMUTED, c.OURS_INT4_100MB_PERMUTED),
    *(c.OURS_INT4_SMALL_PERMUTED, c.OURS_INT4_FAST_PERMUTED, c.OURS_INT4_FAST_CACHE_PERMUTED),
    *(c.GENAI_INT4, c.GENAI_INT4_PERMUTED),
    *(c.OURS_KEEP, c.LLAMA_CPP, c.MOBIUS_KEEP),
)


@dataclass(frozen=True)
class Study:
    """One model, and the files that are held against it.

    Attributes:
        results: the name that results are kept under.
        reference: the model itself, a folder with its tokenizer.
        window: tokens that are read at once.
    """

    results: str
    reference: c.Contender
    contenders: tuple[c.Contender, ...]
    window: int


STUDIES = {
    "smollm2": Study("quality", c.TORCH, CONTENDERS, WINDOW),
    "tiny": Study("quality_tiny", c.TORCH_TINY, c.OURS_TINY, 256),
}


def main() -> int:
    options = parser(__doc__, only="contenders", remake=c.REMAKE)
    options.add_argument("--model", choices=STUDIES, default="smollm2", help="what is compared (smollm2)")
    options.add_argument("--tokens", type=int, default=4096, help="predicted tokens, at least (4096)")
    chosen = options.parse_args()
    study = STUDIES[chosen.model]
    ensure(*((SMOLLM2, PERMUTED) if chosen.model == "smollm2" else ()))
    wanted, failed = c.prepared(c.selected(study.contenders, chosen.only, remake=chosen.remake))
    tokenizer = study.reference.path / "tokenizer.json"
    windows = evaluation_windows(tokenizer, chosen.tokens, study.window)
    rows, broken = measure(study, wanted, windows)
    document = {"tokens": windows[:, 1:].size, "tables": {study.results: rows}, "failed": failed | broken}
    return publish(study.results, document, as_json=chosen.json, partial=bool(chosen.only))


def measure(
    study: Study, contenders: Sequence[c.Contender], windows: np.ndarray
) -> tuple[list[Row], dict[str, str]]:
    """A row for each that runs, and why the others failed, by name."""
    tokens, reference = reference_logits(study, windows)
    candidate = SCRATCH / "candidate.npy"
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for contender in contenders:
        say(f"running {contender.name}")
        try:
            contender.logits(tokens, candidate)
        except ChildFailedError as error:
            failed[contender.name] = str(error)
            continue
        distance = compare(candidate, reference)
        rows.append({"file": contender.name, **distance, "MB": round(contender.size / 1e6, 1)})
    candidate.unlink(missing_ok=True)
    return rows, failed


def reference_logits(study: Study, windows: np.ndarray) -> tuple[Path, Path]:
    """Files of the tokens and of PyTorch's logits for them, which are kept from one run to the next."""
    folder = SCRATCH / study.results
    tokens, logits = folder / "tokens.npy", folder / "reference.npy"
    if not (tokens.exists() and logits.exists() and np.array_equal(np.load(tokens), windows)):
        say(f"running {study.reference.name}")
        folder.mkdir(parents=True, exist_ok=True)
        logits.unlink(missing_ok=True)
        np.save(tokens, windows)
        partial = folder / "partial.npy"
        study.reference.logits(tokens, partial)
        partial.rename(logits)
    return tokens, logits


def compare(candidate: Path, reference: Path) -> Row:
    """KL(reference ‖ candidate) in nats and top-1 agreement, over all positions with a next token."""
    ours, theirs = np.load(candidate, mmap_mode="r"), np.load(reference, mmap_mode="r")
    kl: list[np.ndarray] = []
    same: list[np.ndarray] = []
    largest = 0.0
    for window in range(len(ours)):
        a, b = ours[window, :-1], theirs[window, :-1]
        same.append(a.argmax(-1) == b.argmax(-1))
        largest = max(largest, float(np.abs(a - b).max()))
        blocks = [slice(i, i + 64) for i in range(0, len(a), 64)]  # few rows are wide at once
        kl += [divergence(log_softmax(a[block]), log_softmax(b[block])) for block in blocks]
    values = np.concatenate(kl)
    return {
        "mean KL": float(values.mean()),
        "median KL": float(np.median(values)),
        "p99 KL": float(np.quantile(values, 0.99)),
        "top-1": float(np.concatenate(same).mean()),
        "max |Δlogit|": largest,
    }


if __name__ == "__main__":
    sys.exit(main())

"""Prefill of 512 tokens and decoding after them, everybody on the same threads, in turn.

    python -m benchmarks.speed [--rounds 5] [--remake] [--only NAME] [--context 4096] [--json]

Every ONNX file is run by `onnx_gpt.Generator`, so that the file is what differs; llama.cpp and OpenVINO run
their own. A sample is a fresh process that loads the model, warms up, and times one prefill and 64 steps.
Prefill computes the last token's logits only, where the file can (the genai builder's: with prune_lm_head).
llama.cpp keeps its cache in float16. Only runs with a context of 512 are kept.
"""

from __future__ import annotations

import os
import sys

from benchmarks import contenders as c
from benchmarks.measure import Row, interleave, median, parser, publish
from benchmarks.models import ensure
from benchmarks.paths import SMOLLM2

CONTENDERS = (
    *(c.OURS_INT4, c.OURS_INT4_WIDE, c.OURS_INT4_LARGE, c.OURS_INT4_90MB_PERMUTED),
    *(c.OURS_INT4_SMALL_PERMUTED, c.OURS_INT4_FAST_PERMUTED, c.OURS_INT4_FAST_CACHE_PERMUTED),
    *(c.OURS_INT8, c.OURS_W8A8, c.OURS_W8A8_TOKEN, c.OURS_KEEP, c.OURS_FLOAT),
    *(c.GENAI_INT4, c.GENAI_INT4_PRUNED, c.LLAMA_CPP, c.OPENVINO_INT8),
    *(c.MOBIUS_FLOAT, c.MOBIUS_KEEP, c.ORT_DYNAMIC, c.ORT_STATIC),
)
PREFILL, DECODE = "prefill_tokens_per_second", "decode_tokens_per_second"

RATIOS = (
    ("decode: onnx-gpt int4 / genai builder int4", DECODE, c.OURS_INT4, c.GENAI_INT4),
    ("decode: onnx-gpt int4 / llama.cpp Q4_1", DECODE, c.OURS_INT4, c.LLAMA_CPP),
    ("decode: onnx-gpt int4, blocks of 64 / genai builder int4", DECODE, c.OURS_INT4_LARGE, c.GENAI_INT4),
    ("decode: onnx-gpt int4, blocks of 64 / llama.cpp Q4_1", DECODE, c.OURS_INT4_LARGE, c.LLAMA_CPP),
    ("decode: onnx-gpt int4 of 90 MB / genai builder int4", DECODE, c.OURS_INT4_90MB_PERMUTED, c.GENAI_INT4),
    ("decode: onnx-gpt int4, fast / genai builder int4", DECODE, c.OURS_INT4_FAST_PERMUTED, c.GENAI_INT4),
    ("decode: onnx-gpt int4, fast / llama.cpp Q4_1", DECODE, c.OURS_INT4_FAST_PERMUTED, c.LLAMA_CPP),
    (
        "decode: onnx-gpt int4, fast, int8 cache / genai builder int4",
        DECODE,
        c.OURS_INT4_FAST_CACHE_PERMUTED,
        c.GENAI_INT4,
    ),
    (
        "decode: onnx-gpt int4, fast, int8 cache / llama.cpp Q4_1",
        DECODE,
        c.OURS_INT4_FAST_CACHE_PERMUTED,
        c.LLAMA_CPP,
    ),
    (
        "decode: onnx-gpt int4, fast, int8 cache / float cache",
        DECODE,
        c.OURS_INT4_FAST_CACHE_PERMUTED,
        c.OURS_INT4_FAST_PERMUTED,
    ),
    ("prefill: onnx-gpt int8 / genai builder int4", PREFILL, c.OURS_INT8, c.GENAI_INT4),
    ("prefill: onnx-gpt int8 / genai builder int4, last logits", PREFILL, c.OURS_INT8, c.GENAI_INT4_PRUNED),
    ("prefill: onnx-gpt w8a8 / OpenVINO int8", PREFILL, c.OURS_W8A8, c.OPENVINO_INT8),
    ("decode: onnx-gpt w8a8 / OpenVINO int8", DECODE, c.OURS_W8A8, c.OPENVINO_INT8),
)


def main() -> int:
    options = parser(__doc__, rounds=5, only="contenders", remake=c.REMAKE)
    options.add_argument(
        "--context", type=int, default=512, help="tokens of the prefill, and before decoding (512)"
    )
    chosen = options.parse_args()
    os.environ["BENCHMARK_CONTEXT"] = str(chosen.context)  # of the children
    ensure(SMOLLM2)
    wanted, failed = c.prepared(c.selected(CONTENDERS, chosen.only, remake=chosen.remake))
    samples, broken = interleave({one.name: one.speed for one in wanted}, chosen.rounds)
    tables = {
        "speed": speeds([one for one in wanted if one.name in samples], samples),
        "ratios": ratios(samples),
    }
    document = {"tables": tables, "context": chosen.context, "samples": samples, "failed": failed | broken}
    partial = bool(chosen.only) or chosen.context != 512
    return publish("speed", document, as_json=chosen.json, partial=partial)


def speeds(wanted: list[c.Contender], samples: dict[str, list[Row]]) -> list[Row]:
    """Medians of tokens per second, with the range of decode."""
    rows = []
    for contender in wanted:
        decode = [sample[DECODE] for sample in samples[contender.name]]
        rows.append(
            {
                "file": contender.name,
                "prefill tok/s": median([sample[PREFILL] for sample in samples[contender.name]]),
                "decode tok/s": median(decode),
                "decode range": f"{min(decode):.0f}–{max(decode):.0f}",
                "MB": round(contender.size / 1e6, 1),
            }
        )
    return rows


def ratios(samples: dict[str, list[Row]]) -> list[Row]:
    """The claims: the median of the ratios of each round, so that both sides saw the same machine."""
    rows = []
    for claim, key, ours, theirs in RATIOS:
        if ours.name in samples and theirs.name in samples:
            pairs = zip(samples[ours.name], samples[theirs.name], strict=True)
            rows.append({"claim": claim, "ratio": median([a[key] / b[key] for a, b in pairs])})
    return rows


if __name__ == "__main__":
    sys.exit(main())

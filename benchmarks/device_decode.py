"""Decoding in onnxruntime-genai and in OpenVINO: our bundles beside what each runtime's own exporter makes.

    python -m benchmarks.device_decode [--rounds 5] [--threads 2] [--only NAME] [--json]

SmolLM2. In onnxruntime-genai our `genai` bundles and the model builder's, by genai's own loop; in OpenVINO our
`openvino` bundles and optimum-intel's exports of the same precision, both with the cache as OpenVINO's own state
(samples/openvino_llm.py). A sample is a fresh process that reads 512 tokens and times 64 steps after them; A B C A B C.

On a busy machine, `--threads 1` and the column of processor time say what the work is; nothing is kept then.
"""

from __future__ import annotations

import dataclasses
import os
import sys

from benchmarks import contenders as c
from benchmarks.measure import Row, interleave, median, parser, publish
from benchmarks.models import ensure
from benchmarks.paths import SMOLLM2

DECODE, PROCESSOR = "decode_tokens_per_second", "decode_processor_seconds"
ON_GENAI = c.peer("genai_runtime", "genai")
CALIBRATED = ("--method", "gptq", "--calibration-windows", "24")


def bundle(name: str, target: str, *options: str) -> c.Contender:
    """A bundle of ours, in the runtime that it is for."""
    runner = ON_GENAI if target == "genai" else c.ON_OPENVINO
    made = c.ours(f"onnx-gpt {target}: {name}", SMOLLM2, "--target", target, *options)
    return dataclasses.replace(made, runner=runner)


GENAI_INT4 = bundle("int4", "genai", "--quantize", "int4")
GENAI_64, GENAI_128 = (
    bundle(f"int4, gptq, blocks of {size}", "genai", "--quantize", "int4", "--block-size", size, *CALIBRATED)
    for size in ("64", "128")
)
BUILDER = dataclasses.replace(c.GENAI_INT4, runner=ON_GENAI)
OPENVINO_INT8 = bundle("int8", "openvino", "--quantize", "int8")
OPENVINO_INT8_64 = bundle("int8, blocks of 64", "openvino", "--quantize", "int8", "--block-size", "64")
OPENVINO_FLOAT = bundle("float", "openvino")
INTEL_FLOAT = c.made_by(
    "OpenVINO float", SMOLLM2, "openvino_int8", "openvino", verb="make_float", runner=c.ON_OPENVINO
)
CONTENDERS = (
    *(GENAI_INT4, GENAI_64, GENAI_128, BUILDER),
    *(OPENVINO_INT8, OPENVINO_INT8_64, c.OPENVINO_INT8, OPENVINO_FLOAT, INTEL_FLOAT),
)
RATIOS = (
    ("genai: int4 / the builder's int4", GENAI_INT4, BUILDER),
    ("genai: int4, gptq, blocks of 64 / the builder's int4", GENAI_64, BUILDER),
    ("genai: int4, gptq, blocks of 128 / the builder's int4", GENAI_128, BUILDER),
    ("OpenVINO: int8 / optimum-intel int8", OPENVINO_INT8, c.OPENVINO_INT8),
    ("OpenVINO: int8, blocks of 64 / optimum-intel int8", OPENVINO_INT8_64, c.OPENVINO_INT8),
    ("OpenVINO: float / optimum-intel float", OPENVINO_FLOAT, INTEL_FLOAT),
)


def main() -> int:
    options = parser(__doc__, rounds=5, only="contenders", remake=c.REMAKE)
    options.add_argument("--threads", type=int, default=2, help="threads of each runtime (2)")
    chosen = options.parse_args()
    os.environ["BENCHMARK_THREADS"] = str(chosen.threads)  # of the children
    ensure(SMOLLM2)
    wanted, failed = c.prepared(c.selected(CONTENDERS, chosen.only, remake=chosen.remake))
    samples, broken = interleave({one.name: one.speed for one in wanted}, chosen.rounds)
    rows = [_row(one, samples[one.name]) for one in wanted if one.name in samples]
    document = {
        "tables": {"decode": rows, "ratios": ratios(samples)},
        "threads": chosen.threads,
        "samples": samples,
        "failed": failed | broken,
    }
    partial = bool(chosen.only) or chosen.threads != 2
    return publish("device_decode", document, as_json=chosen.json, partial=partial)


def _row(contender: c.Contender, samples: list[Row]) -> Row:
    decode = [sample[DECODE] for sample in samples]
    return {
        "file": contender.name,
        "decode tok/s": median(decode),
        "range": f"{min(decode):.0f}–{max(decode):.0f}",
        "processor ms a step": median([1000 * sample[PROCESSOR] for sample in samples]),
        "MB": round(contender.size / 1e6, 1),
    }


def ratios(samples: dict[str, list[Row]]) -> list[Row]:
    """How many times as fast ours decodes: medians over the rounds, by the clock and by processor time."""
    rows = []
    for claim, ours, theirs in RATIOS:
        if ours.name in samples and theirs.name in samples:
            pairs = list(zip(samples[ours.name], samples[theirs.name], strict=True))
            rows.append(
                {
                    "claim": claim,
                    "ratio": median([a[DECODE] / b[DECODE] for a, b in pairs]),
                    "by processor time": median([b[PROCESSOR] / a[PROCESSOR] for a, b in pairs]),
                }
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())

"""SmolLM2 in headless Chromium on WASM, 8 bits: our web bundle and the Optimum export through quantize_dynamic.

    python -m benchmarks.web [--rounds 3] [--json]

Both are loaded by the sample's page (samples/web) with transformers.js, in one browser, in turn (ours, the peer, the
peer, ours …), each time in a fresh page with 2 WASM threads: a prompt, then greedy steps that are timed one by one.
Node, npm and a Chromium have to be installed; npm puts transformers.js into the user's cache at the first run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import contenders as c
from benchmarks import transformers_js
from benchmarks.measure import Row, fresh, median, parser, publish, run, say
from benchmarks.models import ensure
from benchmarks.paths import SMOLLM2
from benchmarks.peers.protocol import THREADS

OURS, PEER = "onnx-gpt web:q8", "Optimum, quantize_dynamic int8"
PROMPT, STEPS = 64, 48
"""Tokens of the prompt and steps, after three unmeasured rounds of the prompt: code is still being compiled then."""


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3, help="samples of each (3)")
    chosen = options.parse_args()
    transformers_js.require_browser()  # before anything is made
    ensure(SMOLLM2)
    folders = {OURS: ours(), PEER: peer()}
    samples = measured(folders, chosen.rounds)
    steps = {name: [sample["step"] for sample in taken] for name, taken in samples.items()}
    rows = [
        {
            "file": name,
            "decode tok/s": median([1000 / step for step in steps[name]]),
            "decode range": f"{1000 / max(steps[name]):.1f}–{1000 / min(steps[name]):.1f}",
            "first token ms": median([sample["first"] for sample in samples[name]]),
            "load s": median([sample["loading"] / 1000 for sample in samples[name]]),
            "MB": round(sum(path.stat().st_size for path in (folder / "onnx").iterdir()) / 1e6, 1),
        }
        for name, folder in folders.items()
    ]
    pairs = list(zip(steps[OURS], steps[PEER], strict=True))
    claims = [{"claim": f"decode: {OURS} / {PEER}", "ratio": median([b / a for a, b in pairs])}]
    document = {"tables": {"web": rows, "ratios": claims}, "samples": samples, "failed": {}}
    return publish("web", document, as_json=chosen.json, partial=False)


def ours() -> Path:
    """Our bundle, its WASM model alone."""
    out = c.ARTIFACTS / "onnx-gpt-web-q8"
    if not out.exists():
        say(f"making {OURS}")
        run(c.optimize(SMOLLM2, out, "--no-parity", "--target", "web:q8"))
    return out


def peer() -> Path:
    """The peers' recipe, laid out for transformers.js."""
    out = c.ARTIFACTS / "optimum-web-q8"
    if not out.exists():
        quantized, exported = c.ORT_DYNAMIC.ready(), c.OPTIMUM_FLOAT.ready()
        partial = fresh(out.with_name(out.name + ".partial"))
        run([*c.peer("web_folder", "optimum")(), quantized, exported, partial])
        partial.rename(out)
    return out


def measured(folders: dict[str, Path], rounds: int) -> dict[str, list[Row]]:
    """Milliseconds of the median step, of the first token and of loading, by contender, in turn."""
    served = {f"bundle{i}": folder for i, folder in enumerate(folders.values())}
    shared = {
        "dtype": "q8",
        "device": "wasm",
        "threads": THREADS,
        "warm": 3,
        "max_new_tokens": STEPS,
        "min_new_tokens": STEPS,
    }
    prompt = [(17 * i) % 4000 + 100 for i in range(PROMPT)]
    # Every second round goes the other way round, so that a machine that gets busier or quieter favours neither.
    order = [i for turn in range(rounds) for i in sorted(range(len(folders)), reverse=turn % 2 == 1)]
    calls = [shared | {"folder": list(served)[i], "prompt": prompt} for i in order]
    answers = transformers_js.in_chromium(served, calls)
    samples: dict[str, list[Row]] = {name: [] for name in folders}
    for i, answer in zip(order, answers, strict=True):
        taken = {
            "step": median(answer["steps"]),
            "first": answer["first"],
            "loading": answer["loading"],
        }
        samples[list(folders)[i]].append(taken)
    return samples


if __name__ == "__main__":
    sys.exit(main())

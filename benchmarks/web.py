"""SmolLM2 in headless Chromium on WASM, 8 bits: our web bundle and the Optimum export through quantize_dynamic.

    python -m benchmarks.web [--rounds 3] [--modules node_modules] [--json]

Both are loaded by the sample's page (samples/web) with transformers.js, in one browser, in turn (ours, the peer, the
peer, ours …), each time in a fresh page with 2 WASM threads: a prompt, then greedy steps that are timed one by one.
The modules are those that `npm install` in samples/web leaves there; a Chromium has to be installed.
"""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks import contenders as c
from benchmarks.measure import ROOT, Row, fresh, median, parser, publish, run, say
from benchmarks.models import ensure
from benchmarks.paths import SMOLLM2
from benchmarks.peers.protocol import THREADS

WEB = ROOT / "samples" / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OURS, PEER = "onnx-gpt web:q8", "Optimum, quantize_dynamic int8"
PROMPT, STEPS = 64, 48
"""Tokens of the prompt and steps, after three unmeasured rounds of the prompt: code is still being compiled then."""


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3, help="samples of each (3)")
    options.add_argument("--modules", type=Path, default=WEB / "node_modules")
    chosen = options.parse_args()
    ensure(SMOLLM2)
    folders = {OURS: ours(), PEER: peer()}
    samples = measured(folders, chosen.rounds, chosen.modules)
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


def measured(folders: dict[str, Path], rounds: int, modules: Path) -> dict[str, list[Row]]:
    """Milliseconds of the median step, of the first token and of loading, by contender, in turn."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        raise SystemExit(f"no Chromium is installed (none of {', '.join(BROWSERS)})")
    served = {f"bundle{i}": folder for i, folder in enumerate(folders.values())}
    server: Any = runpy.run_path(str(WEB / "serve.py"))["server"](served | {"modules": modules})
    threading.Thread(target=server.serve_forever, daemon=True).start()
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
    request = {
        "runtime": "chromium",
        "url": f"http://127.0.0.1:{server.server_address[1]}",
        "executable": executable,
        "calls": calls,
    }
    done = subprocess.run(
        ["node", str(WEB / "headless.mjs"), str(modules)],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    server.shutdown()
    samples: dict[str, list[Row]] = {name: [] for name in folders}
    for i, answer in zip(order, json.loads(done.stdout.splitlines()[-1]), strict=True):
        taken = {
            "step": median(answer["steps"]),
            "first": answer["first"],
            "loading": answer["loading"],
        }
        samples[list(folders)[i]].append(taken)
    return samples


if __name__ == "__main__":
    sys.exit(main())

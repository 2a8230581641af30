"""The table of the device `wasm`, measured in headless Chromium, and what it predicts of SmolLM2 beside what is found.

    python -m benchmarks.device_wasm -o wasm.toml [--json]

`onnx-gpt measure --target web:q8` writes decoders of random weights, the page of samples/web times them with 2 WASM
threads, and `onnx-gpt measure --times` fits costs to what it found. The same page then times SmolLM2's bundle.
Node, npm and a Chromium have to be installed, as for `benchmarks.web`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import onnx_gpt
from benchmarks import transformers_js
from benchmarks.measure import Row, machine, parser, publish, say
from benchmarks.models import ensure
from benchmarks.paths import SMOLLM2
from benchmarks.peers.protocol import THREADS
from benchmarks.web import ours
from exporter import sources
from onnx_gpt.bundle.plan import plan
from onnx_gpt.planning.browser import ASKED, write_decoders
from onnx_gpt.planning.device import Device, toml_text
from onnx_gpt.planning.work import graph_of, work_of
from onnx_gpt.recipe import Recipe

MODEL = "web:q8"
TOKENS = (64, 512)
"""Before SmolLM2's steps, and of its prompts."""


def main() -> int:
    options = parser(__doc__)
    options.add_argument("-o", "--out", type=Path, required=True, help=".toml file of the device")
    chosen = options.parse_args()
    transformers_js.require_browser()  # before anything is made
    ensure(SMOLLM2)
    with tempfile.TemporaryDirectory() as folder:
        times, found = timed(Path(folder))
        saved = Path(folder) / "times.json"
        saved.write_text(json.dumps(times), "utf-8")
        device = onnx_gpt.measure("wasm", times=saved, by="python -m benchmarks.device_wasm")
    chosen.out.write_text(toml_text(device), "utf-8")
    document = {
        "tables": {"device_wasm": compared(device, found)},
        "device": device.model_dump(exclude_none=True),
        "times": times,
        "smollm2": found,
    }
    return publish("device_wasm", document, as_json=chosen.json, partial=False)


def timed(folder: Path) -> tuple[Row, Row]:
    """What the page finds of the decoders, times.json, and of SmolLM2: seconds by tokens of ``step`` and ``prompt``."""
    say("making decoders")
    asked = write_decoders(MODEL, folder / "decoders")
    smollm2 = folder / "smollm2"
    smollm2.mkdir()
    (smollm2 / "bundle").symlink_to(ours())
    own = asked | {"decoders": ["bundle"], "step": TOKENS, "prompt": TOKENS}
    (smollm2 / ASKED).write_text(json.dumps(own), "utf-8")
    say("timing")
    served = {"bundle": folder / "decoders", "smollm2": smollm2}
    calls = [{"device": "wasm", "measure": {"folder": name, "threads": THREADS}} for name in served]
    times, found = transformers_js.in_chromium(served, calls)
    on = f"{machine()['processor']}, {times['on']}"
    return {"on": on, "times": times["times"]}, found["times"][MODEL]["bundle"]


def compared(device: Device, found: Row) -> list[Row]:
    """Tokens a second, as predicted and as found."""
    assert device.measured is not None
    build = plan(Recipe(targets=(MODEL,))).builds[0]
    work = work_of(graph_of(sources.load(str(SMOLLM2)), build), build).of_model(MODEL)
    rows = []
    for tokens in TOKENS:
        step, prompt = (
            of(device.measured, tokens) or float("nan") for of in (work.step_seconds, work.prompt_seconds)
        )
        wanted = {f"decode after {tokens}": (1 / step, 1 / found["step"][str(tokens)])}
        wanted[f"prompt of {tokens}"] = (tokens / prompt, tokens / found["prompt"][str(tokens)])
        rows += [
            {
                "SmolLM2": what,
                "predicted tok/s": ours,
                "found tok/s": theirs,
                "predicted / found": ours / theirs,
            }
            for what, (ours, theirs) in wanted.items()
        ]
    return rows


if __name__ == "__main__":
    sys.exit(main())

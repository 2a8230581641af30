"""Times decoders on this machine, in any format.

They go through the passes of a job and are run by `DecoderSession`, each in a process of its own, so that what is timed
is what a bundle does: its kernels, its cache, its small nodes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoint import Checkpoint
from onnx_gpt.bundle.plan import plan
from onnx_gpt.bundle.writing import MODEL, save
from onnx_gpt.generation.decoder_session import DecoderSession
from onnx_gpt.machine import this_machine
from onnx_gpt.planning.decoders import CONTEXTS, LENGTHS, PROMPTS, STEPS, Sample, decoders
from onnx_gpt.planning.work import graph_of, quantized, work_of
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.recipe import Recipe
from onnx_gpt.report import peak_rss_bytes

FORMATS: Mapping[str, Mapping[str, Any]] = {
    "float32": {"quantize": "none"},
    "8/32": {"quantize": "int8"},
    "8/64": {"quantize": "int8", "block_size": 64},
    "4/32": {"quantize": "int4"},
    "4/64": {"quantize": "int4", "block_size": 64},
    "4/128": {"quantize": "int4", "block_size": 128},
    "w8a8": {"quantize": "w8a8"},
    "dynamic8": {"quantize": "dynamic8"},
}
"""What is measured, and the settings that make it."""


def samples_here(formats: Sequence[str], progress: Progress) -> dict[str, list[Sample]]:
    """Every decoder in every format, timed here.

    Args:
        formats: names in `FORMATS`.
    """
    samples: dict[str, list[Sample]] = {}
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-measure-") as folder:
        for shape, opened in decoders():
            for form in formats:
                progress.stage(f"{shape}, {form}")
                out = Path(folder) / f"{shape}-{form.replace('/', '-')}"
                samples.setdefault(form, []).append(_sample(opened, out, FORMATS[form]))
    return samples


def _sample(opened: Checkpoint, out: Path, settings: Mapping[str, Any]) -> Sample:
    build = plan(Recipe(**settings)).builds[0]
    graph = graph_of(opened, build, turned=False)
    out.mkdir()
    save(quantized(graph, build), out, Silent())
    command = [sys.executable, "-m", "onnx_gpt.planning.timing", str(out / MODEL)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(out)
    found = json.loads(done.stdout)
    step, prompt = ({int(c): s for c, s in found[name].items()} for name in ("step", "prompt"))
    return Sample(work_of(graph, build), step, prompt, found["memory"])


def timed(model: Path) -> dict[str, Any]:
    """Median seconds of a prompt of each length and of a step after each context, and the memory that all took."""
    session = DecoderSession(model)
    tokens = np.random.default_rng(0).integers(0, session.vocab_size or 2, max(LENGTHS))
    session.reserve(max(*LENGTHS, *CONTEXTS) + STEPS)
    prompt = {length: _median_seconds(session, 0, tokens[:length], PROMPTS) for length in LENGTHS}
    # The session's tokens are those of the longest prompt; the longest context comes first.
    step = {c: _median_seconds(session, c, tokens[:1], STEPS) for c in sorted(CONTEXTS, reverse=True)}
    return {"step": step, "prompt": prompt, "memory": peak_rss_bytes()}


def _median_seconds(session: DecoderSession, context: int, tokens: np.ndarray, runs: int) -> float:
    """Of appending tokens to so many of a session's."""
    times = []
    for _ in range(runs):
        session.truncate(context)
        start = time.perf_counter()
        session.append(tokens)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def this_runtime() -> str:
    """Machine, threads and runtime of what is timed here."""
    import onnxruntime as ort

    machine = this_machine()
    features = ", ".join(sorted(machine.features or ()))
    return f"{machine.cpu}, {machine.threads} threads ({features}), onnxruntime {ort.__version__}"


if __name__ == "__main__":
    print(json.dumps(timed(Path(sys.argv[1]))))

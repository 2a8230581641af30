"""Measures this machine: whole decoders of three shapes, random weights, in every format, and costs fitted to them.

Decoders go through the passes of a job and are run by `DecoderSession`, so that what is timed is what a bundle does:
its kernels, its cache, its small nodes. The weights of the wide one and of the deep one are more than caches hold; the
thin one has hardly any, which leaves what layers and attention take. The deep one is as far from the others as models
are, so that what the fit misses says something. Steps are timed after two contexts; prompts of whole pieces, since a
shorter one has too few tokens for reading weights not to matter. Medians count, as in `onnx-gpt bench`: the least of
many steps is a third quicker than what a user sees.
"""

from __future__ import annotations

import dataclasses
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
from exporter.families import describe
from exporter.weights import Weight
from onnx_gpt.bundle.plan import plan
from onnx_gpt.bundle.writing import MODEL, save
from onnx_gpt.generation.decoder_session import PIECE, DecoderSession
from onnx_gpt.machine import this_machine
from onnx_gpt.planning.device import Cost, Device, Measured, Timing, devices
from onnx_gpt.planning.work import Work, graph_of, quantized, work_of
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
CONTEXTS = (64, 512)
"""Tokens before the steps."""
LENGTHS = (PIECE, 3 * PIECE)
"""Tokens of the prompts."""
STEPS, PROMPTS = 24, 4
"""Runs of a step and of a prompt, of which the median counts."""

COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 1024,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "wide": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 8192,
    },
    "deep": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 16,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 8192,
    },
    "thin": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}
"""76, 61 and 1 million weights."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One decoder, timed.

    Attributes:
        work: what it costs.
        step, prompt: seconds of a step after so many tokens, and of a prompt of so many.
        memory: bytes of a process that did all that, at its peak.
    """

    work: Work
    step: Mapping[int, float]
    prompt: Mapping[int, float]
    memory: int


class Tiled(Weight):
    """Random rows, over and over: of any size, at no cost."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self._shape = shape
        drawn = np.random.default_rng(seed).standard_normal((min(shape[0], 251), *shape[1:]))
        self._tile = (drawn / np.sqrt(shape[-1])).astype(np.float32) if len(shape) > 1 else np.ones(1)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._tile[np.arange(start, stop) % len(self._tile)].astype(np.float32)


def measure(
    name: str, *, formats: Sequence[str] = tuple(FORMATS), by: str = "", progress: Progress | None = None
) -> Device:
    """Time this machine: minutes, and it should have nothing else to do.

    Args:
        name: of the device; that of one that comes with the package gives this one with new figures.
        formats: names in `FORMATS`.
        by: what the file says it was written by.

    Returns:
        The device, for `onnx_gpt.planning.device.toml_text`.
    """
    progress = progress or Silent()
    samples: dict[str, list[Sample]] = {}
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-measure-") as folder:
        for shape, sizes in SHAPES.items():
            for form in formats:
                progress.stage(f"{shape}, {form}")
                out = Path(folder) / f"{shape}-{form.replace('/', '-')}"
                samples.setdefault(form, []).append(_sample(decoder(sizes), out, FORMATS[form]))
    base = min(sample.memory - sample.work.size for own in samples.values() for sample in own)
    fits = {form: _fitted(form, own, max(base, 0)) for form, own in samples.items()}
    measured = Measured(
        on=_machine(),
        by=by or "onnx-gpt measure",
        misfit=round(max(misfit for _, misfit in fits.values()), 3),
        base=float(max(base, 0)),
        formats={form: timing for form, (timing, _) in fits.items()},
    )
    known = devices().get(name)
    if known is not None:
        return known.model_copy(update={"measured": measured})
    return Device(
        name=name,
        title=f"this machine, {this_machine().cpu}",
        targets=("ort",),
        schemes=(*dict.fromkeys(str(FORMATS[form]["quantize"]) for form in formats), "keep"),
        measure="onnx-gpt measure -o FILE.toml",
        measured=measured,
    )


def decoder(sizes: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of random weights."""
    empty = Checkpoint("measure:decoder", {**COMMON, **sizes}, {})
    parts = dict(describe(empty).parts()).values()
    weights = {part.name: Tiled(part.stored_shape, seed) for seed, part in enumerate(parts)}
    return dataclasses.replace(empty, weights=weights)


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


def _fitted(form: str, samples: Sequence[Sample], base: float) -> tuple[Timing, float]:
    """A format's costs, and how far the worst sample is from them."""
    steps = [(s.work.step_row(c), s.step[c]) for s in samples for c in CONTEXTS]
    prompts = [(s.work.prompt_row(n), s.prompt[n] / n) for s in samples for n in LENGTHS]
    step, first = fit(form, steps)
    prompt, second = fit(form, prompts)
    widest = max(samples, key=lambda sample: sample.work.size)
    memory = max(widest.memory - base, 1.0) / widest.work.size
    return Timing(step=step, prompt=prompt, memory=float(f"{memory:.3g}")), max(first, second)


def fit(form: str, rows: Sequence[tuple[Mapping[str, float], float]]) -> tuple[Cost, float]:
    """The costs, none below 0, whose relative errors are least in squares; and the largest relative error.

    Args:
        rows: what was done, and its seconds. Weights of other formats count as of this one: there are few.
    """
    names = ("weight", "layer", "attended")
    given = [{**row, "weight": sum(n for name, n in row.items() if name not in names[1:])} for row, _ in rows]
    table = np.array(
        [[row[name] / seconds for name in names] for row, (_, seconds) in zip(given, rows, strict=True)]
    )
    live = list(range(len(names)))
    costs = np.zeros(len(names))
    while live:
        found = np.linalg.lstsq(table[:, live], np.ones(len(rows)), rcond=None)[0]
        if (found >= 0).all():
            costs[live] = found
            break
        live.pop(int(found.argmin()))
    misfit = float(np.abs(table @ costs - 1).max())
    return Cost(**{name: float(f"{1e9 * cost:.4g}") for name, cost in zip(names, costs, strict=True)}), misfit


def _machine() -> str:
    import onnxruntime as ort

    machine = this_machine()
    features = ", ".join(sorted(machine.features or ()))
    return f"{machine.cpu}, {machine.threads} threads ({features}), onnxruntime {ort.__version__}"


if __name__ == "__main__":
    print(json.dumps(timed(Path(sys.argv[1]))))

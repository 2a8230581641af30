"""What making a bundle costs: wall time and peak memory of whole processes, ours and the peer's in turn.

    python -m benchmarks.make_time [--rounds 3] [--only int4] [--json]

fp32: SmolLM2-135M from safetensors, against mobius. int4: a Llama of 1.07 B parameters from two bf16 shards,
against the genai builder. Start-up and imports count; parity (`--no-parity`) does not: the peers have none.
What no peer does the same way is measured alone: calibrating SmolLM2 on 128 windows of 512 tokens, and every scheme
on a GPT-2 of 124 M parameters (random weights).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.contenders import GPT2_SCHEMES, Command, optimize, peer
from benchmarks.measure import Child, Row, fresh, holding, interleave, median, parser, publish, run, size_of
from benchmarks.paths import CACHE, GPT2, LLAMA_1B, SMOLLM2

OUT = CACHE / "made"


@dataclass(frozen=True)
class Job:
    """One artifact, made by us and, where there is one, by a peer."""

    name: str
    ours: Callable[[], Command]
    peer_name: str = ""
    peer: Callable[[], Command] | None = None


def alone(source: Path, name: str, *options: str) -> Job:
    return Job(f"{name} {' '.join(options)}", lambda: optimize(source, OUT, "--no-parity", *options))


JOBS = (
    Job(
        "SmolLM2-135M → fp32",
        lambda: optimize(SMOLLM2, OUT, "--no-parity"),
        "mobius fp32",
        lambda: [*peer("mobius", "mobius")(), "make", SMOLLM2, OUT],
    ),
    Job(
        "Llama 1.07B bf16 → int4",
        lambda: optimize(LLAMA_1B, OUT, "--no-parity", "--quantize", "int4"),
        "genai builder int4",
        lambda: [*peer("genai_builder", "genai")(), "make", LLAMA_1B, OUT],
    ),
    *(
        alone(
            SMOLLM2, "SmolLM2-135M,", "--quantize", scheme, "--method", "gptq", "--calibration-windows", "128"
        )
        for scheme in ("int4", "w8a8")
    ),
    *(alone(GPT2, "GPT-2 124M,", "--quantize", *options.split()) for options in GPT2_SCHEMES),
)


def main() -> int:
    chosen = parser(__doc__, rounds=3, only="jobs").parse_args()
    named = holding(chosen.only)
    # A child, because making the models takes memory: see measure.py.
    run([sys.executable, "-m", "benchmarks.models", "smollm2", "llama-1b", "gpt2"])
    rows: list[Row] = []
    samples: dict[str, dict[str, list[float]]] = {}
    failed: dict[str, str] = {}
    for job in (job for job in JOBS if named(job.name)):
        runs, sizes, broken = measure(job, chosen.rounds)
        rows += rows_of(job, runs, sizes)
        samples[job.name] = {name: [round(run.seconds, 2) for run in own] for name, own in runs.items()}
        failed |= broken
    document = {"tables": {"make_time": rows}, "samples": samples, "failed": failed}
    return publish("make_time", document, as_json=chosen.json, partial=bool(chosen.only))


def measure(job: Job, rounds: int) -> tuple[dict[str, list[Child]], dict[str, int], dict[str, str]]:
    """Runs by who made it, ours and the peer's, bytes of what was made, and what failed."""
    commands = {"onnx-gpt": job.ours()}
    if job.peer is not None:
        commands[job.peer_name] = job.peer()
    sizes: dict[str, int] = {}

    def sample(name: str) -> Child:
        fresh(OUT)
        child = run(commands[name])
        sizes[name] = size_of(OUT)
        shutil.rmtree(OUT)
        return child

    runs, failed = interleave({name: partial(sample, name) for name in commands}, rounds)
    return runs, sizes, failed


def rows_of(job: Job, samples: dict[str, list[Child]], sizes: dict[str, int]) -> list[Row]:
    """Medians for us and for the peer. Ratios are over the peer's."""
    theirs = samples.get(job.peer_name)
    return [
        {
            "job": job.name,
            "by": name,
            "seconds": seconds(runs),
            "CPU seconds": median([run.cpu_seconds for run in runs]),
            "× time": seconds(runs) / seconds(theirs) if theirs else None,
            "peak RSS MB": peak(runs) / 1e6,
            "× memory": peak(runs) / peak(theirs) if theirs else None,
            "MB": round(sizes[name] / 1e6, 1),
        }
        for name, runs in samples.items()
    ]


def seconds(runs: list[Child]) -> float:
    return median([run.seconds for run in runs])


def peak(runs: list[Child]) -> float:
    return median([run.peak_rss_bytes for run in runs])


if __name__ == "__main__":
    sys.exit(main())

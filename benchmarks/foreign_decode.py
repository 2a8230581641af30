"""Two bundles in one process: how fast the first decodes, as a multiple of the second. Or what ops a file has.

python -m benchmarks.foreign_decode BUNDLE OTHER ROUNDS
python -m benchmarks.foreign_decode count FOLDER
"""

from __future__ import annotations

import collections
import json
import sys
import time
from pathlib import Path
from typing import Any

import onnx_ir as ir

from benchmarks.measure import median
from benchmarks.peers.protocol import THREADS, TOKEN
from onnx_gpt import Generator

CONTEXT, STEPS = 256, 32


def ratio(bundle: Path, other: Path, rounds: int) -> dict[str, Any]:
    """Both decode STEPS tokens in turn at a context of CONTEXT; the ratio of the medians of tokens per second."""
    generators = [Generator(path, threads=THREADS) for path in (bundle, other)]
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for i, generator in enumerate(generators):
            generator.reset()
            generator.session.reserve(CONTEXT + STEPS)
            generator.prefill([TOKEN + j for j in range(CONTEXT)])
            start = time.perf_counter()
            for _ in range(STEPS):
                generator.step(TOKEN)
            if turn:  # the first round warms up
                seconds[i].append(time.perf_counter() - start)
    ours, theirs = (STEPS / median(taken) for taken in seconds)
    return {"ratio": round(ours / theirs, 3), "tokens_per_second": ours, "other_tokens_per_second": theirs}


def count(folder: Path) -> dict[str, Any]:
    nodes = list(ir.load(folder / "model.onnx").graph)
    return {"nodes": len(nodes), "ops": dict(collections.Counter(node.op_type for node in nodes))}


if __name__ == "__main__":
    first, second, *more = sys.argv[1:]
    document = count(Path(second)) if first == "count" else ratio(Path(first), Path(second), int(more[0]))
    print(json.dumps(document))

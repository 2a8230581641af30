"""Two bundles in one process: how fast the first decodes, as a multiple of the second. Or what ops a file has.

python -m benchmarks.foreign_decode BUNDLE OTHER ROUNDS
python -m benchmarks.foreign_decode count FOLDER
"""

from __future__ import annotations

import collections
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import onnx_ir as ir

from benchmarks.measure import median
from benchmarks.peers.protocol import TOKEN
from onnx_gpt import Generator

CONTEXT, STEPS = 64, 4


def ratio(bundle: Path, other: Path, rounds: int) -> dict[str, Any]:
    """How many times as fast as the other a bundle decodes; the mean of both orders of loading, which matters.

    ``same``: whether both run the same operators on weights of the same dims, so that the ratio is noise.
    """
    first, second = in_turn(bundle, other, rounds), 1 / in_turn(other, bundle, rounds)
    return {
        "ratio": round(math.sqrt(first * second), 3),
        "orders": [round(first, 3), round(second, 3)],
        "same": kernels(bundle) == kernels(other),
    }


def kernels(bundle: Path) -> collections.Counter[Any]:
    """Operators, each with the dims of its weights, by how many there are; bodies of functions too."""
    model = ir.load(bundle / "model.onnx")
    bodies = [model.graph, *model.functions.values()]
    return collections.Counter(
        (
            node.domain,
            node.op_type,
            tuple(str(v.shape) for v in node.inputs if v is not None and v.const_value is not None),
        )
        for body in bodies
        for node in body
    )


def in_turn(bundle: Path, other: Path, rounds: int) -> float:
    """Both decode STEPS tokens in turn, on one thread, in processor time; the median of the turns' ratios."""
    generators = [Generator(path, threads=1) for path in (bundle, other)]
    seconds: list[list[float]] = [[], []]
    for generator in generators:
        generator.session.reserve(CONTEXT + STEPS * (rounds + 1))
        generator.prefill([TOKEN + i for i in range(CONTEXT)])
    for turn in range(rounds + 1):
        for i in (0, 1) if turn % 2 else (1, 0):
            start = time.process_time()
            for _ in range(STEPS):
                generators[i].step(TOKEN)
            if turn:  # the first round warms up
                seconds[i].append(time.process_time() - start)
    ours, theirs = seconds
    turns = [b / a for a, b in zip(ours, theirs, strict=True)]
    return median(turns)


def count(folder: Path) -> dict[str, Any]:
    nodes = list(ir.load(folder / "model.onnx").graph)
    return {"nodes": len(nodes), "ops": dict(collections.Counter(node.op_type for node in nodes))}


if __name__ == "__main__":
    first, second, *more = sys.argv[1:]
    document = count(Path(second)) if first == "count" else ratio(Path(first), Path(second), int(more[0]))
    print(json.dumps(document))

"""Passes alone at the shape of seven billion parameters, and how their work grows with layers.

    python -m benchmarks.passes [--json]

The graph is a Llama as torch's older exporter spells it (spelled_llama.py), its weights unread. Seconds are those of
the passes, from the graph as it is to the lowered one; memory is the process's high-water mark, imports included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from typing import Any

from benchmarks.measure import Row, interleave, median, parser, publish, run

FEW, MANY = 12, 48
CASES = {
    "7B, passes alone": (32, False),
    "7B, every rewrite proven": (32, True),
    f"{FEW} layers": (FEW, False),
    f"{MANY} layers": (MANY, False),
}


def main() -> int:
    options = parser(__doc__, rounds=3)
    options.add_argument("--child", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.child:
        print(json.dumps(child(chosen.child)))
        return 0
    found, failed = interleave({name: partial(measure, name) for name in CASES}, chosen.rounds)
    rows: list[Row] = [_row(name, runs) for name, runs in found.items()]
    tried = {row["graph"]: row["rules tried"] for row in rows}
    few, many = tried[f"{FEW} layers"], tried[f"{MANY} layers"]
    growth = [{"layers": f"{FEW} → {MANY}", "rules tried": f"{few} → {many}", "ratio": round(many / few, 3)}]
    document = {"tables": {"passes": rows, "growth": growth}, "failed": failed}
    return publish("passes", document, as_json=chosen.json, partial=False)


def measure(case: str) -> Row:
    done = run([sys.executable, "-m", "benchmarks.passes", "--child", case])
    return {**done.document(), "peak_rss_bytes": done.peak_rss_bytes}


def _row(name: str, runs: list[Row]) -> Row:
    return {
        "graph": name,
        "parameters, billions": runs[0]["parameters"] / 1e9,
        "nodes": f"{runs[0]['before']} → {runs[0]['after']}",
        "attentions": runs[0]["attentions"],
        "rules tried": runs[0]["tried"],
        "seconds": median([row["seconds"] for row in runs]),
        "peak MB": round(median([row["peak_rss_bytes"] for row in runs]) / 1e6),
    }


def child(case: str) -> dict[str, Any]:
    """One case in this process: what the passes did and how long they took."""
    from benchmarks.spelled_llama import Shape, spelled_llama
    from graph_passes import ORT_PIPELINE, run_pipeline
    from onnx_gpt.exporting import CANONICAL_PIPELINE

    layers, verify = CASES[case]
    shape = Shape(layers=layers)
    model = spelled_llama(shape)
    before = len(model.graph)
    pipeline = f"{CANONICAL_PIPELINE.replace('{context}', '{context_length=4096}')}, {ORT_PIPELINE}"
    started = time.perf_counter()
    reports = run_pipeline(model, pipeline, verify=verify)
    return {
        "seconds": time.perf_counter() - started,
        "parameters": shape.parameters,
        "before": before,
        "after": len(model.graph),
        "attentions": sum(node.op_type == "GroupQueryAttention" for node in model.graph),
        "tried": sum(report.tried for report in reports),
    }


if __name__ == "__main__":
    sys.exit(main())

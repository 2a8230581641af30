"""Foreign graphs, optimized: what is left of them, what it took, how near and how fast the result is.

    python -m benchmarks.foreign [--only NAME] [--rounds 40] [--json]

Every graph of foreign_models.py goes through ``onnx-gpt optimize --no-parity`` in a process of its own, the passes' own
proof included. KL is against the graph as its exporter left it (onnxruntime, optimizations off) and against PyTorch
with the same weights. Whether it runs the same kernels as the graph that our own family gives for the same weights is
counted, and both decode: in one process on one thread, a few steps in turn, in processor time, which other load does
not change much. The peers get the first graph, Optimum's SmolLM2.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.contenders import optimize, our_command, peer
from benchmarks.foreign_models import FOREIGN, ForeignGraph, graphs
from benchmarks.measure import ChildFailedError, Row, fresh, holding, parser, publish, run, say

OUT = FOREIGN / "optimized"
OURS = FOREIGN / "by-family"
ATTENTION = "com.microsoft::GroupQueryAttention"
PEERS = {
    "onnxsim 0.8.1": "simplify",
    "onnxslim 0.1.98": "slim",
    "onnxruntime's transformers optimizer": "ort",
}
ATTENTIONS = ("Attention", "GroupQueryAttention", "MultiHeadAttention")


def main() -> int:
    chosen = parser(__doc__, rounds=40, only="graphs").parse_args()
    named = holding(chosen.only)
    wanted = [graph for graph in graphs() if named(graph.name)]
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for graph in wanted:
        say(f"== {graph.name}")
        try:
            rows.append(measure(graph, chosen.rounds))
        except ChildFailedError as error:
            failed[graph.name] = str(error)[-1500:]
    peers, broken = ([], {}) if chosen.only else measure_peers(wanted[0])
    document = {"tables": {"foreign": rows, "peers": peers}, "failed": failed | broken}
    return publish("foreign", document, as_json=chosen.json, partial=bool(chosen.only))


def measure(graph: ForeignGraph, rounds: int) -> Row:
    """A row of the table. Raises `ChildFailedError` where a step fails."""
    model, own, out = graph.model(), graph.own(), OUT / graph.name
    context = () if (model.parent / "config.json").exists() else ("--context-length", "1024")
    child = run(optimize(model, fresh(out), "--no-parity", *context))
    report = json.loads((out / "report.json").read_text("utf-8"))
    decode = [sys.executable, "-m", "benchmarks.foreign_decode", out, by_family(own), str(rounds)]
    compared = run(decode).document()
    stages = {stage["name"]: stage for stage in report["stages"]}
    return {
        "graph": graph.name,
        "nodes": stages["export"]["nodes"],
        "left": report["graph"]["nodes"],
        "by family": nodes_by_family(graph),
        "attentions": f"{report['graph']['ops'].get(ATTENTION, 0)} of {graph.layers}",
        "seconds": round(child.seconds, 1),
        "CPU seconds": round(child.cpu_seconds, 1),
        "peak RSS MB": round(child.peak_rss_bytes / 1e6),
        "KL to original": mean_kl(out, model),
        "KL to PyTorch": mean_kl(out, own),
        "kernels of ours": "same" if compared["same"] else "others",
        "× decode of ours": compared["ratio"],
    }


def by_family(own: Path) -> Path:
    """What our own family makes of the same weights, made once."""
    made = OURS / own.parent.name if own.is_file() else OURS / own.name
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        run(optimize(own, made, "--no-parity"))
    return made


def nodes_by_family(graph: ForeignGraph) -> int:
    report: dict[str, Any] = json.loads((by_family(graph.own()) / "report.json").read_text("utf-8"))
    return int(report["graph"]["nodes"])


def mean_kl(bundle: Path, against: Path) -> float:
    """Mean KL divergence, nats a token, whatever the verdict is."""
    any_verdict = ("--max-kl", "1e9", "--min-top1", "0", "--max-perplexity-ratio", "1e9")
    command = our_command(
        "validate", bundle, "--against", against, "--json", "--tokens", "1024", *any_verdict
    )
    child = run(command)
    return float(json.loads(child.stdout)["mean_kl"])


def measure_peers(graph: ForeignGraph) -> tuple[list[Row], dict[str, str]]:
    """What the others leave of a graph."""
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for name, verb in PEERS.items():
        say(f"== {name}")
        out = fresh(FOREIGN / "peer")
        try:
            child = run([*peer("graph_tools", "graph_tools")(), verb, graph.model(), out])
            counts = run([sys.executable, "-m", "benchmarks.foreign_decode", "count", out]).document()
        except ChildFailedError as error:
            failed[name] = str(error)[-1500:]
            continue
        rows.append(
            {
                "peer": name,
                "left": counts["nodes"],
                "attentions": f"{sum(counts['ops'].get(op, 0) for op in ATTENTIONS)} of {graph.layers}",
                "seconds": round(child.seconds, 1),
                "CPU seconds": round(child.cpu_seconds, 1),
                "peak RSS MB": round(child.peak_rss_bytes / 1e6),
            }
        )
        shutil.rmtree(out)
    return rows, failed


if __name__ == "__main__":
    sys.exit(main())

"""What a search of formats finds for a budget, beside formats chosen by hand: size, KL expected and KL measured.

    python -m benchmarks.search [--budget size=90MB …] [--work DIR] [--tokens 4096] [--json]

On the permuted SmolLM2. The first budget pays for the measurements; later ones, and later runs, find them in DIR.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import contenders as c
from benchmarks.measure import Row, parser, publish
from benchmarks.models import ensure
from benchmarks.paths import CACHE, PERMUTED, SMOLLM2
from benchmarks.quality import STUDIES, measure
from benchmarks.text import evaluation_windows

BUDGETS = ("size=90MB", "size=100MB")
BY_HAND = (c.OURS_INT4_90MB_PERMUTED, c.OURS_INT4_100MB_PERMUTED)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--budget", action="append", help="as optimize takes it (size=90MB and size=100MB)")
    options.add_argument("--work", type=Path, default=CACHE / "search", help="where measurements are kept")
    options.add_argument("--tokens", type=int, default=4096, help="predicted tokens, at least (4096)")
    chosen = options.parse_args()
    ensure(SMOLLM2, PERMUTED)
    searched = [
        c.ours(f"onnx-gpt {budget} (permuted)", PERMUTED, "--budget", budget, "--work", str(chosen.work))
        for budget in chosen.budget or BUDGETS
    ]
    wanted, failed = c.prepared([*searched, *BY_HAND])
    windows = evaluation_windows(SMOLLM2 / "tokenizer.json", chosen.tokens)
    rows, broken = measure(STUDIES["smollm2"], wanted, windows)
    by_name = {contender.name: contender for contender in wanted}
    table = [with_expectation(row, by_name[row["file"]].path) for row in rows]
    document = {"tables": {"search": table}, "failed": failed | broken}
    return publish("search", document, as_json=chosen.json, partial=bool(chosen.budget))


def with_expectation(row: Row, bundle: Path) -> Row:
    """A row of `quality` with what the search expected, where there was one."""
    search = json.loads((bundle / "report.json").read_text("utf-8")).get("search", {})
    return {**row, "KL expected": search.get("chosen", {}).get("measured_kl")}


if __name__ == "__main__":
    sys.exit(main())

"""The table of targets: a row for each model and its weights, a column for each target, in docs/targets.md.

Every cell is a row of `benchmarks.targets`; what has no row was not run, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Row, machine, table
from benchmarks.runtimes import RUNTIMES

DOCUMENT = ROOT / "docs" / "targets.md"
BEGIN, END = "<!-- python -m benchmarks.targets: begin -->", "<!-- python -m benchmarks.targets: end -->"


def matrix(rows: Sequence[Row]) -> list[Row]:
    """A row for each model and weights, a column for each target."""
    cells = {(row["model"], row["weights"], row["target"]): row for row in rows}
    names = list(dict.fromkeys((row["model"], row["weights"]) for row in rows))
    return [
        {"model": model, "weights": weights}
        | {target: _text(cells.get((model, weights, target))) for target in RUNTIMES}
        for model, weights in names
    ]


def _text(row: Mapping[str, Any] | None) -> str:
    if row is None or row["verdict"] == "not run":
        return "not run"
    if row["verdict"] in ("not made", "refused", "fails"):
        return str(row["verdict"])
    told = f"{row['equal']} equal"
    if row["verdict"] != "equal":
        told = f"{row['equal']} of {row['of']}, {row['verdict']}"
    # Random models are too small to time.
    timed = row["decode tok/s"] and str(row["model"]).startswith("sample:")
    return f"{told}; {row['MB']:.3g} MB" + (f"; {row['decode tok/s']:.0f} tok/s" if timed else "")


def write_section(rows: Sequence[Row], document: Path = DOCUMENT) -> None:
    """Put the table between its marks in docs/targets.md."""
    ran = [row for row in rows if row["verdict"] != "not run"]
    equal = sum(row["verdict"] == "equal" for row in ran)
    facts = machine()
    head = (
        f"{len(ran)} bundles were tried; {equal} loaded and gave every token as expected. {facts['processor']}, "
        f"{facts['cores']} cores, load {facts['load_average']}."
    )
    why = [
        f"- {row['model']}, {row['weights']}, {row['target']}: {row['verdict']}. {row['why'] or ''}".rstrip()
        for row in rows
        if row["verdict"] != "equal"
    ]
    parts = [BEGIN, head, table(matrix(rows)), *(["\n".join(why)] if why else []), END]
    text = document.read_text("utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    document.write_text(before + "\n\n".join(parts) + after, "utf-8")

"""The tables of targets: every cell in docs/targets.md, and what of them fits a page in README.md.

Every cell is a row of `benchmarks.targets`; what has no row was not run, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Row, machine, table
from benchmarks.runtimes import RUNTIMES

DOCUMENT, README = ROOT / "docs" / "targets.md", ROOT / "README.md"
BEGIN, END = "<!-- python -m benchmarks.targets: begin -->", "<!-- python -m benchmarks.targets: end -->"
TOKENS = 32
"""Greedy tokens that are compared in each cell, where the text does not end before."""
TOLD = ("not made", "refused", "fails")
"""Verdicts that are all there is to say."""


def matrix(rows: Sequence[Row]) -> list[Row]:
    """A row for each model and weights, a column for each target."""
    cells = _cells(rows)
    names = list(dict.fromkeys((row["model"], row["weights"]) for row in rows))
    return [
        {"model": model, "weights": weights}
        | {target: _text(cells.get((model, weights, target))) for target in RUNTIMES}
        for model, weights in names
    ]


def equal_tokens(rows: Sequence[Row]) -> list[Row]:
    """A column for each target: equal tokens of the float bundle · of the int8 one; a row for models that are alike."""
    cells = _cells(rows)
    alike: dict[tuple[str, ...], list[str]] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        told = (
            " · ".join(_brief(cells.get((model, weights, target))) for weights in ("float", "int8"))
            for target in RUNTIMES
        )
        alike.setdefault(tuple(told), []).append(model)
    return [
        {"tokens equal: float · int8": ", ".join(models)} | dict(zip(RUNTIMES, told, strict=True))
        for told, models in sorted(alike.items(), key=lambda entry: -len(entry[1]))
    ]


def speeds(rows: Sequence[Row], model: str) -> list[Row]:
    """A row for each target of one model: size, prefill and decode of its bundles."""
    cells = _cells(rows)
    found = []
    for target in RUNTIMES:
        line: Row = {model: target}
        for weights in ("float", "int8"):
            row = cells.get((model, weights, target)) or {}
            line |= {
                f"{weights} MB": row.get("MB"),
                f"{weights} prefill tok/s": row.get("prefill tok/s"),
                f"{weights} decode tok/s": row.get("decode tok/s"),
            }
        found.append(line)
    return found


def _cells(rows: Sequence[Row]) -> dict[tuple[str, str, str], Row]:
    return {(row["model"], row["weights"], row["target"]): row for row in rows}


def _text(row: Mapping[str, Any] | None) -> str:
    if row is None or row["verdict"] == "not run":
        return "not run"
    if row["verdict"] in TOLD:
        return str(row["verdict"])
    told = f"{row['equal']} equal"
    if row["verdict"] != "equal":
        told = f"{row['equal']} of {row['of']}, {row['verdict']}"
    told += f"; {row['MB']:.3g} MB"
    # Random models are too small to time.
    speeds = [row.get("prefill tok/s"), row.get("decode tok/s")]
    if any(speeds) and str(row["model"]).startswith("sample:"):
        told += f"; {' / '.join('–' if speed is None else f'{speed:.0f}' for speed in speeds)} tok/s"
    return told


def _brief(row: Mapping[str, Any] | None) -> str:
    if row is None or row["verdict"] == "not run":
        return "not run"
    if row["verdict"] in TOLD:
        return str(row["verdict"])
    # A text may end earlier: all of fewer tokens are equal then.
    whole = row["verdict"] == "equal" and row["of"] == TOKENS
    return str(row["equal"]) if whole else f"{row['equal']} of {row['of']}"


def write_sections(rows: Sequence[Row], document: Path = DOCUMENT, readme: Path = README) -> None:
    """Put the tables between their marks in docs/targets.md and in README.md."""
    ran = [row for row in rows if row["verdict"] != "not run"]
    equal = sum(row["verdict"] == "equal" for row in ran)
    facts = machine()
    head = (
        f"{len(ran)} bundles were tried; {equal} loaded and gave every token as expected. {facts['processor']}, "
        f"{facts['cores']} cores, load {facts['load_average']}."
    )
    why = [
        f"- {row['model']}, {row['weights']}, {row['target']}: {row['verdict']}. {row['why'] or ''}".rstrip()
        for row in ran
        if row["verdict"] != "equal"
    ]
    _write(document, [head, table(matrix(rows)), *(["\n".join(why)] if why else [])])
    timed = [model for model in ("sample:smollm2",) if any(row["model"] == model for row in ran)]
    _write(readme, [head, table(equal_tokens(rows)), *(table(speeds(rows, model)) for model in timed)])


def _write(document: Path, parts: Sequence[str]) -> None:
    text = document.read_text("utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    document.write_text(before + "\n\n".join([BEGIN, *parts, END]) + after, "utf-8")

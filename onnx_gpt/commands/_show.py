"""Tables for people, JSON for programs, progress on stderr."""

from __future__ import annotations

import functools
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from onnx_gpt.parity.limits import MAX_FACTOR, P99_FACTOR
from onnx_gpt.parity.noise import FACTOR, WORST_FACTOR
from onnx_gpt.report import Check, Parity, Report

plain_console = functools.partial(Console, highlight=False, markup=False, emoji=False)
"""A console that prints names of files as they are: [red] and :tada: mean nothing in them."""

stderr = plain_console(stderr=True)


def print_json(value: Any) -> None:
    """One document on stdout; a number that is none, which JSON has no word for, is null."""
    print(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def echo(title: str, settings: Mapping[str, Any]) -> None:
    """The resolved settings, before work starts."""
    stderr.print(title, style="bold")
    for key, value in settings.items():
        text = "  ".join(f"{k}={v:g}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        stderr.print(f"  {key:<15} {text}")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", *, figures: bool = True
) -> None:
    """A table on stdout; the first column is a name, the others are figures, or text."""
    table = Table(title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i and figures else "left", no_wrap=bool(i) and figures)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # Text: brackets are brackets, not markup
    plain_console(width=None if sys.stdout.isatty() else 110).print(table)


class Bar:
    """Draws stages and their progress on a terminal; one line a stage elsewhere."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None, what="")
        self._live = stderr.is_terminal
        self._started = time.monotonic()

    def stage(self, name: str) -> None:
        if not self._live:
            stderr.print(f"  {time.monotonic() - self._started:6.1f} s  {name}")
        self._progress.reset(self._task, description=name, total=None, what="")

    def advance(self, done: int, total: int, what: str) -> None:
        self._progress.update(self._task, completed=done, total=total, what=what)


@contextmanager
def progress_bar() -> Iterator[Bar]:
    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f}/{task.total} {task.fields[what]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        yield Bar(progress)


def show_report(report: Report, out: object) -> None:
    """A report as tables."""
    rows = [
        (stage.name, f"{stage.seconds:.2f}", f"{stage.peak_rss_bytes / 1e6:.0f}", stage.nodes or "")
        for stage in report.stages
    ]
    print_table(("stage", "seconds", "peak MB", "nodes"), rows)
    print()
    print_table(
        ("file", "MB"), [(name, f"{size / 1e6:.2f}") for name, size in report.files.items()], str(out)
    )
    print()
    if report.search:
        show_search(report.search)
        print()
    if isinstance(report.parity, Parity):
        show_parity(report.parity)
    else:
        print("parity: not run")
    if report.predicted:
        print()
        show_predicted(report.predicted)
    for target, digest in report.certificates.items():
        print(f"certificate of {target}: {digest}")


def show_search(search: Mapping[str, Any]) -> None:
    """The frontier of size and KL that a budget was solved on, and where on it the bundle is."""
    points = [("", point) for point in search["frontier"]] + [("chosen", search["chosen"])]
    rows = [
        (f"{point['bytes'] / 1e6:.1f} MB", f"{point['kl']:.3g}", f"{1 / point['step_seconds']:.0f}", name)
        for name, point in sorted(points, key=lambda entry: float(entry[1]["bytes"]))
    ]
    print_table(("size", "mean KL, expected", "tokens a second, expected", ""), rows)


PREDICTED = {
    "size": ("size, MB", 1e-6),
    "own_kl": ("mean KL of this step", 1.0),
    "kl": ("mean KL in all", 1.0),
}
"""Figures of a plan that a report shows; speed and memory are what `bench` measures."""


def show_predicted(predicted: Mapping[str, Any]) -> None:
    """What a plan expected, beside what came of it."""
    rows = []
    for key, (name, scale) in PREDICTED.items():
        one = predicted.get(key)
        if one is not None:
            low, value, high = (f"{scale * one[part]:.3g}" for part in ("low", "value", "high"))
            measured = one["measured"]
            told = "not measured" if measured is None else f"{scale * measured:.3g}"
            rows.append(
                (
                    name,
                    f"{value} ({low}–{high})",
                    told,
                    {None: "", True: "held", False: "missed"}[one["held"]],
                )
            )
    print_table(("plan", "expected", "measured", ""), rows)


def show_parity(parity: Parity) -> None:
    """The parity tables, with each limit beside what it limits, and what was found wrong."""
    max_kl, min_top1, max_ratio = parity.limits.numbers()
    ratio = parity.perplexity / parity.reference_perplexity
    rows: list[tuple[str, str, str]] = [
        ("mean KL (nats a token)", f"{parity.mean_kl:.3g} ± {parity.mean_kl_error:.1g}", f"≤ {max_kl:g}"),
        ("99th percentile KL", f"{parity.p99_kl:.3g}", f"≤ {P99_FACTOR * max_kl:g}"),
        ("largest KL", f"{parity.max_kl:.3g}", f"≤ {MAX_FACTOR * max_kl:g}"),
        ("same top choice", f"{100 * parity.top1:.2f} %", f"≥ {100 * min_top1:g} %"),
        ("… other choices nearly tied", str(parity.near_ties), ""),
        ("largest |Δlogit|", f"{parity.max_abs:.3g}", ""),
        (
            "perplexity against the reference's",
            f"{ratio:.4f} ± {parity.perplexity_ratio_error:.1g} × {parity.reference_perplexity:.3f}",
            f"≤ {max_ratio:g} ×",
        ),
        (
            f"greedy tokens agreed of {parity.greedy_tokens}",
            str(parity.greedy_agreed),
            "" if parity.greedy_divergence == "none" else parity.greedy_divergence,
        ),
    ]
    if parity.noise is not None and parity.deviation is not None:
        noise, found = parity.noise, parity.deviation
        rows += [
            ("Δlogits in the reference's noise", f"{found.rms / noise.rms:.3g} ×", f"≤ {FACTOR:g} ×"),
            ("… at the worst position", f"{found.worst / noise.worst:.3g} ×", f"≤ {WORST_FACTOR:g} ×"),
        ]
    print_table((f"parity with {parity.reference}", "measured", "limit"), rows)
    print()
    cases = [(name, check.verdict, _measured(check), check.detail) for name, check in parity.checks.items()]
    print_table(("case", "verdict", "measured", "what"), cases, figures=False)
    for failure in parity.failures:
        print(f"  ✗ {failure}")
    print(f"{parity.tokens} tokens of {parity.text}: {parity.verdict}")


def _measured(check: Check) -> str:
    """A case's figure beside its limit."""
    if check.value is None or check.limit is None:
        return ""
    return (
        f"{check.value:.3g} ≤ {check.limit:g} {check.unit}"
        if check.verdict == "pass"
        else f"{check.value:.3g} > {check.limit:g} {check.unit}"
    )

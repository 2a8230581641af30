"""Costs of a weight, a layer and an attended number, fitted to decoders that were timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnx_gpt.planning.decoders import Sample
from onnx_gpt.planning.device import Cost, Measured, Timing


def table(samples: Mapping[str, Sequence[Sample]], *, on: str, by: str) -> Measured:
    """What was measured, from the samples of each format.

    Args:
        on: machine, threads, runtime.
        by: the command.
    """
    memories = [s.memory - s.work.size for own in samples.values() for s in own if s.memory is not None]
    base = float(max(min(memories), 0)) if memories else None
    fits = {form: _fitted(form, own, base) for form, own in samples.items()}
    return Measured(
        on=on,
        by=by,
        misfit=round(max(misfit for _, misfit in fits.values()), 3),
        base=base,
        formats={form: timing for form, (timing, _) in fits.items()},
    )


def _fitted(form: str, samples: Sequence[Sample], base: float | None) -> tuple[Timing, float]:
    """A format's costs, and how far the worst sample is from them."""
    steps = [(s.work.step_row(c), seconds) for s in samples for c, seconds in s.step.items()]
    prompts = [(s.work.prompt_row(n), seconds / n) for s in samples for n, seconds in s.prompt.items()]
    step, first = fit(form, steps)
    prompt, second = fit(form, prompts)
    return Timing(step=step, prompt=prompt, memory=_memory(samples, base)), max(first, second)


def _memory(samples: Sequence[Sample], base: float | None) -> float | None:
    """Bytes of a process for each byte of the largest file."""
    widest = max(samples, key=lambda sample: sample.work.size)
    if base is None or widest.memory is None:
        return None
    return float(f"{max(widest.memory - base, 1.0) / widest.work.size:.3g}")


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

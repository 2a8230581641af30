"""How a checkpoint came to be: the steps that made it, as their own reports tell, and what each cost and gained.

`prune` and `distill` leave a report beside what they write, with the source that they were given. Followed back, these
are the steps from the model that was trained to the one at hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx_gpt.bundle.writing import REPORT

STEPS = {"onnx-gpt/prune/1": "prune", "onnx-gpt/distill/1": "distill"}
"""What a step is called, by the schema of its report."""
MOST = 16
"""Steps that are followed back."""


def lineage_of(source: str) -> tuple[dict[str, Any], ...]:
    """The steps behind a source, the first first; none for what nothing of ours has made.

    Each says its command's recipe, parameters and bytes before and after, and log perplexities, in nats a token, on the
    text that it names: damages of several steps add up where text and tokens are the same.
    """
    steps: list[dict[str, Any]] = []
    seen: set[Path] = set()
    while len(steps) < MOST:
        path = Path(source) / REPORT
        if path.resolve() in seen or not path.is_file():
            break
        seen.add(path.resolve())
        report = _read(path)
        step = None if report is None else _step(report)
        if report is None or step is None:
            break
        steps.append(step)
        source = str(report.get("source", ""))
        if not source:
            break
    return tuple(reversed(steps))


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        report = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):  # somebody else's file of this name
        return None
    return report if isinstance(report, dict) and report.get("schema") in STEPS else None


def _step(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """One step; None where the report is not as its schema says."""
    try:
        sides = {name: report[name] for name in ("before", "after") if report[name] is not None}
        return {
            "step": STEPS[report["schema"]],
            "source": str(report["source"]),
            "recipe": dict(report["recipe"]),
            "text": f"{report['text']}, {report['after']['text_tokens']} tokens",
            **{
                f"{what}_{name}": value
                for name, side in sides.items()
                for what, value in (
                    ("parameters", int(side["size"]["parameters"])),
                    ("bytes", int(side["size"]["nbytes"])),
                    ("log_perplexity", math.log(side["perplexity"])),
                )
            },
        }
    except (KeyError, TypeError, ValueError):
        return None

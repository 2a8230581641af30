"""Tokens just past a layer's sliding window, where the first keys go out of sight.

Catches a window that is missing or off by one, which no shorter text shows.
"""

from __future__ import annotations

from onnx_gpt.parity.cases import Found, NotRun, Trial
from onnx_gpt.parity.cases._far import NEW, far


def run(trial: Trial) -> Found:
    if trial.window is None:
        return NotRun("no layer is known to have a sliding window")
    length = trial.window + NEW // 2
    if trial.context is not None and length > trial.context:
        return NotRun(
            f"the window of {trial.window} tokens is not shorter than the context of {trial.context}"
        )
    return far(trial, max(length, NEW))

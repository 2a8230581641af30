"""The last tokens that fit the model's context.

Catches tables of positions that end too early or are scaled from some length on, and lengths that overflow.
"""

from __future__ import annotations

from onnx_gpt.parity.cases import Found, NotRun, Trial
from onnx_gpt.parity.cases._far import far


def run(trial: Trial) -> Found:
    if trial.context is None:
        return NotRun("nobody has said how many tokens fit")
    return far(trial, trial.context)

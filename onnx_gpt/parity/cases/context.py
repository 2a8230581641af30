"""The last tokens that fit the model's context, or the furthest that memory allows.

Catches tables of positions that end too early or are scaled from some length on, lengths that overflow, and caches
whose ranges hold for short texts alone.
"""

from __future__ import annotations

from onnx_gpt.parity.cases import Found, NotRun, Trial
from onnx_gpt.parity.cases._far import far


def run(trial: Trial) -> Found:
    if trial.context is None:
        return NotRun("nobody has said how many tokens fit")
    return far(trial, trial.context, or_nearer=True)

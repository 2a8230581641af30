"""The same padded on the left, as transformers generates: right, or refused by a node whose name says so.

GroupQueryAttention reads how long a row is and not where it starts, so that a graph that does not look computes
nonsense without a word. Ours look (graph_passes/lowering/lengths.py). Where the reference is such a graph itself,
nothing is asked.
"""

from __future__ import annotations

from exporter.errors import OnnxGptError
from graph_passes.lowering.lengths import LEFT_PADDING
from onnx_gpt.parity.cases import NO_MASK, ONE_ROW, Found, Held, NotRun, Trial
from onnx_gpt.parity.cases._padding import compared, run_padded_left
from onnx_gpt.parity.metrics import mean_kl

NONSENSE = 1e-3
"""Mean KL of a padded row from the row alone that no rounding explains."""


def run(trial: Trial) -> Found:
    candidate = trial.candidate
    if not candidate.pads:
        return NO_MASK
    if not candidate.batches:
        return ONE_ROW
    found = run_padded_left(trial, candidate)
    if found is None:
        return Held(f"refused by the node {LEFT_PADDING}")
    if trial.reference is not candidate and not _takes_it(trial):
        return NotRun("the reference itself computes nonsense for rows that are padded on the left")
    logits, past, mask = found
    short = len(trial.tokens) // 2
    return compared(trial, [logits[0], logits[1, -short:]], mask, past, step=True)


def _takes_it(trial: Trial) -> bool:
    """Whether the reference gives a left-padded row what it gives the row alone, or takes none, or refuses it."""
    reference = trial.reference
    if not reference.pads or not reference.batches:
        return True
    try:
        found = run_padded_left(trial, reference)
    except OnnxGptError:
        return True
    if found is None:
        return True
    short = len(trial.tokens) // 2
    alone = reference.logits(trial.tokens[None, :short])[0]
    return mean_kl(found[0][1, -short:], alone) <= NONSENSE

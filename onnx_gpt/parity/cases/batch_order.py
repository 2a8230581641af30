"""The same rows in another order give the same logits in that order.

Catches whatever depends on a row's place: the first row's mask or length used for all.
"""

from __future__ import annotations

import numpy as np

from onnx_gpt.parity.cases import ONE_ROW, Compared, Found, Trial

ORDER = (2, 0, 1)


def run(trial: Trial) -> Found:
    if not trial.candidate.batches:
        return ONE_ROW
    rows = trial.others(len(ORDER))[:, : len(trial.tokens) // 2]
    given, turned = trial.candidate.logits(rows), trial.candidate.logits(rows[list(ORDER)])
    return Compared(
        np.concatenate(list(turned)), np.concatenate(list(given[list(ORDER)])), "rows in another order"
    )

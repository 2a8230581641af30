"""Rows of one batch are what each is alone, and a step of all of them too.

Catches rows that read each other's keys, and tables that are broadcast along the wrong axis.
"""

from __future__ import annotations

import numpy as np

from onnx_gpt.parity.cases import ONE_ROW, Compared, Found, Trial

ROWS = 3


def run(trial: Trial) -> Found:
    candidate = trial.candidate
    if not candidate.batches:
        return ONE_ROW
    rows = trial.others(ROWS)
    alone = [candidate.logits(row[None])[0] for row in rows]
    if not candidate.cached:
        return Compared(np.concatenate(list(candidate.logits(rows))), np.concatenate(alone), f"{ROWS} rows")
    logits, past = candidate.run(rows[:, :-1])
    last, _ = candidate.run(rows[:, -1:], past=past)
    together = np.concatenate([logits, last], axis=1)
    return Compared(np.concatenate(list(together)), np.concatenate(alone), f"{ROWS} rows, then a step of all")

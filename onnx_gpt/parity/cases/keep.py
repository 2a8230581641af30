"""The last logits alone, as a runtime asks for them at every step, are the last of all.

Catches a slice that keeps one row too many or the first ones, which nobody sees who asks for all.
"""

from __future__ import annotations

import numpy as np

from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.cases import Compared, Found, NotRun, Trial

COUNTS = (1, 3)


def run(trial: Trial) -> Found:
    candidate = trial.candidate
    if not isinstance(candidate, Candidate) or not candidate.interface.keep:
        return NotRun("the candidate takes no num_logits_to_keep")
    kept = [candidate.run(trial.tokens[None], keep=count)[0][0] for count in COUNTS]
    theirs = np.concatenate([trial.whole[-count:] for count in COUNTS])
    return Compared(np.concatenate(kept), theirs, f"the last {' and '.join(map(str, COUNTS))} rows")

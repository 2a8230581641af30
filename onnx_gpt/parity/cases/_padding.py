"""A batch of two rows of which one is half as long, padded on one side."""

from __future__ import annotations

import numpy as np

from onnx_gpt.parity.cases import Trial


def padded(trial: Trial, *, left: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Tokens ``[2, S]`` and mask ``[2, S]`` without the text's last token, and the short row's length.

    The short row holds the first tokens of the text; its padding is a token that occurs in no text like this.
    """
    tokens = trial.tokens[:-1]
    short = len(trial.tokens) // 2
    rows, mask = np.stack([tokens, tokens]), np.ones((2, len(tokens)), np.int64)
    padding = slice(0, len(tokens) - short) if left else slice(short, None)
    if left:
        rows[1, len(tokens) - short :] = tokens[:short]
    rows[1, padding], mask[1, padding] = (tokens[0] + 1) % trial.vocab_size, 0
    return rows, mask, short

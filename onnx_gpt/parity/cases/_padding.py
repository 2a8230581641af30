"""A batch of two rows of which one is half as long, padded on one side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from exporter.errors import OnnxGptError
from graph_passes.lowering.lengths import LEFT_PADDING
from onnx_gpt.parity.cases import Compared, Model, Trial


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


def run_padded_left(
    trial: Trial, model: Model
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray] | None:
    """Logits, cache and mask of a batch padded on the left; None where the model's own node refuses it.

    Raises:
        OnnxGptError: where the model does not run for another reason.
    """
    rows, mask, _ = padded(trial, left=True)
    try:
        return *model.run(rows, mask), mask
    except OnnxGptError as error:
        if LEFT_PADDING in error.cause:
            return None
        raise


def compared(
    trial: Trial,
    ours: Sequence[np.ndarray],
    mask: np.ndarray,
    past: Mapping[str, np.ndarray],
    *,
    step: bool,
) -> Compared:
    """Both rows of `padded` against each alone; then a step of both, where there is a cache.

    Args:
        ours: logits of each row's own tokens, without padding.
        mask, past: what the rows were run with, and what that left.
        step: whether it is asked for.
    """
    tokens, whole, short = trial.tokens, trial.whole, len(ours[1])
    found, wanted = [*ours], [whole[:-1], whole[:short]]
    told = f"{len(tokens) - 1} and {short} tokens"
    if trial.candidate.cached and step:
        new = np.array([[tokens[-1]], [tokens[short]]])
        last, _ = trial.candidate.run(new, np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1), past)
        found, wanted = [*found, last[0], last[1]], [*wanted, whole[-1:], whole[short : short + 1]]
        told = f"{told}, then a step of both"
    return Compared(np.concatenate(found), np.concatenate(wanted), told)

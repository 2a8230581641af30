"""What quality is measured on: English that Python carries, the part that calibration never sees."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from tokenizers import Tokenizer

from onnx_gpt.parity.text import CALIBRATION_FIFTHS

WINDOW = 512


def evaluation_windows(tokenizer: Path, predicted: int, window: int = WINDOW) -> np.ndarray:
    """Token windows ``[N, window]`` int64 with at least ``predicted`` positions whose next token is known."""
    whole = "".join(topics.values())
    ids = Tokenizer.from_file(str(tokenizer)).encode(whole[len(whole) * CALIBRATION_FIFTHS // 5 :]).ids
    count = -(-predicted // (window - 1))
    if len(ids) < count * window:
        raise ValueError(f"the text has {len(ids)} tokens, {count * window} are needed")
    return np.array(ids[: count * window], np.int64).reshape(count, window)

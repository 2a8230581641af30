"""Whether both sides read a text as the same tokens: a right model with another's tokenizer is wrong."""

from __future__ import annotations

from pathlib import Path

from calibration.data.encoding import ids_of
from onnx_gpt.parity.text import evaluation_sample
from onnx_gpt.report import Check


def tokenizer_check(ours: bytes | None, theirs: bytes | None, path: Path | None) -> Check:
    """A case of its own: it compares token ids and not logits."""
    if ours is None or theirs is None:
        which = "the candidate" if ours is None else "the reference"
        return Check(verdict="not run", detail=f"{which} has no tokenizer.json")
    if ours == theirs:
        return Check(verdict="pass", detail="the same file")
    from tokenizers import Tokenizer

    one, other = (Tokenizer.from_str(raw.decode("utf-8")) for raw in (ours, theirs))
    sample = evaluation_sample(path)
    first, second = (
        ids_of(each, sample, special=True, what=f"the text as {which} does", remedy="restore tokenizer.json")
        for each, which in ((one, "the candidate"), (other, "the reference"))
    )
    if first == second:
        return Check(verdict="pass", detail=f"the same {len(first)} tokens of {len(sample)} characters")
    at = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    return Check(verdict="fail", detail=f"the two read one text as different tokens, from token {at} on")

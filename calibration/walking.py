"""A float decoder run on text piece by piece, for what is asked of the inputs of its products."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.collecting import Stream
from calibration.progress import Advance
from calibration.quantization.calibrated import forward
from calibration.quantization.sites import PACKED, Site
from calibration.segments import cut

GIVERS = {"q": "attention_norm", "gate": "ffn_norm", "up": "ffn_norm", "o": "attention.v", "down": "ffn.up"}
"""What gives the input of a product, by the last part of its role; both within a layer."""


def walk(
    model: ir.Model, tokens: np.ndarray, folder: Path, advance: Advance
) -> Iterator[tuple[str, list[Site], Stream]]:
    """The products of each layer that share an input, in order: the input's giver (`transforms.scaling.Scales`), the
    products, and the stream in which the input of the first lies.

    Args:
        model: as passes leave it; it is not changed.
        tokens: int64 ``[N, S]``, every one real.
        folder: scratch.
    """
    stream = Stream(tokens, folder)
    segments = cut(model, at="products")
    for i, segment in enumerate(segments[:-1]):
        advance(i, len(segments) - 1, segment.name)
        shared: dict[ir.Value, list[Site]] = {}
        for site in segment.sites():
            if site.kind == "multiply" and site.role.startswith("layers."):
                shared.setdefault(site.input, []).append(site)
        for sites in shared.values():
            yield giver_of(sites[0].role), sites, stream
        forward(segment, stream, folder)


def giver_of(role: str) -> str:
    """``layers.3.attention_norm`` for ``layers.3.attention.qkv``."""
    layer, _, rest = role.partition("attention.") if "attention." in role else role.partition("ffn.")
    first = PACKED.get(rest, (rest,))[0]
    return layer + GIVERS.get(first, GIVERS["q"])


def sample(stream: Stream, name: str, rows: int) -> np.ndarray:
    """Some rows ``[rows, K]`` of a value, spread evenly over the text."""
    total = sum(batch.size for batch in stream.batches)
    step = max(1, total // rows)
    taken, seen = [], 0
    for batch in range(len(stream.batches)):
        value = stream.feeds(batch, [name])[name]
        flat = value.reshape(-1, value.shape[-1])
        taken.append(flat[-seen % step :: step])
        seen += len(flat)
    return np.concatenate(taken)[:rows]

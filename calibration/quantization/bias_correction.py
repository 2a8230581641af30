"""Biases that make up for the mean of what rounding weights does to a product's outputs.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721), with the
mean of the inputs taken from text: rounding shifts each output by ``(Ŵ − W)·x``, and the mean of that over tokens is
known,

    b ⇒ b + (W − Ŵ)·E[x]

A product without a bias stays as it is: one more addition for each token is not made for this. So it is a method for
models in the manner of GPT-2, whose every product has one. W and Ŵ stay unread until the file is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.progress import Advance
from calibration.quantization import rtn
from calibration.scheme import Grid, WeightOnly
from calibration.walking import walk
from exporter.decoder import Decoder
from exporter.errors import rejected
from exporter.weights import Weight

Means = Mapping[str, np.ndarray]
"""Of a product's inputs, float32 ``[K]``, by the product's role."""


class Corrected(Weight):
    """A bias ``[N]`` with the mean of its product's rounding taken out."""

    def __init__(self, bias: Weight, weight: Weight, grid: Grid, mean: np.ndarray) -> None:
        self.bias, self.weight, self.grid, self.mean = bias, weight, grid, mean

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bias.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        rows = self.weight.rows(start, stop)
        shifted: np.ndarray = self.bias.rows(start, stop) + (rows - rtn.nearest(rows, self.grid)) @ self.mean
        return shifted


def means(model: ir.Model, tokens: np.ndarray, folder: Path, advance: Advance) -> Means:
    """Mean inputs of the products of a float graph on a text.

    Args:
        model: as passes leave it; it is not changed.
        tokens: int64 ``[N, S]``, every one real.
        folder: scratch.
    """
    found: dict[str, np.ndarray] = {}
    for _, sites, stream in walk(model, tokens, folder, advance):
        total, count = np.zeros(1), 0
        for batch in range(len(stream.batches)):
            name = str(sites[0].input.name)
            value = stream.feeds(batch, [name])[name]
            total = total + value.sum(axis=tuple(range(value.ndim - 1)), dtype=np.float64)
            count += value.size // value.shape[-1]
        mean = (total / max(count, 1)).astype(np.float32)
        found |= {role: mean for site in sites for role, _ in site.parts()}
    return found


def corrected(
    decoder: Decoder, weights: Mapping[str, Weight], scheme: WeightOnly, means: Means
) -> tuple[Decoder, dict[str, Weight]]:
    """A decoder whose biases are corrected for round to nearest, and its weights by role; nothing is read.

    Raises:
        OnnxGptError: ``nothing-to-correct`` where no product has a bias.
    """
    changed = dict(weights)
    for role, mean in means.items():
        bias, grid = weights.get(f"{role}.bias"), scheme.grid_of(role)
        if bias is not None and grid is not None:
            changed[f"{role}.bias"] = Corrected(bias, weights[f"{role}.weight"], grid, mean)
    if all(changed[name] is weights[name] for name in weights):
        raise rejected(
            "nothing-to-correct",
            "no product of this model has a bias that could make up for rounding",
            "use --method gptq, or rtn",
        )
    return decoder, changed

"""The neurons with the smallest weights leave, as many in every layer, and nothing makes up for them.

The baseline that scores from activations are held against: Li et al. 2016 (arXiv 1608.08710), the squared norm of
all weights of a neuron. Reads no text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.pruning.model import FFN, Described
from calibration.pruning.structure.narrowing import rows_of
from exporter.variants import LayerSizes, with_sizes
from exporter.weight_expressions import Permuted, transposed
from exporter.weights import Weight


def narrowed(model: Described, sizes: Sequence[LayerSizes]) -> Described:
    """A decoder with the feed-forward sizes given; heads stay."""
    for i, wanted in enumerate(sizes):
        layer, weights = model.decoder.layers[i], model.layer(i)
        maps = [weights[f"{role}.weight"] for role in rows_of(layer, FFN, np.arange(0))]
        maps.append(transposed(weights["ffn.down.weight"]))
        norms = sum((weight.read().astype(np.float64) ** 2).sum(1) for weight in maps)
        kept = np.sort(np.argsort(-np.asarray(norms), kind="stable")[: wanted.ffn])
        changed: dict[str, Weight] = {"ffn.down.weight": transposed(Permuted(maps[-1], kept))}
        for role in rows_of(layer, FFN, kept):
            names = (f"{role}.weight", f"{role}.bias")
            changed |= {name: Permuted(weights[name], kept) for name in names if name in weights}
        model = model.with_layer(i, with_sizes(layer, wanted, i), changed)
    return model

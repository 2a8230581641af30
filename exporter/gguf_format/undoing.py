"""What llama.cpp's converters do to the values of tensors, undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from exporter.weight_expressions import Permuted, plus, transposed
from exporter.weights import Weight

Undo: TypeAlias = Callable[[Weight, Mapping[str, Any]], Weight]
"""A tensor's Hugging Face value out of the file's and the configuration."""


def pairs_apart(heads: str) -> Undo:
    """Rows of heads in Hugging Face's order, the halves of pairs apart; llama.cpp keeps pairs together.

    Args:
        heads: key of the configuration that says how many there are.
    """
    return lambda weight, config: _reordered(weight, (config[heads], -1, 2), (0, 2, 1))


def by_head(heads: str) -> Undo:
    """``[head, q·k·v, channel]`` rows of GPT-NeoX and BLOOM; llama.cpp keeps ``[q·k·v, head, channel]``."""
    return lambda weight, config: _reordered(weight, (3, config[heads], -1), (1, 0, 2))


def by_group(weight: Weight, config: Mapping[str, Any]) -> Weight:
    """Falcon's rows: the queries of each group, its key, its value; llama.cpp keeps all q, then all k, then all v."""
    heads, groups = config["num_attention_heads"], config["num_kv_heads"]
    if heads % groups or weight.shape[0] % (heads + 2 * groups):
        return weight
    rows = np.arange(weight.shape[0]).reshape(heads + 2 * groups, -1)
    parts = (part.reshape(groups, -1) for part in np.split(rows, [heads, heads + groups]))
    return Permuted(weight, np.concatenate(list(parts), axis=1).reshape(-1))


def turned(weight: Weight, config: Mapping[str, Any]) -> Weight:
    """Conv1D's ``[in, out]``; llama.cpp keeps ``[out, in]``. Biases stay."""
    return transposed(weight) if len(weight.shape) == 2 else weight


def without_one(weight: Weight, config: Mapping[str, Any]) -> Weight:
    """A norm's γ; llama.cpp keeps 1 + γ where that is what multiplies."""
    return plus(weight, -1.0)


def _reordered(weight: Weight, grid: tuple[int, ...], axes: tuple[int, ...]) -> Weight:
    """Rows laid out as a grid whose axes change places. What does not fit stays, and is found mis-shaped."""
    rows = weight.shape[0]
    if rows % math.prod(dim for dim in grid if dim > 0):
        return weight
    return Permuted(weight, np.arange(rows).reshape(grid).transpose(axes).reshape(-1))

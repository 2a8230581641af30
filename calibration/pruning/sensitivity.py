"""What it costs to take something from one layer alone, measured on the logits, and the split over layers that
costs least.

One level of each layer is measured: the mean KL of the logits when that layer alone is pruned by the whole model's
share. The other levels follow from the error of the layer's own outputs, which is known at all of them: ``KL(n) =
KL(m) · error(n) / error(m)``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from calibration.pruning.allocation import allocate
from calibration.pruning.chain import Chain
from calibration.pruning.model import Described, Runner
from calibration.pruning.sparsity import Sparsity
from calibration.pruning.structure.channels import removal
from calibration.pruning.structure.narrowing import prune_block
from calibration.pruning.weights import wanda
from calibration.statistics.hessian import Hessian
from calibration.statistics.regression import Regression
from calibration.threads import single_threaded_blas
from exporter.variants import sizes_of
from exporter.weights import Array, Weight

Advance = Callable[[int, int, str], None]
"""Told how many layers of how many are done, and what is being done."""

MOST = 2.0
"""Of the whole model's share, how much one layer may lose; the search does not know how far its estimates hold."""
BAND, STEP = 0.1, 0.01
"""How far a layer's share of zeros may be from the whole model's, and in which steps."""


def ffn_sizes(
    model: Described,
    chain: Chain,
    runner: Runner,
    share: float,
    multiple: int,
    folder: Path,
    advance: Advance,
) -> list[int]:
    """Feed-forward sizes of all layers, multiples of ``multiple``, that together are the share smaller.

    Args:
        folder: scratch.
    """
    layers = model.decoder.layers
    whole = [layer.ffn.up.weight.shape[0] for layer in layers]
    units = [size // multiple for size in whole]
    budget = round(share * sum(whole) / multiple)
    folder.mkdir()
    curves = []
    with single_threaded_blas():
        for i, layer in enumerate(layers):
            advance(i, len(layers), f"layers.{i}.ffn")
            most = min(units[i] - 1, round(MOST * share * units[i]))
            middle = max(1, round(share * units[i]))
            part = runner.layer(model, i, ["ffn.down.input", "ffn.down.output"])
            seen: Regression | None = None
            for tokens, x in zip(chain.tokens, chain.states[i], strict=True):
                found = part.run(tokens[None], x)
                values, target = found["ffn.down.input"], found["ffn.down.output"]
                seen = (seen or Regression.empty(target.shape[-1], values.shape[-1])).add(target, values)
            assert seen is not None
            moments = seen.finish(bias=layer.ffn.down.bias is not None)
            weight = model.weights[f"layers.{i}.ffn.down.weight"].read()
            order = removal(weight, moments.inputs, 1, max(most, middle) * multiple, f"layers.{i}.ffn.down")
            wanted = sizes_of(layer).model_copy(update={"ffn": whole[i] - middle * multiple})
            probe = prune_block(model, i, "ffn.down", wanted, moments, folder, order)
            cost = order.cost[::multiple]
            curves.append(chain.damage({i: runner.layer(probe, i)}) * cost / max(cost[middle], 1e-30))
    levels = allocate(curves, budget)
    return [size - level * multiple for size, level in zip(whole, levels, strict=True)]


def shares(model: Described, chain: Chain, runner: Runner, share: float, advance: Advance) -> list[Sparsity]:
    """The share of zeros of each layer, within `BAND` of the whole model's, whose mean over all weights it is."""
    layers = range(len(model.decoder.layers))
    steps = round(BAND / STEP)
    lowest = max(STEP, share - BAND)
    grid = [lowest + STEP * n for n in range(2 * steps + 1) if lowest + STEP * n < 1 - STEP / 2]
    middle = round((share - lowest) / STEP)
    curves = []
    with single_threaded_blas():
        for i in layers:
            advance(i, len(layers), f"layers.{i}")
            errors, probe = _one_shot(model, chain, runner, i, grid, middle)
            curves.append(chain.damage({i: runner.layer(probe, i)}) * errors / max(errors[middle], 1e-30))
    levels = allocate(curves, middle * len(layers))
    return [Sparsity(round(grid[level], 6)) for level in levels]


def _one_shot(
    model: Described, chain: Chain, runner: Runner, i: int, grid: list[float], middle: int
) -> tuple[np.ndarray, Described]:
    """The error of a layer's outputs at each share of the grid, and the decoder with the layer pruned by one of
    them."""
    weights = {role: w for role, w in model.layer(i).items() if len(w.shape) == 2}
    roles = [role.removesuffix(".weight") for role in weights]
    part = runner.layer(model, i, [f"{role}.input" for role in roles])
    seen: dict[str, Hessian] = {}
    for tokens, x in zip(chain.tokens, chain.states[i], strict=True):
        for label, values in part.run(tokens[None], x).items():
            seen[label] = (seen.get(label) or Hessian.empty(values.shape[-1])).add(values)
    errors = np.zeros(len(grid))
    changed: dict[str, Weight] = {}
    for role in roles:
        rows, hessian = weights[f"{role}.weight"].read(), seen[f"{role}.input"].finish()
        scores = np.sort(rows.astype(np.float64) ** 2 * np.diag(hessian), axis=1).sum(0).cumsum()
        errors += [scores[max(0, round(share * len(scores)) - 1)] for share in grid]
        changed[f"{role}.weight"] = Array(wanda.prune(rows, hessian, Sparsity(grid[middle]), role))
    return errors, model.with_layer(i, model.decoder.layers[i], changed)

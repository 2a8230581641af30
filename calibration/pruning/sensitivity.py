"""What it costs to take something from one layer alone, measured on the logits, and the split over layers that
costs least.

One level of each layer is measured: the mean KL of the logits when that layer alone is pruned by the whole model's
share. The other levels follow from the error of the layer's own outputs, which is known at all of them: ``KL(n) =
KL(m) · error(n) / error(m)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibration.collecting import Stream
from calibration.progress import Advance
from calibration.pruning.allocation import allocate
from calibration.pruning.chain import Chain
from calibration.pruning.model import FFN, OUT, Described, Loaded, Runner, forward
from calibration.pruning.sparsity import Sparsity
from calibration.pruning.structure.channels import Removal, removal
from calibration.pruning.structure.narrowing import prune_block
from calibration.pruning.weights import wanda
from calibration.statistics.hessian import Hessian
from calibration.statistics.regression import Regression, SecondMoments
from calibration.threads import single_threaded_blas
from exporter.variants import sizes_of
from exporter.weights import Array, Weight

MOST = 2.0
"""Of the whole model's share, how much one layer may lose; the search does not know how far its estimates hold."""
BAND, STEP = 0.1, 0.01
"""How far a layer's share of zeros may be from the whole model's, and in which steps."""


def ffn_sizes(
    model: Described,
    chain: Chain,
    runner: Runner,
    tokens: np.ndarray,
    share: float,
    multiple: int,
    folder: Path,
    advance: Advance,
) -> list[int]:
    """Feed-forward sizes of all layers, multiples of ``multiple``, that together are the share smaller.

    The split that was found is held against the uniform one, all layers pruned at once, and the better one is taken.

    Args:
        chain: on text that is not in ``tokens``: a map that was fitted to few tokens looks harmless on these alone.
        tokens: int64 ``[N, S]``, for the moments of the inputs; several times as many as a layer has neurons.
        folder: scratch.
    """
    layers = model.decoder.layers
    whole = [layer.ffn.up.weight.shape[0] for layer in layers]
    limits = [(size - 1) // multiple for size in whole]
    uniform = [
        min(limit, max(1, round(share * (size // multiple))))
        for size, limit in zip(whole, limits, strict=True)
    ]
    search = _Search(model, chain, runner, folder, multiple)
    folder.mkdir()
    stream = Stream(tokens, folder)
    forward(runner.embedding(model), stream, first=True)
    with single_threaded_blas():
        for i in range(len(layers)):
            advance(i, len(layers), f"layers.{i}.ffn")
            moments = _own_moments(model, i, runner, stream)
            most = min(limits[i], max(uniform[i], round(MOST * share * (whole[i] // multiple))))
            search.measure(i, moments, uniform[i], most)
        found = allocate(search.curves, sum(uniform))
        advance(len(layers), len(layers), "both splits")
        levels = found if search.damage(found) < search.damage(uniform) else uniform
    return [size - level * multiple for size, level in zip(whole, levels, strict=True)]


class _Search:
    """Feed-forwards of each layer pruned alone, and together.

    Attributes:
        curves: of each layer, the KL of the logits at each level, in steps of ``multiple`` neurons.
    """

    def __init__(self, model: Described, chain: Chain, runner: Runner, folder: Path, multiple: int) -> None:
        self.model, self.chain, self.runner = model, chain, runner
        self.folder, self.multiple = folder, multiple
        self.curves: list[np.ndarray] = []
        self._orders: list[Removal] = []

    def measure(self, i: int, moments: SecondMoments, level: int, most: int) -> None:
        """Find the curve of layer i, measured at one level; its moments are kept in a file."""
        weight = self.model.weights[f"layers.{i}.{FFN}.weight"].read()
        self._orders.append(removal(weight, moments.inputs, 1, most * self.multiple, f"layers.{i}.{FFN}"))
        np.savez(self.folder / f"{i}.npz", **dataclasses.asdict(moments))
        cost = self._orders[i].cost[:: self.multiple]
        self.curves.append(self.chain.damage({i: self._pruned(i, level)}) * cost / max(cost[level], 1e-30))

    def damage(self, levels: Sequence[int]) -> float:
        """KL of the logits with all layers at their levels."""
        return self.chain.damage({i: self._pruned(i, level) for i, level in enumerate(levels) if level})

    def _pruned(self, i: int, level: int) -> Loaded:
        with np.load(self.folder / f"{i}.npz") as kept:
            moments = SecondMoments(**kept)
        size = sizes_of(self.model.decoder.layers[i])
        wanted = size.model_copy(update={"ffn": size.ffn - level * self.multiple})
        pruned = prune_block(self.model, i, FFN, wanted, moments, self.folder, self._orders[i])
        return self.runner.layer(pruned, i)


def _own_moments(model: Described, i: int, runner: Runner, stream: Stream) -> SecondMoments:
    """Of a down projection's inputs and its own outputs; the stream goes on to the next layer."""
    source, target = f"{FFN}.input", f"{FFN}.output"
    part = runner.layer(model, i, [OUT, source, target])
    seen: Regression | None = None
    for batch, tokens in enumerate(stream.batches):
        found = part.run(tokens, stream.feeds(batch, [OUT])[OUT])
        stream.put(batch, {OUT: found[OUT]})
        new = seen or Regression.empty(found[target].shape[-1], found[source].shape[-1])
        seen = new.add(found[target], found[source])
    stream.advance()
    assert seen is not None
    return seen.finish(bias=model.decoder.layers[i].ffn.down.bias is not None)


def shares(model: Described, chain: Chain, runner: Runner, share: float, advance: Advance) -> list[Sparsity]:
    """The share of zeros of each layer, within `BAND` of the whole model's, whose mean over all weights it is."""
    layers = range(len(model.decoder.layers))
    grid, middle = grid_of(share)
    curves = []
    with single_threaded_blas():
        for i in layers:
            advance(i, len(layers), f"layers.{i}")
            errors, probe = _one_shot(model, chain, runner, i, grid, middle)
            curves.append(chain.damage({i: runner.layer(probe, i)}) * errors / max(errors[middle], 1e-30))
    levels = allocate(curves, middle * len(layers))
    return [Sparsity(round(grid[level], 6)) for level in levels]


def grid_of(share: float) -> tuple[list[float], int]:
    """Shares, `STEP` apart and none of them 0 or 1, that a layer may have, and which of them is the wanted one."""
    steps = round(BAND / STEP)
    middle = max(0, min(steps, int(share / STEP + 1e-6) - 1))
    lowest, largest = share - STEP * middle, max(share, 1 - STEP / 2) + 1e-9
    return [lowest + STEP * n for n in range(2 * steps + 1) if lowest + STEP * n < largest], middle


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

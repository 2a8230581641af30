"""The whole decoder and the pruned one side by side on a text, and what fits the maps of the one to the values of the
other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from calibration.collecting import Stream
from calibration.pruning.model import ATTENTION, OUT, Described, Loaded, Runner
from calibration.pruning.sequential import filed
from calibration.pruning.structure.channels import fitted
from calibration.pruning.structure.hidden import HEAD, Reading, Turn, readings, reread, shifts, told
from calibration.statistics.regression import Regression, SecondMoments
from exporter.decoder import Layer, Linear
from exporter.weights import Weight


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both decoders on the text: the whole one at the end of a layer, the pruned one at its beginning."""

    runner: Runner
    whole: Stream
    pruned: Stream
    turn: Turn | None
    folder: Path

    def read(self, layer: Layer) -> list[str]:
        """The values of the whole decoder that are needed besides what blocks are fitted to."""
        if self.turn is None:
            return []
        return [f"{reading.maps[-1]}.input" for reading in readings(layer).values()]

    def of_output(self, done: Described, i: int, block: str, goal: str) -> SecondMoments:
        """Of a block's output map: its inputs, and what would bring the pruned decoder to its goal."""
        output = f"{block}.output"
        part = self.runner.layer(done, i, list(dict.fromkeys([f"{block}.input", output, goal])))
        into = None if self.turn is None else self.turn.into.astype(np.float32)

        def target(batch: int, own: Mapping[str, np.ndarray]) -> np.ndarray:
            there = self.whole.feeds(batch, [goal])[goal]
            wanted: np.ndarray = (there if into is None else there @ into) - own[goal] + own[output]
            return wanted

        bias = output_of(done.decoder.layers[i], block).bias is not None
        return self._moments(part, f"{block}.input", target, bias=bias)

    def with_readers(self, done: Described, i: int, block: str, own: Mapping[str, Weight]) -> Described:
        """The pruned decoder with the maps before a block fitted to what the whole one's norm gives.

        Args:
            own: the layer's weights in the whole decoder.
        """
        layer = done.decoder.layers[i]
        reading = readings(layer).get(block)
        if reading is None:  # the block before it has read for both
            return done
        source = f"{reading.maps[-1]}.input"
        part = self.runner.layer(done, i, [source])
        now = done.layer(i).get(f"{reading.norm}.bias")
        changed = self._read(own, reading, now, part, source, lambda n: self.whole.feeds(n, [source])[source])
        at = f"layers.{i}"
        files = {role: filed(one.read(), self.folder / f"{at}.{role}") for role, one in changed.items()}
        return done.with_layer(i, layer, files)

    def with_head(self, done: Described, model: Described) -> Described:
        """The pruned decoder with an untied head fitted likewise. Both decoders are behind their last layer."""
        if done.decoder.tied:
            return done
        whole, part = self.runner.head(model, "norm"), self.runner.head(done, "norm")

        def target(batch: int) -> np.ndarray:
            return whole.run(self.whole.batches[batch], self.whole.feeds(batch, [OUT])[OUT])["norm"]

        now = done.weights.get("norm.bias")
        changed = self._read(model.weights, HEAD, now, part, "norm", target)
        return Described(done.decoder, {**done.weights, **changed})

    def _read(
        self,
        own: Mapping[str, Weight],
        reading: Reading,
        now: Weight | None,
        part: Loaded,
        source: str,
        target: Callable[[int], np.ndarray],
    ) -> dict[str, Weight]:
        """The maps behind a norm, fitted to what the whole decoder's norm gives for each batch.

        Args:
            own: weights of the whole decoder.
            now: the norm's bias in the pruned one.
            part: gives the norm's output there, as ``source``.
        """
        assert self.turn is not None
        near, shift = told(own, reading, self.turn)
        bias = shifts(own, reading)
        moments = self._moments(part, source, lambda batch, _: target(batch), bias=bias)
        fit = fitted(moments.inputs, moments.cross, np.arange(near.shape[1]), near)
        if bias:
            mean = moments.input_mean - (0 if now is None else now.read())
            shift = moments.target_mean - fit @ mean
        return reread(own, reading, fit, shift)

    def _moments(
        self,
        part: Loaded,
        source: str,
        target: Callable[[int, Mapping[str, np.ndarray]], np.ndarray],
        *,
        bias: bool,
    ) -> SecondMoments:
        """What fitting a map takes: its inputs as the pruned decoder has them, and its targets.

        Args:
            part: of the pruned decoder.
            target: of a batch's number, and of what the part gives.
        """
        fit: Regression | None = None
        for batch, tokens in enumerate(self.pruned.batches):
            own = part.run(tokens, self.pruned.feeds(batch, [OUT])[OUT])
            aim = target(batch, own)
            fit = (fit or Regression.empty(aim.shape[-1], own[source].shape[-1])).add(aim, own[source])
        assert fit is not None
        return fit.finish(bias=bias)


def output_of(layer: Layer, block: str) -> Linear:
    """The map that a block ends in."""
    return layer.attention.o if block == ATTENTION else layer.ffn.down

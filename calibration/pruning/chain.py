"""The whole decoder as a chain of loaded layers, by which what one change costs is measured: the KL of the logits.

Layers before the change need not run again. All of the model's weights are in memory while it lives.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calibration.pruning.model import OUT, Described, Loaded, Runner


class Chain:
    """A decoder on a few windows of text.

    Args:
        tokens: int64 ``[N, S]``; a window runs at a time.
    """

    def __init__(self, model: Described, runner: Runner, tokens: np.ndarray) -> None:
        self.tokens = tokens
        self._head = runner.head(model)
        embedding = runner.embedding(model)
        self._layers = [runner.layer(model, i) for i in range(len(model.decoder.layers))]
        self.states: list[list[np.ndarray]] = [[embedding.run(t[None])[OUT] for t in tokens]]
        for layer in self._layers:
            self.states.append([_run(layer, t, x) for t, x in zip(tokens, self.states[-1], strict=True)])
        self._reference = [
            _log_softmax(self._logits(t, x)) for t, x in zip(tokens, self.states[-1], strict=True)
        ]

    @property
    def influence(self) -> list[float]:
        """How much each layer turns the residual stream: ``1 − mean cos(x, layer(x))`` over the tokens.

        Men et al. 2024, ShortGPT (arXiv 2403.03853): block influence.
        """
        return [
            1 - float(np.mean([_cosines(a, b).mean() for a, b in zip(before, after, strict=True)]))
            for before, after in zip(self.states, self.states[1:], strict=False)
        ]

    def damage(self, changes: Mapping[int, Loaded | None]) -> float:
        """Mean KL(as it was ‖ changed), nats a token, with some layers replaced, or left out where None."""
        first = min(changes, default=len(self._layers))
        total = count = 0.0
        for t, x, reference in zip(self.tokens, self.states[first], self._reference, strict=True):
            for i in range(first, len(self._layers)):
                piece = changes.get(i, self._layers[i])
                x = x if piece is None else _run(piece, t, x)
            ours = _log_softmax(self._logits(t, x))
            total += float((np.exp(reference) * (reference - ours)).sum(dtype=np.float64))
            count += len(ours)
        return total / count

    def _logits(self, tokens: np.ndarray, x: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._head.run(tokens[None], x)["logits"][0]
        return logits


def _run(piece: Loaded, tokens: np.ndarray, x: np.ndarray) -> np.ndarray:
    return piece.run(tokens[None], x)[OUT]


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sizes = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines: np.ndarray = (a * b).sum(-1) / np.maximum(sizes, np.finfo(np.float32).tiny)
    return cosines


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    logged: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logged

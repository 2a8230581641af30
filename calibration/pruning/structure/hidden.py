"""A narrower residual stream: it is turned, so that the directions of least energy can leave all layers at once.

With R ``[E, n]`` of orthonormal columns, norms see the turned stream ``y = x·A``, ``A = √(n/E)·R``, as they see x: the
mean over n channels is then the one over E, and ``norm(y) = norm(x)·A`` if nothing of x lies outside R. So what writes
to the stream is multiplied by A, and what reads it by the pseudo-inverse of A, after its norm's gain γ and bias β have
gone into it:

    embedding, positions:  T ⇒ T·A            q, k, v, gate, up:  W ⇒ W·D,  b ⇒ b + W·β    with D = diag(γ)·(A⁺)ᵀ
    o, down:  W ⇒ Aᵀ·W,  b ⇒ Aᵀ·b             head, untied: as the readers

R are the principal directions of what the norms make of the stream, all of them together. Ashkboos et al. 2024,
SliceGPT (arXiv 2401.15024), with one rotation for all layers: one for each would need matrices in the residual stream,
which no family has.

A LayerNorm takes the mean off: there, R makes the mean of x the mean of y, and turns the rest. A tied head reads the
table that gives the embedding, behind the gains of the last norm: it wants ``A·diag(γ')·Aᵀ = diag(γ)``. So channels
whose gain is near the median, by `SPREAD`, are scaled by √(γ/median) before they are turned: the gain behind them is
one number then, and the size of the stream, by which norms divide, is all but the same. Others are not mixed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from calibration.collecting import Stream
from calibration.progress import Advance
from calibration.pruning.model import ATTENTION, BLOCKS, HALFWAY, OUT, Described, Runner, forward
from calibration.pruning.structure.width import narrower
from calibration.statistics.hessian import Hessian, require_finite
from calibration.transforms.expressions import TimesMatrix, TimesVector
from exporter.decoder import Decoder, Layer, Norm, Sinusoids
from exporter.errors import unsupported
from exporter.weight_expressions import transposed
from exporter.weights import Array, Weight, Zeros

SPREAD = 0.3
"""How far from the median, as a share of it, a gain before a tied head may be for its channel to be turned."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """How a stream of E channels becomes one of n.

    Attributes:
        into: A, float64 ``[E, n]``.
        gain: of the last norm before a tied head, float64 ``[n]``; ones where the head is not tied.
    """

    into: np.ndarray
    gain: np.ndarray

    @functools.cached_property
    def back(self) -> np.ndarray:
        """A⁺, float64 ``[n, E]``."""
        return np.linalg.pinv(self.into)


@dataclasses.dataclass(frozen=True)
class Reading:
    """A norm, and the maps that read it, by roles within a layer; a map that is not there is passed over."""

    norm: str
    maps: tuple[str, ...]

    def there(self, own: Mapping[str, Weight]) -> list[str]:
        """The maps that a layer has, out of its weights by role."""
        return [role for role in self.maps if f"{role}.weight" in own]


def readings(layer: Layer) -> dict[str, Reading]:
    """What each block reads of the residual stream, by its output map: one norm where two blocks share it."""
    qkv, fed = ("attention.q", "attention.k", "attention.v"), ("ffn.gate", "ffn.up")
    if layer.shares_norm:
        return {ATTENTION: Reading("attention_norm", qkv + fed)}
    return dict(zip(BLOCKS, (Reading("attention_norm", qkv), Reading("ffn_norm", fed)), strict=True))


HEAD = Reading("norm", ("head",))


def require_turnable(decoder: Decoder) -> None:
    """Refuse a decoder whose stream cannot be turned.

    Raises:
        OnnxGptError: ``variant-impossible`` (exit 3).
    """
    found = ""
    for layer in decoder.layers:
        if layer.attention_post_norm or layer.ffn_post_norm:
            found = "a norm behind each block writes the residual stream channel by channel"
        elif layer.attention.alibi is not None:
            found = "heads leave with channels, and the slope of each follows from how many there are"
        elif layer.attention_norm is None or (layer.ffn_norm is None and not layer.shares_norm):
            found = "a block reads the residual stream without a norm"
        elif any(norm and norm.kind != decoder.norm.kind for norm in (layer.attention_norm, layer.ffn_norm)):
            found = "norms of two kinds read the residual stream"
    if decoder.embedding_norm is not None:
        found = "a norm behind the embedding writes the residual stream channel by channel"
    if isinstance(decoder.positions, Sinusoids):
        found = "sines and cosines are added to it channel by channel"
    if decoder.embedding_scale == math.sqrt(decoder.hidden_size):
        found = "its embeddings are scaled by the root of its width"
    if decoder.tied and decoder.norm.weight is None:
        found = "its last norm has no gain, which a tied head would ask for"
    if found:
        raise unsupported(
            "variant-impossible",
            f"the residual stream of a {decoder.family} cannot be turned: {found}",
            "leave hidden out of --structured; ffn, heads and layers can go",
        )


def turn_of(model: Described, energy: np.ndarray, size: int) -> Turn:
    """The turn that keeps most of a stream's energy in so many channels.

    Args:
        energy: second moment of the normed stream, its mean taken off where norms do so, float64 ``[E, E]``.
        size: n, above 1 and at most E.

    Raises:
        OnnxGptError: ``activations-not-finite``.
    """
    require_finite(energy, "the residual stream")
    E, centres = len(energy), model.decoder.norm.kind == "layer"
    gain, median = np.ones(E), 1.0
    if model.decoder.tied:
        gain = model.weights["norm.weight"].read().astype(np.float64)
        median = float(np.median(gain))
    ratio = gain / median if median else np.zeros(E)
    near = np.abs(ratio - 1) <= SPREAD
    alone, mixed = np.flatnonzero(~near), np.flatnonzero(near)
    scale = np.sqrt(ratio[mixed])
    values, vectors = np.linalg.eigh(energy[np.ix_(mixed, mixed)] * np.outer(scale, scale))
    order = np.argsort(-np.concatenate([np.diag(energy)[alone], values]), kind="stable")
    kept = np.sort(order[: size - centres])
    single, turned = alone[kept[kept < len(alone)]], kept[kept >= len(alone)] - len(alone)
    directions = scale[:, None] * vectors[:, turned]
    if centres:
        directions = directions @ _adding_up_to_zero(len(turned))
    into = np.zeros((E, size))
    into[single, np.arange(len(single))] = 1
    into[mixed, len(single) :] = directions
    if centres:
        into += (E * size) ** -0.5 - into.mean(0)  # norms take a mean off, but a tied head's table has one
    gains = np.concatenate([gain[single], np.full(directions.shape[1], median)])
    return Turn(into * np.sqrt(size / E), gains * (E / size if model.decoder.tied else 1))


def _adding_up_to_zero(size: int) -> np.ndarray:
    """Orthonormal rows ``[size, size + 1]``, each of which adds up to zero."""
    ones_first = np.column_stack([np.ones(size + 1), np.eye(size + 1)[:, :size]])
    return np.linalg.qr(ones_first)[0][:, 1:].T


def energy_of(model: Described, tokens: np.ndarray, folder: Path, advance: Advance) -> np.ndarray:
    """The second moment of the residual stream as norms pass it on, without gains and biases, float64 ``[E, E]``.

    All norms and all tokens count alike: what a norm makes of a token has the length √E, however large the token is.

    Args:
        tokens: int64 ``[N, S]``, every one real.
        folder: scratch, made here.
    """
    layers, norm = model.decoder.layers, model.decoder.norm
    runner, seen = Runner(folder / "parts", tokens.shape[1]), Hessian.empty(model.decoder.hidden_size)
    folder.mkdir()
    stream = Stream(tokens, folder)
    forward(runner.embedding(model), stream, first=True)
    for i, layer in enumerate(layers):
        advance(i, len(layers), f"layers.{i}")
        between = [] if layer.parallel else [HALFWAY]
        part = runner.layer(model, i, [*between, OUT])
        for batch, ids in enumerate(stream.batches):
            x = stream.feeds(batch, [OUT])[OUT]
            found = part.run(ids, x)
            for read in (x, *(found[name] for name in between)):
                seen = seen.add(_normed(read, norm))
            stream.put(batch, {OUT: found[OUT]})
        stream.advance()
    for batch in range(len(stream.batches)):
        seen = seen.add(_normed(stream.feeds(batch, [OUT])[OUT], norm))
    stream.close()
    return seen.finish()


def _normed(x: np.ndarray, norm: Norm) -> np.ndarray:
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    normed: np.ndarray = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + norm.epsilon)
    return normed


def turned_ends(model: Described, turn: Turn) -> Described:
    """A decoder with a narrower stream, of which `turned_layer` has yet to turn the layers' weights."""
    weights = dict(model.weights)
    for role in ("embedding.weight", "positions.weight"):
        if role in weights:
            weights[role] = TimesMatrix(weights[role], turn.into.astype(np.float32))
    if model.decoder.tied:
        weights["norm.weight"] = Array(turn.gain.astype(np.float32))
        if "norm.bias" in weights:
            weights["norm.bias"] = Array((turn.back @ weights["norm.bias"].read()).astype(np.float32))
    else:
        weights |= reread(model.weights, HEAD, *told(model.weights, HEAD, turn))
    return Described(narrower(model.decoder, turn.into.shape[1]), weights)


def turned_layer(layer: Layer, own: Mapping[str, Weight], turn: Turn) -> dict[str, Weight]:
    """The weights of a layer on a narrower stream, by the equations above.

    Args:
        own: by role within the layer, as they were.
    """
    into = turn.into.astype(np.float32)
    changed: dict[str, Weight] = {}
    for block in BLOCKS:
        weight, bias = own[f"{block}.weight"], own.get(f"{block}.bias")
        changed[f"{block}.weight"] = transposed(TimesMatrix(transposed(weight), into))
        if bias is not None:
            changed[f"{block}.bias"] = Array(bias.read() @ into)
    for reading in readings(layer).values():
        changed |= reread(own, reading, *told(own, reading, turn))
    return changed


def told(own: Mapping[str, Weight], reading: Reading, turn: Turn) -> tuple[np.ndarray, np.ndarray | None]:
    """What a norm gave, of what it gives now: D float64 ``[E, n]`` and β ``[E]`` in ``norm(x) = D·norm(y) + β``."""
    gain, bias = own.get(f"{reading.norm}.weight"), own.get(f"{reading.norm}.bias")
    D = turn.back.T if gain is None else gain.read()[:, None] * turn.back.T
    return D, None if bias is None else bias.read()


def reread(
    own: Mapping[str, Weight], reading: Reading, D: np.ndarray, shift: np.ndarray | None
) -> dict[str, Weight]:
    """A norm of a narrower stream, without gain and bias, and what reads it.

    Args:
        own: weights by role, as they were.
        D, shift: what the norm gave, of what it gives now, as `told` says it.
    """
    gain, bias, maps = f"{reading.norm}.weight", f"{reading.norm}.bias", reading.there(own)
    changed: dict[str, Weight] = {gain: Array(np.ones(D.shape[1], np.float32))} if gain in own else {}
    if bias in own and not _all_have_biases(own, maps):
        assert shift is not None
        # What is normed adds up to zero: D·1 is the shift.
        D, shift = D + (shift - D.sum(1))[:, None] / D.shape[1], None
        changed[bias] = Array(np.ones(D.shape[1], np.float32))
    elif bias in own:
        changed[bias] = Zeros((D.shape[1],))
    for role in maps:
        weight = own[f"{role}.weight"]
        changed[f"{role}.weight"] = TimesMatrix(weight, D.astype(np.float32))
        if shift is not None:
            moved = Array(shift.astype(np.float32))
            changed[f"{role}.bias"] = TimesVector(weight, moved, own[f"{role}.bias"])
    return changed


def shifts(own: Mapping[str, Weight], reading: Reading) -> bool:
    """Whether what is read may have a constant added."""
    return f"{reading.norm}.bias" in own or _all_have_biases(own, reading.there(own))


def _all_have_biases(own: Mapping[str, Weight], maps: Sequence[str]) -> bool:
    return all(f"{role}.bias" in own for role in maps)

"""What a change of one unit's format does to the model: the KL of its logits from the float model's, measured.

The base is the float model, or one that is quantized already. Hidden states at each layer are kept once. A layer's
variants, one for each option of each of its units, run that layer alone, and then go together, as one batch, through
the layers after it: each of those is loaded once for all of them, and memory holds one layer.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration import collecting
from calibration.collecting import BATCH_TOKENS
from calibration.progress import Advance
from calibration.quantization.weight_only import Coders, quantize_weights
from calibration.scheme import TABLE, RoundToNearest
from calibration.search.units import Allocation, Option, Unit, scheme_of_allocation
from calibration.segments import Segment, cut

State = dict[str, np.ndarray]
"""Values at a cut, for all windows of one or several variants: ``[V · N, S, …]`` each."""
CodersOf = Callable[[Segment, RoundToNearest], Coders]
"""Codes for the products of a segment, where they are chosen and not rounded."""
ROWS = 64
"""Rows of logits that are compared at once."""


@dataclasses.dataclass(frozen=True)
class Delta:
    """Mean KL, in nats a token, of the base with one unit in another format: `option` of ``unit``."""

    unit: str
    option: Option
    kl: float


class Measurer:
    """Measures variants of one decoder on one text.

    Args:
        model: a float decoder as passes leave it; it is not changed.
        units: of it.
        tokens: int64 ``[N, S]``, windows of text, every token real.
        every: logits of one position in so many are compared.
        folder: scratch.
        coders_of: rounds to nearest by default.
    """

    def __init__(
        self,
        model: ir.Model,
        units: Sequence[Unit],
        tokens: np.ndarray,
        folder: Path,
        *,
        every: int = 2,
        coders_of: CodersOf = lambda segment, scheme: {},
    ) -> None:
        self.units = units
        self.tokens = tokens
        self._segments = cut(model)
        self._folder = folder
        self._coders_of = coders_of
        self._every = every
        self._head: tuple[Option | None, collecting.Piece] | None = None
        """The loaded head, and the format that it is in."""
        self._reference = log_softmax(self._logits(self._through({})[-1], {}))
        self.digest = hashlib.sha256(self._reference.tobytes()).hexdigest()[:16]
        """Of the float model on this text."""

    @property
    def compared(self) -> int:
        """Tokens whose logits are compared."""
        return len(self._reference)

    def whole(self, allocation: Allocation) -> float:
        """The KL of a whole allocation."""
        return float(self._divergence(self._logits(self._through(allocation)[-1], allocation)))

    def deltas(
        self,
        base: Allocation,
        wanted: Mapping[str, Sequence[Option]],
        advance: Advance = lambda done, total, what: None,
    ) -> Iterator[Delta]:
        """The KL of the base with each wanted option in turn, a layer's all at once, first layers first."""
        if not any(wanted.values()):
            return
        places = range(len(self._segments) - 1)
        groups = [(i, [(u, o) for u in self._units_in(i) for o in wanted.get(u.name, ())]) for i in places]
        total = sum(len(variants) for _, variants in groups)
        states = self._through(base)
        done = 0
        for i, variants in groups:
            if not variants:
                continue
            advance(done, total, f"{self._segments[i].name}, formats")
            for (unit, option), logits in zip(
                variants, self._variants(i, variants, base, states[i]), strict=True
            ):
                yield Delta(unit.name, option, self._divergence(logits))
            done += len(variants)

    # Segments -----------------------------------------------------------------------------------------------

    def _units_in(self, i: int) -> list[Unit]:
        """The units of a segment; the table counts with the embedding."""
        name = self._segments[i].name
        return [u for u in self.units if name == ("embedding" if u.layer is None else f"layers.{u.layer}")]

    def _through(self, base: Allocation) -> list[State]:
        """The state before each segment."""
        states: list[State] = [{}]
        for segment in self._segments[:-1]:
            states.append(self._run(segment, base, states[-1]))
        return states

    def _variants(
        self, i: int, variants: Sequence[tuple[Unit, Option]], base: Allocation, state: State
    ) -> Iterator[np.ndarray]:
        """Logits ``[N · P, V]`` of each variant of a segment."""
        allocations = [{**base, unit.name: option} for unit, option in variants]
        own = [self._run(self._segments[i], allocation, state) for allocation in allocations]
        stacked = {name: np.concatenate([one[name] for one in own]) for name in own[0]}
        for segment in self._segments[i + 1 : -1]:
            stacked = self._run(segment, base, stacked)
        N = len(self.tokens)
        for v, allocation in enumerate(allocations):
            yield self._logits(
                {name: array[v * N : (v + 1) * N] for name, array in stacked.items()}, allocation
            )

    def _run(self, segment: Segment, allocation: Allocation, state: State) -> State:
        """The state after a segment in the formats of an allocation."""
        piece = collecting.load(
            self._quantized(segment, allocation), segment.outgoing, self._folder / "piece"
        )
        count = len(next(iter(state.values()))) if state else len(self.tokens)
        step = max(1, BATCH_TOKENS // self.tokens.shape[1])
        tokens = np.tile(self.tokens, (count // len(self.tokens), 1))
        given = [
            piece.run(
                tokens[at : at + step], {name: state[name][at : at + step] for name in segment.incoming}
            )
            for at in range(0, count, step)
        ]
        after = {name: np.concatenate([values[name] for values in given]) for name in segment.outgoing}
        return after | {name: state[name] for name in segment.passing}

    def _logits(self, state: State, allocation: Allocation) -> np.ndarray:
        """Logits of the positions that are compared, ``[N · P, V]``."""
        head = self._segments[-1]
        kept = {name: state[name][:, self._every - 1 :: self._every] for name in head.incoming}
        if self._head is None or self._head[0] != allocation.get(TABLE):
            piece = collecting.load(self._quantized(head, allocation), head.outgoing, self._folder / "head")
            self._head = (allocation.get(TABLE), piece)
        tokens = self.tokens[:, self._every - 1 :: self._every]
        logits = self._head[1].run(tokens, kept)[head.outgoing[0]]
        return logits.reshape(-1, logits.shape[-1])

    def _quantized(self, segment: Segment, allocation: Allocation) -> Segment:
        """A copy of a segment in the formats of an allocation; itself where all of it stays float."""
        roles = {role for site in segment.sites() for role, _ in site.parts()}
        inside = [
            unit
            for unit in self.units
            if unit.name in allocation
            and (segment.name in ("embedding", "head") if unit.layer is None else unit.parts[0].role in roles)
        ]
        if not inside:
            return segment
        scheme = scheme_of_allocation(inside, allocation)
        copy = dataclasses.replace(segment, model=segment.model.clone())
        quantize_weights(copy.model, scheme, self._coders_of(copy, scheme))
        return copy

    def _divergence(self, logits: np.ndarray) -> float:
        total = 0.0
        for start in range(0, len(logits), ROWS):
            reference = self._reference[start : start + ROWS]
            ours = log_softmax(logits[start : start + ROWS])
            total += float((np.exp(reference) * (reference - ours)).sum(dtype=np.float64))
        return max(total / len(logits), 0.0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of rows ``[S, V]``, float32; their normaliser is added up in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normaliser = np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64))
    result: np.ndarray = shifted - normaliser.astype(np.float32)
    return result

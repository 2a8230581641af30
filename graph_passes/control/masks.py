"""What a mask means, told by what it lets each query see on a set of calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from graph_passes.control.probe import DECODE, Probe, Runner, whole
from graph_passes.matching import SMALL
from graph_passes.proof.evaluate import CannotEvaluate
from graph_passes.proof.subgraph import Subgraph

MASKED = -1e4
"""What is added to a score that is not to count is at most this."""

LONGEST = 1 << 20
"""Windows are shorter, and so are the calls that look for them."""

SQUARE = 4100
"""Longest call without a past: its mask has the square of this many elements."""

Reading = Literal["seen", "hidden", "added", "subtracted"]
"""How a node takes a mask: True for what is seen or for what is hidden, or a number to add or subtract."""


@dataclasses.dataclass(frozen=True)
class Meaning:
    """Query s may see key t: ``t ≤ s`` if causal, ``t > s − window`` if there is one, t is real if valid.

    Attributes:
        window: keys that a query sees, itself included; None for all.
    """

    causal: bool
    valid: bool
    window: int | None = None

    def seen(self, probe: Probe) -> np.ndarray:
        """bool ``[B, S, T]``."""
        distance = probe.places[:, None] - np.arange(probe.total)
        seen = np.ones(distance.shape, bool)
        if self.causal:
            seen &= distance >= 0
        if self.window is not None:
            seen &= distance < self.window
        if not self.valid:
            return np.broadcast_to(seen, (probe.batch, *seen.shape))
        both: np.ndarray = seen & (probe.valid == 1)[:, None]
        return both

    def __str__(self) -> str:
        recent = "" if self.window is None else f", within {self.window} tokens"
        return " and ".join(["causal"] * self.causal + ["valid"] * self.valid) + recent


def meaning_of(runner: Runner, value: ir.Value, reading: Reading, rank: int) -> Meaning | str:
    """What a mask means, or on which call it means nothing known.

    Args:
        rank: of the scores that it masks, ``[B, …, S, T]``.
    """
    mask = _Mask(runner, runner.piece([value]), reading, rank)
    try:
        window, limit = mask.window()
        wanted = [Meaning(True, runner.pads, window), Meaning(True, False, window)]
        if window is None:
            wanted.append(Meaning(False, True))
        probes = [*runner.probes, *mask.at_edge_of(window, limit), *mask.of_stored()]
        found = [(probe, mask.on(probe)) for probe in probes]
    except (CannotEvaluate, _NoMask) as reason:
        return str(reason)
    objections = []
    for meaning in wanted:
        objection = next((text for probe, seen in found if (text := _differs(meaning, probe, seen))), None)
        if objection is None:
            return meaning
        objections.append(objection)
    return objections[0]


class _NoMask(Exception):  # noqa: N818 (it is an answer, not a defect)
    """Values that are no mask's."""


@dataclasses.dataclass(frozen=True)
class _Mask:
    runner: Runner
    piece: Subgraph
    reading: Reading
    rank: int

    def on(self, probe: Probe) -> np.ndarray:
        """bool ``[B, S, T]``: what is seen on a call."""
        (array,) = self.runner.run(self.piece, probe)
        shape = (1,) * (self.rank - array.ndim) + array.shape
        wide = (probe.batch, *shape[1:-2], probe.length, probe.total)
        if len(shape) != self.rank or any(
            have not in (1, want) for have, want in zip(shape, wide, strict=True)
        ):
            raise _NoMask(
                f"on a call with {probe} its shape is {list(array.shape)}, not one for {list(wide)}"
            )
        by_head = array.reshape(shape[0], -1, *shape[-2:])
        one_head = by_head[:, 0]
        if not (by_head == one_head[:, None]).all():
            raise _NoMask(f"on a call with {probe} it differs from head to head")
        seen = self._read(one_head, probe)
        return np.broadcast_to(seen, (probe.batch, probe.length, probe.total))

    def _read(self, array: np.ndarray, probe: Probe) -> np.ndarray:
        if self.reading in ("seen", "hidden"):
            if array.dtype != bool:
                raise _NoMask(f"it is {array.dtype}, not bool")
            return array if self.reading == "seen" else ~array
        if array.dtype.kind in "biu":
            raise _NoMask(f"it is {array.dtype}, not a float to add")
        bias = array if self.reading == "added" else -array
        odd = ~((bias == 0) | (bias <= MASKED))
        if odd.any():
            raise _NoMask(
                f"on a call with {probe} it adds {bias[odd].flat[0]} to a score, neither 0 nor ≤ {MASKED:g}"
            )
        seen: np.ndarray = bias == 0
        return seen

    def window(self) -> tuple[int | None, int]:
        """Keys that the last query of a long call sees, where these are not all; and how long that call was."""
        numbers = [abs(n) for n in _numbers(self.piece) if abs(n) < LONGEST]
        enough = [2 * n + 2 if self.runner.has_past else n + 3 for n in numbers]
        if not self.runner.has_past:
            enough = [total for total in enough if total <= SQUARE]
        longest = max([64, *enough, *self._stored()])
        for total in self._lengths(longest):
            probe = whole(1, 1, total - 1) if self.runner.has_past else whole(1, total)
            try:
                row = self.on(probe)[0, -1]
            except (CannotEvaluate, _NoMask):
                if total == 1:
                    raise
                continue
            count = int(row.sum())
            if count == 0 or not row[-count:].all():
                raise _NoMask(
                    f"on a call with {probe} the last query sees neither all keys nor the latest ones"
                )
            return (None if count == total else count), total
        raise AssertionError("the shortest call either runs or says why not")

    def _lengths(self, longest: int) -> Iterator[int]:
        """Calls to try, the longest first: a table in the graph may end before."""
        sizes = {size for value in self.piece.initializers() for size in _dims(value) if 1 < size < longest}
        yield from (longest, *sorted(sizes, reverse=True), 1)

    def _stored(self) -> list[int]:
        """Sizes of the masks that the graph stores whole."""
        sizes = ([size for size in _dims(value) if size > 1] for value in self.piece.initializers())
        return [size[0] for size in sizes if len(size) == 2 and size[0] == size[1]]

    def of_stored(self) -> Iterator[Probe]:
        """Calls that read all of a stored mask."""
        yield from (whole(1, size) for size in self._stored())

    def at_edge_of(self, window: int | None, limit: int) -> Iterator[Probe]:
        """Calls on which a window begins to matter, none longer than the limit."""
        if window is None:
            return
        if not self.runner.has_past:
            yield whole(1, min(window + 2, limit))
            return
        yield from (whole(1, 1, min(past, limit - 1)) for past in (window - 1, window, 2 * window + 1))
        yield whole(2, 3, max(min(window, limit - 1) - 2, 0))
        last = DECODE[0]
        if self.runner.pads and window + last.total <= limit:
            valid = np.pad(last.valid, ((0, 0), (window, 0)), constant_values=1)
            yield Probe(window + last.past, valid, last.padding)


def _differs(meaning: Meaning, probe: Probe, seen: np.ndarray) -> str | None:
    """The first query at which a mask is not what a meaning says. Queries of padding may see what they like."""
    wanted = meaning.seen(probe)
    odd = (seen != wanted) & (probe.real[..., None] if meaning.valid else True)
    if not odd.any():
        return None
    row, query, key = (int(i) for i in np.argwhere(odd)[0])
    sees = "sees" if seen[row, query, key] else "does not see"
    return (
        f"on a call with {probe} query {query} of row {row} {sees} key {key}, unlike a mask that is {meaning}"
    )


def _numbers(piece: Subgraph) -> Iterator[int]:
    """Whole numbers among the constants of a piece."""
    tensors = [value.const_value for value in piece.initializers()]
    tensors += [attr.as_tensor() for call in piece.nodes for attr in call.attributes if _is_tensor(attr)]
    for tensor in tensors:
        if tensor is None or tensor.nbytes > SMALL or tensor.dtype == ir.DataType.STRING:
            continue
        array = tensor.numpy().reshape(-1)
        yield from (int(number) for number in array if np.isfinite(number) and number == np.floor(number))
    for call in piece.nodes:
        yield from (int(attr.value) for attr in call.attributes if attr.type == ir.AttributeType.INT)


def _is_tensor(attribute: ir.Attr) -> bool:
    return attribute.type == ir.AttributeType.TENSOR


def _dims(value: ir.Value) -> list[int]:
    tensor = value.const_value
    return [] if tensor is None else [dim for dim in tensor.shape if isinstance(dim, int)]

"""The calls on which two graphs are compared, and what feeds a graph whatever its interface.

A prompt at once, a prompt in chunks, single tokens after a cache, a padded batch, the last logits alone: what one
forward pass does not show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from graph_passes.control.caches import caches_of
from graph_passes.control.interface import KEEP, Interface, interface_of
from graph_passes.inference import facts
from graph_passes.matching import attribute
from onnx_gpt.exporting import interface_unknown, logits_of

TOKENS = 24
"""Of a row, where no window asks for more."""
LONGEST = 512
"""Tokens beyond which no row is made longer, whatever the window."""
BEYOND = 8
"""Tokens by which a row is longer than the longest window that is seen."""

Values = Mapping[str, np.ndarray]
Run = Callable[[Values], dict[str, np.ndarray]]
"""Gives a graph's outputs, and whatever else is wanted, for its inputs."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows of tokens, fed in one call or several with a growing cache.

    Attributes:
        rows: which rows of the text.
        lengths: tokens of each row; shorter ones are padded on the right, in one call only.
        calls: tokens of each call; their sum is the longest length.
        keep: logits asked for in each call, from the last; 0 for all.
    """

    name: str
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    calls: tuple[int, ...]
    keep: int = 0

    @property
    def cached(self) -> bool:
        return len(self.calls) > 1

    def tokens(self, text: np.ndarray) -> np.ndarray:
        """int64 ``[B, S]`` of all calls; padding is token 0."""
        chosen = text[list(self.rows), : max(self.lengths)].copy()
        chosen[self._mask() == 0] = 0
        return chosen

    def mask(self, total: int) -> np.ndarray:
        """int64 ``[B, T]`` after so many tokens."""
        return self._mask()[:, :total]

    def _mask(self) -> np.ndarray:
        return (np.arange(max(self.lengths)) < np.array(self.lengths)[:, None]).astype(np.int64)

    def places(self) -> Iterator[tuple[int, int]]:
        """Where each call begins and ends, in tokens."""
        start = 0
        for size in self.calls:
            yield start, start + size
            start += size


def cases(length: int) -> tuple[Case, ...]:
    """What is tried on rows of so many tokens."""
    half, short = length // 2, max(1, length - 5)
    found = (
        Case("prompt", (0,), (length,), (length,)),
        Case("prompt in chunks", (0,), (length,), (half, length - half)),
        Case("step after a cache", (0,), (length,), (length - 1, 1)),
        Case("padded batch", (0, 1), (length, short), (length,)),
        Case("step of a batch", (0, 1), (length, length), (length - 1, 1)),
        Case("last logits", (0,), (length,), (length,), keep=min(2, length)),
    )
    return tuple(case for case in found if all(case.calls))


def length_for(model: ir.Model, context_length: int | None) -> int:
    """Tokens of a row: beyond the longest window, within the context."""
    windows = [w for node in model.graph if (w := attribute(node, "local_window_size", -1)) > 0]
    windows += [
        int(name.rpartition("_")[2]) for name in model.graph.initializers if name.startswith("window_")
    ]
    wanted = max([TOKENS, *(w + BEYOND for w in windows if w + BEYOND <= LONGEST)])
    return int(min(wanted, context_length or wanted))


class Feeding:
    """Knows which input of a graph is which, and feeds cases to it.

    Raises:
        OnnxGptError: ``interface-unknown`` (exit 3).
    """

    def __init__(self, model: ir.Model) -> None:
        graph = model.graph
        names = {str(value.name) for value in graph.inputs}
        found = interface_of(graph)
        if isinstance(found, str):
            raise interface_unknown(found)
        self.interface: Interface = found
        self.keeps = KEEP in names
        self.logits = str(logits_of(graph).name)
        self.pasts = _pasts(model, found)
        self._empty = _empty_caches(model, found, self.pasts)

    def takes(self, case: Case) -> bool:
        """Whether the graph can be asked this."""
        interface = self.interface
        padded = len(set(case.lengths)) > 1
        if padded and interface.attention_mask is None:
            return False
        if case.keep and not self.keeps:
            return False
        return not case.cached or bool(self.pasts)

    def feeds(self, case: Case, text: np.ndarray, call: int, past: Values) -> dict[str, np.ndarray]:
        """Inputs of one call of a case.

        Args:
            text: int64 ``[rows, S]``.
            past: outputs of the call before; empty for the first.
        """
        start, stop = list(case.places())[call]
        tokens, mask = case.tokens(text)[:, start:stop], case.mask(stop)
        counted = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, start:stop]
        interface = self.interface
        given = {
            interface.input_ids: tokens,
            interface.attention_mask: mask,
            interface.position_ids: counted,
            interface.cache_position: np.arange(start, stop),
        }
        feeds = {str(v.name): a.astype(_numpy(v)) for v, a in given.items() if v is not None}
        batch = len(case.rows)
        for value in interface.caches:
            name = str(value.name)
            sizes = [batch if i == 0 else size for i, size in enumerate(self._empty[name])]
            feeds[name] = past[self.pasts[name]] if past else np.zeros(sizes, _numpy(value))
        if self.keeps:
            feeds[KEEP] = np.array(case.keep, np.int64)
        return feeds

    def chain(self, case: Case, text: np.ndarray, run: Run) -> list[dict[str, np.ndarray]]:
        """Results of all calls of a case, each after the cache that the one before left."""
        results: list[dict[str, np.ndarray]] = []
        for call in range(len(case.calls)):
            results.append(run(self.feeds(case, text, call, results[-1] if results else {})))
        return results


def expected(
    case: Case, call: int, truth: Mapping[int, np.ndarray]
) -> Iterator[tuple[int, slice, np.ndarray]]:
    """For each row of a call: its place in the batch, the logits that are of real tokens, and what they must be.

    Args:
        truth: logits ``[S, V]`` of each whole row of text.
    """
    start, stop = list(case.places())[call]
    if case.keep:
        start = max(start, stop - case.keep)
    for i, (row, length) in enumerate(zip(case.rows, case.lengths, strict=True)):
        end = min(stop, length)
        if end > start:
            yield i, slice(0, end - start), truth[row][start:end]


def _pasts(model: ir.Model, interface: Interface) -> dict[str, str]:
    """The output that each cache input is fed from. The contract's names say it; elsewhere the flow of data does."""
    outputs = {str(value.name) for value in model.graph.outputs}
    named = {str(v.name): str(v.name).replace("past_key_values", "present", 1) for v in interface.caches}
    if named and set(named.values()) <= outputs:
        return named
    facts.annotate(model)
    caches = caches_of(model.graph, interface)
    if isinstance(caches, str):
        raise interface_unknown(caches)
    return {str(cache.past.name): str(cache.present.name) for cache in caches}


def _empty_caches(model: ir.Model, interface: Interface, pasts: Mapping[str, str]) -> dict[str, list[int]]:
    """Sizes of caches that hold nothing. What a cache will become tells the sizes that the graph leaves open."""
    outputs = {str(value.name): value for value in model.graph.outputs}
    found = {}
    for value in interface.caches:
        shape = value.shape or ()
        if not all(isinstance(size, int) for i, size in enumerate(shape) if i and i != interface.past_axis):
            facts.annotate(model)
            shape = facts.dims(outputs[pasts[str(value.name)]]) or ()  # type: ignore[assignment]
        sizes = [size if isinstance(size, int) else 1 for size in shape]
        sizes[interface.past_axis] = 0
        found[str(value.name)] = sizes
    return found


def _numpy(value: ir.Value) -> np.dtype[np.generic]:
    assert value.dtype is not None
    return value.dtype.numpy()

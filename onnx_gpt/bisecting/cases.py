"""The calls on which two graphs are compared, and what feeds a graph whatever its interface.

A prompt at once, a prompt in chunks, single tokens after a cache, a padded batch, the last logits alone: what one
forward pass does not show.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from exporter.checkpoint import Checkpoint, GraphSource, ModuleSource, Opened
from exporter.control import KEEP
from exporter.errors import unsupported
from graph_passes.control.caches import caches_of
from graph_passes.control.interface import Interface, interface_of
from graph_passes.inference import facts
from graph_passes.matching import attribute
from onnx_gpt.exporting import interface_unknown, logits_of

TOKENS = 24
"""Of a row, where no window asks for more."""
LONGEST = 512
"""Tokens beyond which no row is made longer: a longer window's edge is reached by a cache that is repeated."""
BEYOND = 8
"""Tokens by which a row is longer than the longest window that is seen."""
STRETCHED_BYTES = 1 << 30
"""Bytes that a repeated cache may take, in float64."""

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
        stretch: tokens that the first call's cache is repeated to before the second; 0 for as it is.
    """

    name: str
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    calls: tuple[int, ...]
    keep: int = 0
    stretch: int = 0

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

    def before(self, call: int) -> int:
        """Tokens in the cache before a call."""
        return self.stretch if call and self.stretch else list(self.places())[call][0]


def stretched(length: int, stretch: int) -> Case:
    """A few tokens after a cache that has been repeated to so many."""
    return Case("past a long window", (0,), (length,), (length - BEYOND, BEYOND), stretch=stretch)


def cases(length: int, stretch: int = 0) -> tuple[Case, ...]:
    """What is tried on rows of so many tokens, and where ``stretch`` is given on a cache that long."""
    half, short = length // 2, max(1, length - 5)
    found = (
        Case("prompt", (0,), (length,), (length,)),
        Case("prompt in chunks", (0,), (length,), (half, length - half)),
        Case("step after a cache", (0,), (length,), (length - 1, 1)),
        Case("padded batch", (0, 1), (length, short), (length,)),
        Case("step of a batch", (0, 1), (length, length), (length - 1, 1)),
        Case("last logits", (0,), (length,), (length,), keep=min(2, length)),
        *([stretched(length, stretch)] if stretch else []),
    )
    return tuple(case for case in found if all(case.calls))


def length_for(model: ir.Model, context_length: int | None) -> int:
    """Tokens of a row: beyond the longest window, within the context."""
    wanted = max([TOKENS, *(w + BEYOND for w in _windows(model) if w + BEYOND <= LONGEST)])
    return int(min(wanted, context_length or wanted))


def stretch_for(model: ir.Model, context_length: int | None) -> int:
    """Tokens of a cache that ends just before the edge of the longest window, where no row is as long; else 0."""
    longest = max(_windows(model), default=0)
    before = longest - BEYOND // 2
    sizes = [value.shape or () for value in _caches(model)]
    row = 8 * sum(math.prod(size for size in shape[1:] if isinstance(size, int)) for shape in sizes)
    fits = context_length is None or before + BEYOND <= context_length
    seen = longest + BEYOND <= LONGEST
    return 0 if seen or not sizes or not fits or before * row > STRETCHED_BYTES else before


def _caches(model: ir.Model) -> list[ir.Value]:
    """Inputs that hold keys and values; none where the graph is not understood."""
    found = interface_of(model.graph)
    return [] if isinstance(found, str) else list(found.caches)


def _windows(model: ir.Model) -> list[int]:
    """Keys that layers with a window see."""
    named = (name.rpartition("_")[2] for name in model.graph.initializers if name.startswith("window_"))
    attributes = (attribute(node, "local_window_size", -1) for node in model.graph)
    return [*(window for window in attributes if window > 0), *map(int, named)]


def require_graph(opened: Opened) -> Checkpoint | GraphSource:
    """A source that has a graph of its own, or that we know one for.

    Raises:
        OnnxGptError: ``bisect-needs-graph`` (exit 3) for a module.
    """
    if isinstance(opened, ModuleSource):
        raise unsupported(
            "bisect-needs-graph",
            "a module has no graph of its own to start from",
            "export it to .onnx, or save it as a checkpoint of a known family",
        )
    return opened


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
        tokens, mask, before = case.tokens(text)[:, start:stop], case.mask(stop), case.before(call)
        if before > start:
            mask = np.ones((len(tokens), before + stop - start), np.int64)
        counted = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, before:]
        interface = self.interface
        given = {
            interface.input_ids: tokens,
            interface.attention_mask: mask,
            interface.position_ids: counted,
            interface.cache_position: np.arange(before, before + stop - start),
        }
        feeds = {str(v.name): a.astype(_numpy(v)) for v, a in given.items() if v is not None}
        batch = len(case.rows)
        for value in interface.caches:
            name = str(value.name)
            sizes = [batch if i == 0 else size for i, size in enumerate(self._empty[name])]
            feeds[name] = past[self.pasts[name]] if past else np.zeros(sizes, _numpy(value))
            if before > start:
                axis = interface.past_axis
                feeds[name] = np.take(feeds[name], np.arange(before) % feeds[name].shape[axis], axis=axis)
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
    case: Case, call: int, truth: Mapping[int, np.ndarray], far: np.ndarray | None = None
) -> Iterator[tuple[int, slice, np.ndarray]]:
    """For each row of a call: its place in the batch, the logits that are of real tokens, and what they must be.

    Args:
        truth: logits ``[S, V]`` of each whole row of text.
        far: the same ``[BEYOND, V]`` of the last tokens after a stretched cache.
    """
    start, stop = list(case.places())[call]
    if call and case.stretch:
        assert far is not None
        yield 0, slice(0, stop - start), far
        return
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

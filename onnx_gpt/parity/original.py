"""A graph as its exporter left it, run as it stands: onnxruntime with every optimization off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from exporter.errors import OnnxGptError
from graph_passes.control.caches import Cache, caches_of
from graph_passes.control.interface import Interface, interface_of
from graph_passes.inference import facts
from onnx_gpt.exporting import interface_unknown, logits_of


class OriginalGraph:
    """Logits and greedy text of somebody's decoder graph, one sequence at a time, without padding.

    Args:
        path: the ``.onnx`` file.
        model: its graph, by which inputs and outputs are told apart.
        name: what a report calls it.

    Raises:
        OnnxGptError: ``interface-unknown`` (exit 3); ``model-unloadable``.
    """

    def __init__(self, path: Path, model: ir.Model, name: str) -> None:
        import onnxruntime as ort

        self.name = f"{name} on onnxruntime {ort.__version__}, optimizations off"
        found = interface_of(model.graph)
        if isinstance(found, str):
            raise interface_unknown(found)
        self._interface: Interface = found
        facts.annotate(model)
        caches = caches_of(model.graph, found)
        if isinstance(caches, str):
            raise interface_unknown(caches)
        self._caches = tuple(caches)
        self._logits = str(logits_of(model.graph).name)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has an exception class for each of its status codes
            raise OnnxGptError(
                "model-unloadable",
                f"onnxruntime does not load {str(path)!r}: {str(error).splitlines()[0]}",
                "export the model again",
            ) from error

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """float32 ``[1, S, V]`` of a whole sequence, int64 ``[1, S]``."""
        return self._run(tokens, {})[0]

    def greedy(self, tokens: np.ndarray, count: int) -> list[int]:
        """The likeliest ``count`` tokens after ``tokens`` (int64 ``[S]``), through the cache where there is one."""
        chosen: list[int] = []
        sequence = tokens.reshape(1, -1)
        logits, past = self._run(sequence, {})
        for _ in range(count):
            chosen.append(int(logits[0, -1].argmax()))
            last = np.array([chosen[-1:]], np.int64)
            if self._caches:
                logits, past = self._run(last, past)
            else:
                sequence = np.concatenate([sequence, last], axis=1)
                logits, _ = self._run(sequence, {})
        return chosen

    def _run(
        self, tokens: np.ndarray, past: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        interface, axis = self._interface, self._interface.past_axis
        feeds = dict(past) or {str(cache.past.name): _empty(cache, axis) for cache in self._caches}
        seen = next(iter(feeds.values())).shape[axis] if feeds else 0
        length = tokens.shape[1]
        places = np.arange(seen, seen + length)
        given = {
            interface.input_ids: tokens,
            interface.attention_mask: np.ones((1, seen + length)),
            interface.position_ids: places[None],
            interface.cache_position: places,
        }
        feeds |= {str(v.name): array.astype(_dtype(v)) for v, array in given.items() if v is not None}
        names = [self._logits, *(str(cache.present.name) for cache in self._caches)]
        try:
            logits, *presents = self._session.run(names, feeds)
        except Exception as error:  # the runtime has an exception class for each of its status codes
            raise OnnxGptError(
                "model-run-failed",
                f"onnxruntime cannot run {self.name.split(' on ')[0]}: {str(error).splitlines()[0]}",
                "export the model with a batch and a sequence length that are free",
            ) from error
        after = {str(cache.past.name): array for cache, array in zip(self._caches, presents, strict=True)}
        return np.asarray(logits, np.float32), after


def _empty(cache: Cache, axis: int) -> np.ndarray:
    """A cache of one sequence that holds nothing. What it will become tells the sizes that the file leaves open."""
    told = facts.dims(cache.present) or ()
    sizes = [size if isinstance(size, int) else 1 for size in told]
    sizes[axis] = 0
    return np.zeros(sizes, _dtype(cache.past))


def _dtype(value: ir.Value) -> np.dtype[np.generic]:
    assert value.dtype is not None
    return value.dtype.numpy()

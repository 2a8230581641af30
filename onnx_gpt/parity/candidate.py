"""A decoder's graph as parity sees it, ours or anyone's: batches, padding and a growing cache on plain onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.errors import first_line, rejected
from exporter.onnx_format.reader import read_file
from onnx_gpt.generation.decoder_session import DTYPES
from onnx_gpt.parity.interface import GraphInterface, interface_by_flow, interface_by_name, unloadable

Cache = dict[str, np.ndarray]
"""What a run remembers, by the names of the graph's past inputs."""
MOVED_BYTES = 3 << 30
"""Float32 weights that are copied to be moved by their last bit; a larger reference is run in other ways only."""


class Candidate:
    """An ONNX decoder, run as it stands.

    Args:
        model: path of the .onnx file.
        threads: intra-op threads; onnxruntime's choice by default.
        optimized: let onnxruntime optimize the graph; without, it runs node by node as the file has it.
        name: what a report calls it.
        swap: other values for initializers, by name.

    Raises:
        OnnxGptError: ``model-unloadable``; ``interface-unknown`` (exit 3).
    """

    def __init__(
        self,
        model: Path,
        threads: int = 0,
        *,
        optimized: bool = True,
        name: str = "",
        swap: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what it says on stderr is in the exceptions too
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._swapped = {key: ort.OrtValue.ortvalue_from_numpy(array) for key, array in (swap or {}).items()}
        for key, value in self._swapped.items():
            options.add_initializer(key, value)
        self.path, self.threads, self.optimized = model, threads, optimized
        how = "" if optimized else ", optimizations off"
        self.name = f"{name or model.name} on onnxruntime {ort.__version__}{how}"
        try:
            self.session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has an exception class for each of its status codes
            raise unloadable(model, error) from error
        self.interface: GraphInterface = interface_by_name(self.session) or interface_by_flow(model)
        self.inputs: dict[str, Any] = {value.name: value for value in self.session.get_inputs()}
        self.cached = self.remembers = bool(self.interface.slots)
        self.cache_axis = self.interface.axis
        self.pads = self.interface.mask is not None
        rows = self.inputs[self.interface.tokens].shape
        self.batches = not isinstance(rows[0], int)
        vocab = next(v.shape for v in self.session.get_outputs() if v.name == self.interface.logits)[-1]
        self.vocab_size = vocab if isinstance(vocab, int) else None

    def run(
        self,
        tokens: np.ndarray,
        mask: np.ndarray | None = None,
        past: Mapping[str, np.ndarray] | None = None,
        *,
        keep: int = 0,
    ) -> tuple[np.ndarray, Cache]:
        """One forward pass.

        Args:
            tokens: int64 ``[B, S]``.
            mask: int64 ``[B, T]``, 1 for real tokens; all real by default. Positions are counted over them.
            past: a cache that `run` returned; empty by default.
            keep: give the last so many tokens' logits alone, where the graph can; 0 for all.

        Returns:
            logits ``[B, S, V]`` float32 and the cache after these tokens, in the graph's own type.

        Raises:
            OnnxGptError: ``model-run-failed``, with the first line of what onnxruntime said.
        """
        known = self.interface
        past = past or self.empty_cache(len(tokens))
        seen = next(iter(past.values())).shape[known.axis] if past else 0
        total = seen + tokens.shape[1]
        valid = np.ones((len(tokens), total), np.int64) if mask is None else mask
        counted = np.maximum(np.cumsum(valid, axis=1) - 1, 0)[:, seen:]
        feeds = dict(past) | {known.tokens: self._typed(known.tokens, tokens)}
        for name, array in (
            (known.mask, valid),
            (known.positions, counted),
            (known.places, np.arange(seen, total)),
        ):
            if name is not None:
                feeds[name] = self._typed(name, array)
        # Among inputs where it has no default: then it must be fed.
        if known.keep and (keep or "num_logits_to_keep" in self.inputs):
            feeds["num_logits_to_keep"] = np.array(keep, np.int64)
        names = [known.logits, *(slot.present for slot in known.slots)]
        try:
            logits, *presents = self.session.run(names, feeds)
        except Exception as error:  # the runtime has an exception class for each of its status codes
            raise rejected(
                "model-run-failed",
                f"onnxruntime cannot run {self.path.name}: {first_line(error)}",
                "export the model with a batch and a sequence length that are free",
            ) from error
        after = {slot.past: array for slot, array in zip(known.slots, presents, strict=True)}
        logits = np.asarray(logits, np.float32)
        return logits[:, -keep:] if keep and not known.keep else logits, after

    def empty_cache(self, batch: int) -> Cache:
        """A cache of ``batch`` rows that holds nothing; sizes that the file leaves open are 1."""
        sizes: Cache = {}
        for slot in self.interface.slots:
            shape = [batch, *(size or 1 for size in slot.shape[1:])]
            shape[self.interface.axis] = 0
            sizes[slot.past] = np.zeros(shape, slot.dtype)
        return sizes

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Logits ``[B, S, V]`` of whole sequences ``[B, S]``."""
        return self.run(tokens)[0]

    def greedy(self, tokens: np.ndarray, count: int) -> list[int]:
        """The ``count`` most likely next tokens after ``tokens`` ``[S]``, one at a time through the cache."""
        chosen: list[int] = []
        sequence = tokens.reshape(1, -1)
        logits, past = self.run(sequence)
        for _ in range(count):
            chosen.append(int(logits[0, -1].argmax()))
            last = np.array([[chosen[-1]]], np.int64)
            if self.cached:
                logits, past = self.run(last, past=past)
            else:
                sequence = np.concatenate([sequence, last], axis=1)
                logits, _ = self.run(sequence)
        return chosen

    def _typed(self, name: str, array: np.ndarray) -> np.ndarray:
        kind = self.inputs[name].type
        return array.astype(bool if kind == "tensor(bool)" else DTYPES[kind])

    def alternatives(self, tokens: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Logits ``[N, S, V]`` of windows ``[N, S]`` by the same graph run in other ways, each with its name."""
        for name, other in self._others():
            yield name, np.concatenate([other.logits(window[None]) for window in tokens])

    def _others(self) -> Iterator[tuple[str, Candidate]]:
        turned = "optimizations on" if not self.optimized else "optimizations off"
        yield turned, Candidate(self.path, self.threads, optimized=not self.optimized)
        moved = dict(_moved_weights(self.path))
        if moved:
            yield (
                "weights moved by their last bit",
                Candidate(self.path, self.threads, optimized=self.optimized, swap=moved),
            )


def _moved_weights(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Float32 weights, each number one of its two neighbours; nothing where they would take too much memory.

    Whole numbers stay: a mask's 0 and 1 are no measurements.
    """
    graph = read_file(path).graph
    tensors = {name: value.const_value for name, value in graph.initializers.items()}
    floats = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size > 1
    }
    if sum(tensor.nbytes for tensor in floats.values()) > MOVED_BYTES:
        return
    rng = np.random.default_rng(0)
    for name, tensor in floats.items():
        array = tensor.numpy()
        towards = np.where(rng.random(array.shape, np.float32) < 0.5, np.float32(-np.inf), np.float32(np.inf))
        moved = np.nextafter(array, towards)
        yield name, np.where(array == np.rint(array), array, moved)

"""One sequence through an ONNX decoder on plain onnxruntime: tokens in, logits out, the cache stays inside.

Everything about the graph is read from the session, so any decoder that keeps the graph's contract
(docs/architecture.md) runs, whoever built it. Three kinds of graph differ only in where the past lives:

- `SharedCache`: attention writes into the buffer that it reads (GroupQueryAttention). A step copies nothing.
- `GrowingCache`: attention concatenates (standard Attention). A step's presents are the next step's pasts.
- `NoCache`: the graph has no past. Each step runs the whole sequence again.

Dims: S new tokens, T past and new tokens, K kv heads, D head dim, V vocabulary.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from exporter.errors import Exit, OnnxGptError, first_line, rejected, unsupported

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}
ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
    RuntimeError,  # what binding raises
)
LOADING_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, UnicodeDecodeError)
"""Names in a graph may be no text."""
PIECE = 256
"""Tokens of a prompt that are run at once where the cache is one buffer. onnxruntime's attention multiplies a run's
queries with every key up to the run's end, hidden ones too, so pieces do fewer products, and memory follows the piece.
Smaller ones are too small for several threads (docs/experiments.md)."""
CAPACITY_STEP = 64
"""A shared buffer's length is a multiple of this, so that short continuations do not reallocate it."""
ALIGNMENT = 64
"""Bytes: a cache line, and a register of AVX-512."""
MOST_THREADS = 256
"""onnxruntime starts as many as it is told to, and waits for ever where the system gives it fewer."""

Array = np.ndarray[Any, Any]


class DecoderSession:
    """A decoder, the tokens it has seen, and what it remembers of them. Batch 1, one thread at a time.

    Args:
        model: path of the .onnx file.
        threads: intra-op threads; the physical cores that this process may use by default.
        head_dim: D, for graphs that leave it open (onnxruntime-genai's builder names it ``kv_cache_dim``).

    Raises:
        OnnxGptError: ``threads-invalid`` (exit 2), ``model-unloadable``, ``model-input-unknown``,
            ``model-output-missing``, ``cache-shape``, ``tensor-type``.
    """

    def __init__(self, model: Path, *, threads: int | None = None, head_dim: int | None = None) -> None:
        self.session = _open(model, threads)
        self.signature = Signature(self.session, head_dim)
        self.tokens: list[int] = []
        self._cache: Cache = _cache(self.session, self.signature)

    @property
    def vocab_size(self) -> int | None:
        """V, where the graph states it."""
        return self.signature.vocab_size

    @property
    def cache(self) -> str:
        """``shared``, ``growing`` or ``none``."""
        return self._cache.kind

    def append(self, tokens: Sequence[int] | Array, *, every: bool = False) -> Array:
        """Run tokens after those already seen.

        Returns:
            float32 logits of the last token ``[V]``, or with ``every`` of all new ones ``[S, V]``.
        """
        new = np.asarray(tokens, self.signature.dtype("input_ids")).reshape(1, -1)
        if self.cache == "shared" and not every:
            self.reserve(len(self.tokens) + new.shape[1])
            while new.shape[1] > PIECE:
                self._run(new[:, :PIECE], every=False)
                new = new[:, PIECE:]
        logits = self._run(new, every)
        # One row is copied: the next run may write where it is.
        result: Array = (
            logits[0].astype(np.float32, copy=False) if every else logits[0, -1].astype(np.float32)
        )
        return result

    def _run(self, new: Array, every: bool) -> Array:
        """Logits ``[1, S, V]`` of new tokens ``[1, S]``, or of the last."""
        try:
            logits = self._cache.run(self.tokens, new, every)
        except ORT_ERRORS as error:
            raise rejected(
                "model-run-failed",
                f"onnxruntime failed at token {len(self.tokens)}: {first_line(error):.400}",
                "check the bundle with `onnx-gpt validate`",
            ) from error
        if every and logits.shape[1] != new.shape[1]:
            raise unsupported(
                "logits-pruned",
                "the graph gives the last token's logits alone",
                "export it with logits of all tokens, or ask for the last ones",
            )
        self.tokens.extend(new[0].tolist())
        return logits

    def reserve(self, length: int) -> None:
        """Make room for a sequence of this many tokens at once, where room is made beforehand."""
        self._cache.reserve(length, len(self.tokens))

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        if length < len(self.tokens):
            self._cache.truncate(length)
            del self.tokens[length:]


class Signature:
    """A graph's inputs and outputs, checked against the contract."""

    def __init__(self, session: ort.InferenceSession, head_dim: int | None = None) -> None:
        self.head_dim = head_dim
        # An input with a default is not among `get_inputs`, but may be fed all the same.
        inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
        self.inputs = {value.name: value for value in inputs}
        self.outputs = {value.name: value for value in session.get_outputs()}
        self.pasts = [name for name in self.inputs if name.startswith("past_key_values.")]
        self.presents = [name.replace("past_key_values.", "present.", 1) for name in self.pasts]
        known = {"input_ids", "attention_mask", "position_ids", "num_logits_to_keep", *self.pasts}
        unknown = [f"{v.name}: {v.type} {v.shape}" for v in session.get_inputs() if v.name not in known]
        if unknown or "input_ids" not in self.inputs:
            raise unsupported(
                "model-input-unknown",
                "the model has inputs that no decoder has" if unknown else "the model has no input_ids",
                "use a decoder with the inputs that docs/architecture.md names (The graph's contract)",
                tuple(unknown),
            )
        missing = [name for name in ("logits", *self.presents) if name not in self.outputs]
        if missing:
            raise unsupported(
                "model-output-missing",
                "the model lacks outputs of a decoder",
                "use a decoder with logits and present.{i}.key/.value",
                tuple(missing),
            )
        *_, rows, vocab = self.outputs["logits"].shape
        self.vocab_size = vocab if isinstance(vocab, int) else None
        # 1 where the graph gives the last token's alone.
        self.logits_rows = rows if isinstance(rows, int) else None
        for name in self.pasts:
            self.past_shape(name, 0)

    def has(self, name: str) -> bool:
        return name in self.inputs

    def dtype(self, name: str) -> Any:
        value = self.inputs.get(name) or self.outputs[name]
        if value.type not in DTYPES:
            raise unsupported("tensor-type", f"{name} is a {value.type}", "use a float32 or float16 model")
        return DTYPES[value.type]

    def past_shape(self, name: str, length: int) -> tuple[int, int, int, int]:
        """``[1, K, length, D]``."""
        shape = list(self.inputs[name].shape)
        if len(shape) == 4 and not isinstance(shape[3], int):
            shape[3] = self.head_dim
        if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
            raise unsupported(
                "cache-shape",
                f"{name} has shape {shape}, not [batch_size, kv_heads, past_sequence_length, head_dim]",
                "export the model with integer kv_heads and head_dim, keys and values apart",
            )
        return (1, shape[1], length, shape[3])

    def feeds(self, new: Array, past: int, every: bool) -> dict[str, Array]:
        """What the graph takes beside its past, for tokens ``[1, S]`` after ``past`` others."""
        total = past + new.shape[1]
        feeds = {"input_ids": new}
        if self.has("attention_mask"):
            feeds["attention_mask"] = np.ones((1, total), self.dtype("attention_mask"))
        if self.has("position_ids"):
            feeds["position_ids"] = np.arange(past, total, dtype=self.dtype("position_ids"))[None]
        if self.has("num_logits_to_keep"):
            feeds["num_logits_to_keep"] = np.array(0 if every else 1, np.int64)
        return feeds


class Cache(Protocol):
    """How a kind of graph remembers."""

    kind: str

    def run(self, past: Sequence[int], new: Array, every: bool) -> Array:
        """Logits of new tokens ``[1, S]`` after the past ones: with ``every`` ``[1, S, V]``, the caller's to
        keep; without, at least the last, good until the next run.
        """

    def reserve(self, length: int, used: int) -> None: ...

    def truncate(self, length: int) -> None: ...


class SharedCache:
    """One buffer ``[1, K, capacity, D]`` per key and value, bound as past and as present."""

    kind = "shared"

    def __init__(self, session: ort.InferenceSession, signature: Signature, vocab_size: int) -> None:
        self.session, self.signature = session, signature
        self.vocab_size = vocab_size
        self.binding = session.io_binding()
        self.buffers: dict[str, Array] = {}
        self.capacity = 0
        self.logits_dtype = signature.dtype("logits")
        self.step_logits = np.empty((1, 1, vocab_size), self.logits_dtype)
        self.kept: dict[str, Array] = {}

    def run(self, past: Sequence[int], new: Array, every: bool) -> Array:
        used, length = len(past), new.shape[1]
        self.reserve(used + length, used)
        self._bind("input_ids", new)
        # The mask is all ones and positions count up: views of buffers made once serve every step.
        if self.signature.has("attention_mask"):
            self._bind("attention_mask", self.ones[:, : used + length])
        if self.signature.has("position_ids"):
            self._bind("position_ids", self.positions[:, used : used + length])
        rows = self.signature.logits_rows or length
        if self.signature.has("num_logits_to_keep"):
            self._bind("num_logits_to_keep", np.array(0 if every else 1, np.int64))
            rows = length if every else 1
        logits = self.step_logits
        if every or rows > 1:
            logits = np.empty((1, rows, self.vocab_size), self.logits_dtype)
        self.binding.bind_output("logits", "cpu", 0, self.logits_dtype, logits.shape, logits.ctypes.data)
        self.session.run_with_iobinding(self.binding)
        return logits

    def reserve(self, length: int, used: int) -> None:
        if length <= self.capacity:
            return
        wanted = max(length, 2 * self.capacity if used else 0)
        capacity = -(-wanted // CAPACITY_STEP) * CAPACITY_STEP
        shapes = [self.signature.past_shape(past, capacity) for past in self.signature.pasts]
        dtypes = [np.dtype(self.signature.dtype(past)) for past in self.signature.pasts]
        room = _zeros(math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True))
        names = zip(self.signature.pasts, self.signature.presents, strict=True)
        for (past, present), shape, dtype, part in zip(names, shapes, dtypes, room, strict=True):
            buffer = part.view(dtype).reshape(shape)
            if used:
                buffer[:, :, :used] = self.buffers[past][:, :, :used]
            self.buffers[past] = buffer
            place = ("cpu", 0, dtype.type, shape, buffer.ctypes.data)
            self.binding.bind_input(past, *place)
            self.binding.bind_output(present, *place)
        if self.signature.has("attention_mask"):
            self.ones = np.ones((1, capacity), self.signature.dtype("attention_mask"))
        if self.signature.has("position_ids"):
            self.positions = np.arange(capacity, dtype=self.signature.dtype("position_ids"))[None]
        self.capacity = capacity

    def truncate(self, length: int) -> None:
        """Nothing to do: what lies beyond the mask is never read."""

    def _bind(self, name: str, array: Array) -> None:
        self.kept[name] = array  # the binding holds an address, not the array
        self.binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


class GrowingCache:
    """Each run gives the whole cache anew; it is fed to the next run without a copy on this side."""

    kind = "growing"

    def __init__(self, session: ort.InferenceSession, signature: Signature) -> None:
        self.session, self.signature = session, signature
        self.names = ["logits", *signature.presents]
        self.past: dict[str, ort.OrtValue] = {}
        self.truncate(0)

    def run(self, past: Sequence[int], new: Array, every: bool) -> Array:
        feeds = self.signature.feeds(new, len(past), every)
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        logits, *presents = self.session.run_with_ort_values(self.names, values | self.past)
        self.past = dict(zip(self.signature.pasts, presents, strict=True))
        result: Array = logits.numpy()
        return result

    def reserve(self, length: int, used: int) -> None:
        """Nothing to do: the graph allocates."""

    def truncate(self, length: int) -> None:
        self.past = {name: self._start_of(name, length) for name in self.signature.pasts}

    def _start_of(self, name: str, length: int) -> ort.OrtValue:
        shape, dtype = self.signature.past_shape(name, length), self.signature.dtype(name)
        rows = self.past[name].numpy()[:, :, :length] if length else np.zeros(shape, dtype)
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(rows))


class NoCache:
    """The whole sequence, every time."""

    kind = "none"

    def __init__(self, session: ort.InferenceSession, signature: Signature) -> None:
        self.session, self.signature = session, signature

    def run(self, past: Sequence[int], new: Array, every: bool) -> Array:
        whole = np.concatenate([np.array([past], new.dtype), new], axis=1)
        (logits,) = self.session.run(["logits"], self.signature.feeds(whole, 0, every))
        result: Array = logits[:, -new.shape[1] :]
        return result

    def reserve(self, length: int, used: int) -> None:
        """Nothing to do: there is no cache."""

    def truncate(self, length: int) -> None:
        """Nothing to do: the caller holds the tokens."""


def _zeros(sizes: Iterable[int]) -> list[Array]:
    """Buffers of so many bytes, side by side in one allocation: numpy puts large ones on huge pages.

    Zeros are mapped when they are first written: room that is never used costs no memory.
    """
    ends = list(itertools.accumulate(sizes, initial=0))
    whole = np.zeros(ends[-1] + ALIGNMENT, np.uint8)
    aligned = whole[-whole.ctypes.data % ALIGNMENT :]
    return [aligned[start:end] for start, end in itertools.pairwise(ends)]


def _cache(session: ort.InferenceSession, signature: Signature) -> Cache:
    if not signature.pasts:
        return NoCache(session, signature)
    if signature.vocab_size is not None and writes_in_place(session, signature):
        return SharedCache(session, signature, signature.vocab_size)
    return GrowingCache(session, signature)


def writes_in_place(session: ort.InferenceSession, signature: Signature) -> bool:
    """Whether attention takes the past as a buffer with room in it.

    The graph is asked, since the names of its operators do not tell what the cache goes through: one token
    with none before it, in a buffer with room for one. In-place attention gives one row back; concatenation
    gives two, or fails.
    """
    feeds = signature.feeds(np.zeros((1, 1), signature.dtype("input_ids")), 0, every=False)
    for name in signature.pasts:
        feeds[name] = np.zeros(signature.past_shape(name, 1), signature.dtype(name))
    with contextlib.suppress(*ORT_ERRORS):
        return all(array.shape[2] == 1 for array in session.run(signature.presents, feeds))
    return False


def _open(model: Path, threads: int | None) -> ort.InferenceSession:
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise OnnxGptError(
            "threads-invalid",
            f"{threads} threads are asked for",
            f"give a number from 1 to {MOST_THREADS}, or leave it to the machine",
            exit=Exit.USAGE,
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or allowed_threads()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what it says on stderr is in the exceptions too
    try:
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        require_names(session)
        return session
    except LOADING_ERRORS as error:
        if model.suffix == ".onnx":
            from exporter.onnx_format.reader import read_file

            read_file(model)  # says better what is wrong with a file that is not whole
        raise rejected(
            "model-unloadable",
            f"onnxruntime cannot load {model}: {first_line(error):.400}",
            "build the bundle again, or use an onnxruntime that has its operators",
        ) from error


def require_names(session: ort.InferenceSession) -> None:
    """Raise UnicodeDecodeError where inputs or outputs have names that are no text."""
    for value in (*session.get_inputs(), *session.get_outputs()):
        _ = value.name


def allowed_threads() -> int:
    """0 (onnxruntime then takes the physical cores), or fewer where this process is confined to fewer."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return allowed if 0 < allowed < (os.cpu_count() or 1) else 0

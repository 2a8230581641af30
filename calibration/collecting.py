"""Runs the pieces of a decoder on calibration tokens, one piece at a time over all of them.

What goes from one piece to the next lies in files, a batch after the other, and is read and written a batch at a time:
neither the number of samples nor the number of layers shows in memory. The only file of this room that imports
onnxruntime.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.segments import Segment
from exporter.control import KEEP

BATCH_TOKENS = 2048
"""Tokens that go through a layer at once."""
EXTERNAL = 1 << 10
"""Bytes from which a weight lies beside the file of a piece and not in it."""

VALUE = ".value"
"""What names of a stream's files end in."""

DTYPES = {"tensor(float)": np.float32, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}
"""Of caches."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """A value of one batch that lies in a file."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Stream:
    """Values between two pieces, for every batch of tokens.

    A file whose value nobody needs any more is written over by the next value of its size: that costs a tenth of what a
    new file costs, which the system has to find pages for.

    Args:
        tokens: int64 ``[N, S]``, every one real.
        folder: scratch; its files are the stream's.
    """

    def __init__(self, tokens: np.ndarray, folder: Path) -> None:
        self.folder = folder
        step = max(1, BATCH_TOKENS // tokens.shape[1])
        self.batches = [tokens[i : i + step] for i in range(0, len(tokens), step)]
        self._now: dict[tuple[str, int], Kept] = {}
        self._next: dict[tuple[str, int], Kept] = {}
        self._free: dict[int, list[Path]] = {}
        self._files = itertools.count()

    def feeds(self, batch: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Values that earlier pieces left."""
        return {name: _read(self._now[name, batch]) for name in names}

    def put(self, batch: int, values: Mapping[str, np.ndarray]) -> None:
        """Leave values for the pieces that come after `advance`."""
        for name, value in values.items():
            free = self._free.get(value.nbytes)
            file = free.pop() if free else self._new()
            with file.open("r+b") as raw:
                raw.write(np.ascontiguousarray(value).data.cast("B"))
            self._next[name, batch] = Kept(file, value.shape, value.dtype)

    def state(self) -> list[list[Any]]:
        """What is fed now, as JSON holds it: for `restore`, in another process."""
        return [
            [name, batch, kept.file.name, kept.shape, kept.dtype.str]
            for (name, batch), kept in self._now.items()
        ]

    def restore(self, state: Sequence[Sequence[Any]]) -> None:
        """Feed what lies in the folder since an earlier stream of the same tokens; its other files are free."""
        for name, batch, file, shape, dtype in state:
            self._now[name, batch] = Kept(self.folder / file, tuple(shape), np.dtype(dtype))
        used = {kept.file for kept in self._now.values()}
        files = sorted(self.folder.glob(f"*{VALUE}"))
        for file in files:
            if file not in used:
                self._free.setdefault(file.stat().st_size, []).append(file)
        self._files = itertools.count(1 + max((int(file.stem) for file in files), default=-1))

    def close(self) -> None:
        """Remove the stream's files."""
        for file in self.folder.glob(f"*{VALUE}"):
            file.unlink()

    def advance(self, passing: Sequence[str] = ()) -> None:
        """What was put becomes what is fed; of what was fed, ``passing`` values stay."""
        for (name, batch), kept in self._now.items():
            if name in passing:
                self._next[name, batch] = kept
            else:
                self._free.setdefault(kept.nbytes, []).append(kept.file)
        self._now, self._next = self._next, {}

    def _new(self) -> Path:
        file = self.folder / f"{next(self._files)}{VALUE}"
        file.touch()
        return file


def _read(kept: Kept) -> np.ndarray:
    return np.fromfile(kept.file, kept.dtype, math.prod(kept.shape)).reshape(kept.shape)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A segment loaded into onnxruntime.

    Attributes:
        outputs: names of the values that it gives out.
        inputs: shape and onnxruntime's type of each, by name.
    """

    session: object
    outputs: tuple[str, ...]
    inputs: Mapping[str, tuple[Sequence[int | str], str]]

    def run(self, tokens: np.ndarray, incoming: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, for tokens ``[B, S]`` with nothing before them."""
        keep = np.array(0, np.int64)  # asked for where a runtime takes no defaults
        feeds = {**incoming, "input_ids": tokens, "attention_mask": np.ones_like(tokens), KEEP: keep}
        for name, (shape, dtype) in self.inputs.items():
            if name.startswith("past_key_values."):
                feeds[name] = np.zeros((len(tokens), int(shape[1]), 0, int(shape[3])), DTYPES[dtype])
        fed = {name: value for name, value in feeds.items() if name in self.inputs}
        given = self.session.run(list(self.outputs), fed)  # type: ignore[attr-defined]
        return dict(zip(self.outputs, given, strict=True))


def load(segment: Segment, outputs: Sequence[str], folder: Path, threads: int | None = None) -> Piece:
    """Write a segment to scratch and load it, giving out the named values of it, whichever they are.

    The segment is left as it was; its weights are read while it is written, a piece at a time.
    """
    import onnxruntime as ort

    folder.mkdir(exist_ok=True)
    graph = segment.model.graph
    known = {str(v.name): v for node in graph for v in node.outputs}
    kept = list(graph.outputs)
    graph.outputs[:] = [known[name] for name in outputs]
    try:
        ir.save(
            segment.model,
            folder / "piece.onnx",
            external_data="piece.data",
            size_threshold_bytes=EXTERNAL,
            max_workers=1,
        )
    finally:
        graph.outputs[:] = kept
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False  # a batch's buffers go back when it is done
    options.log_severity_level = 3
    # batches are long, and others want the core
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(folder / "piece.onnx", options, providers=["CPUExecutionProvider"])
    inputs = {value.name: (value.shape, value.type) for value in session.get_inputs()}
    return Piece(session, tuple(outputs), inputs)


def taps(segment: Segment) -> dict[str, str]:
    """The input of each product, by the name of its matrix; lookups have none."""
    return {str(site.table.name): str(site.input.name) for site in segment.sites() if site.kind == "multiply"}


def run(piece: Piece, segment: Segment, stream: Stream) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Each batch's number, and its values: those the piece gives and those it was given."""
    for batch, tokens in enumerate(stream.batches):
        incoming = stream.feeds(batch, segment.incoming)
        given = piece.run(tokens, incoming) if piece.outputs else {}
        yield batch, {**incoming, **given}

"""Writes a checkpoint as an ordinary Hugging Face folder: config.json, safetensors, the tokenizer's files.

The opposite of `exporter.sources.hf_directory` and `exporter.match`. Weights are expressions and are read while
they are written, a piece of rows at a time; the same checkpoint gives the same bytes. The folder is the caller's,
who stages it. Format: https://github.com/huggingface/safetensors, a header length (u64, little endian), a JSON
header, the bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from exporter import variants
from exporter.checkpoint import Checkpoint
from exporter.decoder import Decoder, Part
from exporter.errors import rejected
from exporter.families import describe
from exporter.match import matched
from exporter.stored_weights import STORED_DTYPES, NotFloat, Stored
from exporter.weight_expressions import Rows, Stack, plus, times, transposed
from exporter.weights import Array, Weight, Zeros

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 4 << 30
"""Largest file of weights, unless one tensor alone is larger."""

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Types that weights are written in, and what ``config.json`` calls them."""


def stored_weights(decoder: Decoder, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Weights by role as tensors by their names, laid out as the family stores them; nothing is read.

    The inverse of `exporter.match.match_weights`: projections that a family packs are packed, ``[in, out]`` is
    turned, constants are taken off and divided by.

    Args:
        weights: by role (``layers.3.ffn.down.weight``), each in the shape that the decoder states.
    """
    parts = dict(decoder.parts())
    wrong = [
        f"{role}: {list(weights[role].shape)}, the decoder has {list(part.shape)}"
        if role in weights
        else f"{role}: missing"
        for role, part in parts.items()
        if role not in weights or weights[role].shape != part.shape
    ]
    if wrong:
        raise ValueError(f"weights do not fit the decoder: {'; '.join(wrong)}")
    shares: dict[str, list[tuple[Part, Weight]]] = {}
    for role, part in parts.items():
        shares.setdefault(part.name, []).append((part, weights[role]))
    constants = {name: Array(np.array(value, np.float32)) for name, value in decoder.constants}
    return {name: _stored(share) for name, share in shares.items()} | constants


def _stored(share: list[tuple[Part, Weight]]) -> Weight:
    """One tensor out of the parts that it holds."""
    part, weight = share[0]
    if part.rows is not None:
        weight = _packed(share)
    if part.times != 1.0:
        weight = times(weight, 1 / part.times)
    if part.plus:
        weight = plus(weight, -part.plus)
    return transposed(weight) if part.transposed else weight


def _packed(share: list[tuple[Part, Weight]]) -> Weight:
    """The rows of several parts, each where it belongs; zeros before them where no part reads what lies there (OPT)."""
    first = min(start for part, _ in share for start, _ in part.rows or ())
    placed: list[tuple[int, Weight]] = [(0, Zeros((first, *share[0][1].shape[1:])))] if first else []
    for part, weight in share:
        at = 0
        for start, stop in part.rows or ():
            whole = stop - start == weight.shape[0]
            placed.append((start, weight if whole else Rows(weight, ((at, at + stop - start),))))
            at += stop - start
    return Stack(tuple(weight for _, weight in sorted(placed, key=lambda entry: entry[0])))


def ordinary(checkpoint: Checkpoint) -> Checkpoint:
    """A variant as the ordinary checkpoint of the same function, zeros in place of what it lacks; others as they
    are.

    Raises:
        OnnxGptError: ``config-invalid``, ``weights-mismatch``.
    """
    if variants.variant_of(checkpoint.config) is None:
        return checkpoint
    _, own = matched(checkpoint)
    plain = dataclasses.replace(checkpoint, config=variants.ordinary_config(checkpoint.config))
    whole = describe(plain)
    return dataclasses.replace(plain, weights=stored_weights(whole, variants.filled(whole, own)))


def dtype_of(weights: Iterable[Weight]) -> str:
    """The half type that all of a source's tensors are stored in, where there is one; else ``F32``."""
    dtypes = {weight.dtype for weight in weights if isinstance(weight, Stored)}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= {"F16", "BF16"} else "F32"


def nbytes(checkpoint: Checkpoint, dtype: str = "F32") -> int:
    """Bytes that the weights will take."""
    return sum(map(_elements, checkpoint.weights.values())) * STORED_DTYPES[dtype].itemsize


def write_checkpoint(
    folder: Path, checkpoint: Checkpoint, *, dtype: str = "F32", shard_bytes: int = SHARD_BYTES
) -> None:
    """Fill an empty folder with a checkpoint that this project and transformers load.

    Args:
        checkpoint: its weights by the names and in the layout of its family, as `stored_weights` gives them.
            Tensors that hold no floats (causal masks) are left out.
        dtype: a key of `DTYPES`.
        shard_bytes: bytes of a file from which another is begun.

    Raises:
        OnnxGptError: ``weights-overflow`` for a value that the type cannot hold; what reading the weights raises.
    """
    shards = _shards(checkpoint.weights, STORED_DTYPES[dtype].itemsize, shard_bytes)
    names = _names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            _write_shard(file, shard, dtype)
    if len(shards) > 1:
        placed = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": nbytes(checkpoint, dtype)}, "weight_map": placed}
        _write_json(folder / INDEX, index)
    called = "torch_dtype" if "torch_dtype" in checkpoint.config else "dtype"
    _write_json(folder / "config.json", {**checkpoint.config, called: DTYPES[dtype]})
    for name, content in checkpoint.files.items():
        (folder / name).write_bytes(content)


def _shards(weights: Mapping[str, Weight], itemsize: int, limit: int) -> list[dict[str, Weight]]:
    shards: list[dict[str, Weight]] = [{}]
    filled = 0
    for name in sorted(name for name, weight in weights.items() if not isinstance(weight, NotFloat)):
        size = _elements(weights[name]) * itemsize
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = weights[name]
        filled += size
    return shards


def _names(count: int) -> list[str]:
    stem = WEIGHTS.removesuffix(".safetensors")
    return [WEIGHTS] if count == 1 else [f"{stem}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]


def _write_shard(file: IO[bytes], shard: Mapping[str, Weight], dtype: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, weight in shard.items():
        end = at + _elements(weight) * STORED_DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(weight.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for name, weight in shard.items():
        for start, stop in weight.pieces():
            file.write(_cast(weight.rows(start, stop), dtype, name).tobytes())


def _cast(rows: np.ndarray, dtype: str, name: str) -> np.ndarray:
    if dtype == "F32":
        return rows
    with np.errstate(over="ignore"):
        cast = rows.astype(STORED_DTYPES[dtype])
    if not np.isfinite(cast.astype(np.float32)).all():
        raise rejected(
            "weights-overflow",
            f"{name} has a value of {np.abs(rows).max():.3g}, which {DTYPES[dtype]} cannot hold",
            "use a source in float32 or bfloat16",
        )
    return cast


def _elements(weight: Weight) -> int:
    return 0 if isinstance(weight, NotFloat) else math.prod(weight.shape)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(
        json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8", newline="\n"
    )

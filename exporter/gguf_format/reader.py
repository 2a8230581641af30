"""A GGUF header, read with bounds.

The file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), all little-endian:

    "GGUF", version u32, tensor count u64, key count u64
    keys:    name string, value type u32, value         string: length u64, bytes
    tensors: name string, number of dims u32, dims u64…, type u32, offset u64
    padding to the alignment, then the tensors' data; offsets count from here

Every count is a stranger's word. Nothing is allocated by one before it has been held against the bytes that
the file really has, and the header as a whole may not be longer than `HEADER_LIMIT`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from exporter.errors import OnnxGptError, rejected, unsupported

Value: TypeAlias = "bool | int | float | str | list[str] | np.ndarray"

MAGIC = b"GGUF"
HEADER_LIMIT = 64 << 20
"""Bytes that a header may have; the largest vocabularies need about 10 MB."""
ITEM_LIMIT = 1 << 22
"""Items of one array: no vocabulary or merge list comes near."""
ENTRY_LIMIT = 1 << 16
"""Keys, and tensors."""
MAX_DIMS = 4
ALIGNMENT = 32

_SCALARS: Mapping[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8",
    12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies.

    Attributes:
        shape: row-major, the reverse of how GGUF writes it: ``[out, in]`` for a linear map.
        offset: from the start of the file, in bytes.
        nbytes: of data.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        metadata: values by key; number arrays are numpy arrays, string arrays lists.
        tensors: in the order of the file.
    """

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorEntry]

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number, not negative. An array of equal numbers (one a layer) counts as one number.

        Raises:
            OnnxGptError: ``gguf-invalid`` where it is absent and has no default, or is something else.
        """
        value = self.metadata.get(key, default)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
            if (value != value[0]).any():
                raise unsupported(
                    "gguf-key-unsupported",
                    f"{self.path.name}: {key} differs between layers: {value[:8].tolist()}…",
                    "use a model whose layers all have the same shape",
                )
            value = int(value[0])
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.invalid(f"{key} should be a whole number and is {_shown(value)}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number. A float32 is read as the shortest decimal that means it: 1e-05, not 9.9999e-06."""
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.invalid(f"{key} should be a number and is {_shown(value)}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise self.invalid(f"{key} should be true or false and is {_shown(value)}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self.invalid(f"{key} should be a string and is {_shown(value)}")
        return value

    def strings(self, key: str) -> list[str]:
        value = self.metadata.get(key)
        if not isinstance(value, list):
            raise self.invalid(f"{key} should be an array of strings and is {_shown(value)}")
        return value

    def numbers(self, key: str) -> np.ndarray:
        value = self.metadata.get(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
            raise self.invalid(f"{key} should be an array of numbers and is {_shown(value)}")
        return value

    def invalid(self, cause: str) -> OnnxGptError:
        """The error for a header that contradicts itself."""
        return invalid(self.path, cause)


def invalid(path: Path, cause: str) -> OnnxGptError:
    return rejected("gguf-invalid", f"{path.name}: {cause}", "get the file again, or convert the model again")


def read_header(path: Path) -> Header:
    """Read and check everything before the tensors' data.

    Raises:
        OnnxGptError: ``gguf-invalid`` (exit 4) for a file that is damaged, truncated or hostile,
            ``gguf-version`` and ``gguf-type-unsupported`` (exit 3) for one that is newer, older or of another
            byte order.
    """
    with path.open("rb", buffering=1 << 20) as file:
        size = path.stat().st_size
        cursor = _Cursor(path, file, min(size, HEADER_LIMIT))
        if cursor.take(4) != MAGIC:
            raise invalid(path, "it does not begin with GGUF")
        _check_version(path, cursor.take(4))
        tensor_count, key_count = cursor.count(ENTRY_LIMIT, 24), cursor.count(ENTRY_LIMIT, 13)
        metadata: dict[str, Value] = {}
        for _ in range(key_count):
            key = cursor.string()
            if key in metadata:
                raise invalid(path, f"key {_shown(key)} is there twice")
            metadata[key] = cursor.value(cursor.u32(), key)
        tensors = [_tensor(cursor) for _ in range(tensor_count)]
        alignment = _alignment(path, metadata)
        start = -(-cursor.at // alignment) * alignment
    return Header(path, metadata, _placed(path, tensors, start, size, alignment))


class _Cursor:
    """A place in the header that never runs past its end."""

    def __init__(self, path: Path, file: BinaryIO, end: int) -> None:
        self.path = path
        self.file = file
        self.end = end
        self.at = 0

    def take(self, n: int) -> bytes:
        if n > self.end - self.at:
            raise invalid(self.path, f"the header wants {n} bytes at {self.at}, beyond its end at {self.end}")
        self.at += n
        data = self.file.read(n)
        if len(data) != n:
            raise invalid(self.path, "the file became shorter while it was read")
        return data

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def count(self, limit: int, item: int) -> int:
        """A number of items that take at least ``item`` bytes each."""
        n = self.u64()
        if n > limit or n * item > self.end - self.at:
            raise invalid(
                self.path, f"the header announces {n} items at {self.at - 8}, more than it can hold"
            )
        return n

    def string(self) -> str:
        data = self.take(self.u64())
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise invalid(self.path, f"a string at {self.at - len(data)} is not UTF-8") from error

    def value(self, type: int, key: str) -> Value:
        if type == _STRING:
            return self.string()
        if type == _ARRAY:
            return self._array(self.u32(), key)
        item: np.generic = self._numbers(type, 1, key)[0]
        if isinstance(item, np.float32):
            return float(str(item))
        plain: bool | int | float = item.item()
        return plain

    def _array(self, type: int, key: str) -> Value:
        if type == _STRING:
            return [self.string() for _ in range(self.count(ITEM_LIMIT, 8))]
        if type == _ARRAY:
            raise invalid(self.path, f"{_shown(key)} is an array of arrays")
        return self._numbers(type, self.count(ITEM_LIMIT, 1), key)

    def _numbers(self, type: int, n: int, key: str) -> np.ndarray:
        if type not in _SCALARS:
            raise invalid(self.path, f"{_shown(key)} has a value of type {type}, which does not exist")
        dtype = np.dtype(_SCALARS[type])
        data = self.take(n * dtype.itemsize)
        if dtype.kind == "b" and not set(data) <= {0, 1}:
            raise invalid(self.path, f"{_shown(key)} is neither true nor false")
        return np.frombuffer(data, dtype)


def _check_version(path: Path, raw: bytes) -> None:
    (version,) = struct.unpack("<I", raw)
    if version in (2, 3):
        return
    big = struct.unpack(">I", raw)[0] in (1, 2, 3)
    raise unsupported(
        "gguf-version",
        f"{path.name} is a big-endian GGUF file" if big else f"{path.name} has GGUF version {version}",
        "convert the model again, little-endian and as version 2 or 3",
    )


def _alignment(path: Path, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 1 <= value <= 1 << 20
        or value & (value - 1)
    ):
        raise invalid(path, f"general.alignment should be a power of two and is {_shown(value)}")
    return value


def _tensor(cursor: _Cursor) -> TensorEntry:
    """A tensor's entry; its offset still counts from the start of the data."""
    name = cursor.string()
    n_dims = cursor.u32()
    if not 1 <= n_dims <= MAX_DIMS:
        raise invalid(cursor.path, f"tensor {_shown(name)} has {n_dims} dimensions")
    dims = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims))
    type, offset = cursor.u32(), cursor.u64()
    try:
        kind = GGMLQuantizationType(type)
    except ValueError as error:
        raise unsupported(
            "gguf-type-unsupported",
            f"{cursor.path.name}: tensor {_shown(name)} has type {type}, which is not known",
            "use a file quantized to a type between Q2_K and Q8_0, or F16",
        ) from error
    block, nbytes = GGML_QUANT_SIZES[kind]
    elements = math.prod(dims)
    if not 0 < elements < 1 << 50 or dims[0] % block:
        raise invalid(
            cursor.path, f"tensor {_shown(name)} of type {kind.name} has the dimensions {list(dims)}"
        )
    return TensorEntry(name, dims[::-1], kind, offset, elements // block * nbytes)


def _placed(
    path: Path, tensors: list[TensorEntry], start: int, size: int, alignment: int
) -> dict[str, TensorEntry]:
    """Tensors with offsets from the start of the file: aligned, inside it, none over another."""
    placed: dict[str, TensorEntry] = {}
    for tensor in tensors:
        if tensor.name in placed:
            raise invalid(path, f"tensor {_shown(tensor.name)} is there twice")
        if tensor.offset % alignment:
            raise invalid(
                path, f"tensor {_shown(tensor.name)} begins at {tensor.offset}, off the alignment {alignment}"
            )
        if start + tensor.offset + tensor.nbytes > size:
            raise invalid(
                path,
                f"tensor {_shown(tensor.name)} ends at byte {start + tensor.offset + tensor.nbytes} "
                f"of a file of {size}",
            )
        placed[tensor.name] = dataclasses.replace(tensor, offset=start + tensor.offset)
    ordered = sorted(placed.values(), key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise invalid(path, f"tensors {_shown(before.name)} and {_shown(after.name)} overlap")
    return placed


def _shown(value: object) -> str:
    """A value for a message, short whatever it is."""
    if value is None:
        return "absent"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"

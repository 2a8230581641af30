"""The safetensors format: a header length (u64, little endian), a JSON header, then the tensors' bytes.

The header is ours to check, since the file may come from anyone: every byte of the data belongs to exactly
one tensor, and every tensor is as large as its shape and dtype say. Only the header is read here.
"""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

from exporter.errors import OnnxGptError, rejected
from exporter.sources._files import JSON_LIMIT, parse_json_object, unreadable
from exporter.stored_weights import STORED_DTYPES, NotFloat, Stored
from exporter.weights import Weight

OTHER_DTYPES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "U32": 4,
    "I32": 4,
    "U64": 8,
    "I64": 8,
    "C64": 8,
}
"""Bytes of the format's dtypes that hold no weights: causal masks, position tables, quantized codes."""

MAX_RANK, MAX_DIM = 8, 1 << 40
"""No tensor of a decoder comes near; arithmetic on shapes stays within int64."""

FINDINGS_SHOWN = 50

LFS_POINTER = b"version "
"""How the file begins that Git LFS checks out where it has not fetched the real one."""


def read_header(path: Path) -> dict[str, Weight]:
    """The tensors of a file by name, in file order, none of them read.

    Raises:
        OnnxGptError: ``weights-corrupt``, with everything that is wrong with the file's tensors;
            ``file-unreadable``.
    """
    data, size = _header_bytes(path)
    length = len(data)
    header = parse_json_object(data, f"the header of {str(path)!r}", "weights-corrupt")
    header.pop("__metadata__", None)

    findings: list[str] = []
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, Weight] = {}
    for name, entry in header.items():
        finding = _malformed(name, entry)
        if finding is not None:
            findings.append(finding)
            continue
        start, stop = entry["data_offsets"]
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        spans.append((start, stop, name))
        tensors[name] = (
            Stored(path, 8 + length + start, dtype, shape, name)
            if dtype in STORED_DTYPES
            else NotFloat(name, dtype, shape)
        )
    findings += _misplaced(spans, size - 8 - length) if not findings else []
    if findings:
        raise _corrupt(path, f"has a bad header ({len(findings)} findings)", findings)
    return {name: tensors[name] for _, _, name in sorted(spans)}


def _header_bytes(path: Path) -> tuple[bytes, int]:
    """The JSON header, and the size of the file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if prefix == LFS_POINTER:
                raise rejected(
                    "weights-corrupt",
                    f"{str(path)!r} is no weights, but what Git LFS leaves in place of them",
                    "run git lfs pull in its folder, or download the file",
                )
            if len(prefix) < 8 or 8 + length > size:
                wanted = 8 if len(prefix) < 8 else 8 + length
                raise _corrupt(path, f"has {size} bytes where its header alone needs {wanted}")
            if length > JSON_LIMIT:
                raise _corrupt(path, f"has a header of {length} bytes, more than {JSON_LIMIT}")
            return file.read(length), size
    except OSError as error:
        raise unreadable(path, error) from error


def _malformed(name: str, entry: Any) -> str | None:
    """What is wrong with one entry of the header by itself."""
    if not name.isprintable():
        return f"{name!r} is not a printable name"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return f"{name} is not described by dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in STORED_DTYPES and dtype not in OTHER_DTYPES):
        return f"{name} has the unknown dtype {dtype!r:.80}"
    if not _naturals(shape) or len(shape) > MAX_RANK or any(dim > MAX_DIM for dim in shape):
        return f"{name} has the impossible shape {shape!r:.80}"
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"{name} has the impossible data_offsets {offsets!r:.80}"
    itemsize = STORED_DTYPES[dtype].itemsize if dtype in STORED_DTYPES else OTHER_DTYPES[dtype]
    wanted, given = math.prod(shape) * itemsize, offsets[1] - offsets[0]
    if wanted != given:
        return f"{name} {shape} in {dtype} takes {wanted} bytes, its data_offsets give {given}"
    return None


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _misplaced(spans: list[tuple[int, int, str]], size: int) -> list[str]:
    """Overlaps, holes, and data that ends before or after the file does."""
    findings = []
    ordered = sorted(spans)
    for (_, end, before), (start, _, name) in itertools.pairwise([(0, 0, "the header"), *ordered]):
        if start < end:
            findings.append(f"{name} starts at byte {start}, inside {before}, which ends at {end}")
        elif start > end:
            findings.append(f"{start - end} bytes between {before} and {name} belong to no tensor")
    last = max((stop for _, stop, _ in ordered), default=0)
    if last > size:
        outside = [name for _, stop, name in ordered if stop > size]
        findings.append(f"the tensors need {last} bytes of data, the file has {size}: it is truncated")
        findings += [f"{name} lies beyond the end of the file" for name in outside]
    elif last < size:
        findings.append(f"{size - last} bytes at the end of the file belong to no tensor")
    return findings


def _corrupt(path: Path, what: str, findings: list[str] | None = None) -> OnnxGptError:
    shown = (findings or [])[:FINDINGS_SHOWN]
    return rejected(
        "weights-corrupt",
        f"{str(path)!r} {what}",
        "download or save the file again",
        tuple(shown),
    )

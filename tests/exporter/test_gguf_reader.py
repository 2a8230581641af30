"""GGUF headers that lie: one error each, soon, and without the memory that they ask for."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exporter.errors import Exit, OnnxGptError
from exporter.gguf_format.reader import read_header
from exporter.sources import load

U8, I32, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def key(name: str, type: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", type) + value


def tensor(name: str, dims: tuple[int, ...], type: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type, offset)


def container(
    keys: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: int = 0, version: int = 3,
    magic: bytes = b"GGUF", n_keys: int | None = None, n_tensors: int | None = None, alignment: int = 32,
) -> bytes:  # fmt: skip
    """A file with any of its promises broken."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + b"\x11" * data


def read(content: bytes, tmp_path: Path) -> Any:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    return read_header(path)


HUGE = 2**63
REJECTED = {
    "empty": b"",
    "magic": container(magic=b"GGML"),
    "cut in the magic": b"GG",
    "cut in the counts": container()[:12],
    "keys without end": container(n_keys=HUGE),
    "tensors without end": container(n_tensors=2**64 - 1),
    "more keys than there are": container([key("a", U8, b"\1")], n_keys=3),
    "a key longer than the file": container([struct.pack("<Q", HUGE) + b"abc"]),
    "a string longer than the file": container([key("a", STRING, struct.pack("<Q", 1 << 40))]),
    "an array longer than the file": container([key("a", ARRAY, struct.pack("<IQ", F32, 1 << 60))]),
    "strings longer than the file": container([key("a", ARRAY, struct.pack("<IQ", STRING, 1 << 40))]),
    "arrays in arrays": container([key("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 3)]),
    "a value of no type": container([key("a", 13, b"\0" * 8)]),
    "an array of no type": container([key("a", ARRAY, struct.pack("<IQ", 99, 1))]),
    "neither true nor false": container([key("a", BOOL, b"\2")]),
    "no UTF-8": container([key("a", STRING, string(b"\xff\xfe"))]),
    "a key twice": container([key("a", U8, b"\1"), key("a", U8, b"\2")]),
    "alignment of no power of two": container([key("general.alignment", U32, struct.pack("<I", 33))]),
    "alignment of zero": container([key("general.alignment", U32, struct.pack("<I", 0))]),
    "alignment in words": container([key("general.alignment", STRING, string("32"))]),
    "no dimensions": container(tensors=[tensor("t", ())], data=64),
    "five dimensions": container(tensors=[tensor("t", (1, 1, 1, 1, 1))], data=64),
    "dimensions without end": container(tensors=[string("t") + struct.pack("<I", 2**32 - 1)], data=64),
    "a dimension of zero": container(tensors=[tensor("t", (4, 0))], data=64),
    "a negative dimension": container(tensors=[tensor("t", (2**64 - 4,))], data=64),
    "dimensions that overflow to little": container(tensors=[tensor("t", (2**32, 2**32))], data=64),
    "a row of half a block": container(tensors=[tensor("t", (16, 4), 2)], data=64),
    "a tensor past the end": container(tensors=[tensor("t", (17,))], data=64),
    "a tensor beyond the end": container(tensors=[tensor("t", (1,), 0, 1 << 50)], data=64),
    "an offset that wraps around": container(tensors=[tensor("t", (16,), 0, 2**64 - 32)], data=64),
    "an offset off the alignment": container(tensors=[tensor("t", (4,), 0, 8)], data=64),
    "a tensor twice": container(tensors=[tensor("t", (4,)), tensor("t", (4,), 0, 32)], data=64),
    "tensors over one another": container(tensors=[tensor("a", (16,)), tensor("b", (4,), 0, 32)], data=64),
}  # fmt: skip
UNSUPPORTED = {
    "version 1": container(version=1),
    "version 4": container(version=4),
    "big-endian": container(version=int.from_bytes(struct.pack(">I", 3), "little")),
    "a type to come": container(tensors=[tensor("t", (4,), 99)], data=64),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_header_that_lies_is_rejected(name: str, tmp_path: Path) -> None:
    tracemalloc.start()
    with pytest.raises(OnnxGptError) as error:
        read(REJECTED[name], tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.value.code == "gguf-invalid"
    assert error.value.exit == Exit.REJECTED
    assert peak < 4 << 20  # the read buffer, and no more


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_newer_or_older_is_unsupported(name: str, tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError) as error:
        read(UNSUPPORTED[name], tmp_path)
    assert error.value.exit == Exit.UNSUPPORTED


def test_reads_what_the_gguf_library_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_uint8("a.u8", 250)
    writer.add_int64("a.i64", -(2**40))
    writer.add_float32("a.f32", 1e-5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "Grüße 😀")
    writer.add_array("a.strings", ["a", "", "ü"])
    writer.add_array("a.floats", [0.5, -1.0])
    first, second = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(5, dtype=np.float16)
    writer.add_tensor("first", first)
    writer.add_tensor("second", second)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_header(tmp_path / "m.gguf")
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in header.metadata.items()}
    assert plain == {
        "general.architecture": "llama", "general.alignment": 64, "a.u8": 250, "a.i64": -(2**40),
        "a.f32": 1e-5, "a.f64": 0.1, "a.bool": True, "a.string": "Grüße 😀", "a.strings": ["a", "", "ü"],
        "a.floats": [0.5, -1.0],
    }  # fmt: skip
    content = (tmp_path / "m.gguf").read_bytes()
    for name, array in (("first", first), ("second", second)):
        entry = header.tensors[name]
        assert entry.shape == array.shape
        assert entry.offset % 64 == 0
        assert content[entry.offset : entry.offset + entry.nbytes] == array.tobytes()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A whole model with a tokenizer, small enough that most bytes of it are header."""
    import gguf_samples as samples

    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    samples.convert_with_tokenizer(samples.tiny("llama"), path)
    return path.with_name("mutated.gguf"), path.read_bytes()


EDITS = st.tuples(st.floats(0, 1), st.sampled_from(["set", "flip", "grow", "word"]), st.integers(0, 255))


@given(edits=st.lists(EDITS, max_size=4), keep=st.none() | st.floats(0, 1))
@example(edits=[], keep=None)
@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_loads_or_is_refused(
    small: tuple[Path, bytes], edits: list[tuple[float, str, int]], keep: float | None
) -> None:
    """Any other exception fails the test, and so does a load that takes long."""
    path, content = small
    damaged = bytearray(content)
    for where, how, value in edits:
        at = int(where * min(len(damaged) - 9, 6000))
        if how == "set":
            damaged[at] = value
        elif how == "flip":
            damaged[at] ^= 1 << value % 8
        elif how == "grow":
            damaged[at:at] = bytes([value])
        else:
            damaged[at : at + 8] = struct.pack("<Q", (1 << value % 64) - (value & 1))
    path.write_bytes(bytes(damaged if keep is None else damaged[: int(keep * len(damaged))]))
    try:
        checkpoint = load(str(path))
        for weight in checkpoint.weights.values():  # type: ignore[union-attr]
            weight.rows(0, 1)
    except OnnxGptError as error:
        assert error.exit in (Exit.REJECTED, Exit.UNSUPPORTED)
        assert len(str(error)) < 5000

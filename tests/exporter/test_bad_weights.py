"""Weight files that are truncated, forged or full of NaN: one clear error, and never a Python exception."""

from __future__ import annotations

import io
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from exporter.checkpoint import Checkpoint
from exporter.errors import Exit, OnnxGptError
from exporter.sources import load
from exporter.stored_weights import Stored, require_finite
from exporter.weight_expressions import Rows, Stack, transposed
from exporter.weight_tensor import WeightTensor
from exporter.weights import Array, Zeros

SMALL = save(
    {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
        "c": np.ones(5, np.float16),
        "mask": np.ones((2, 2), np.bool_),
    }
)
HEADER = json.loads(SMALL[8 : 8 + int.from_bytes(SMALL[:8], "little")])
DATA = SMALL[8 + int.from_bytes(SMALL[:8], "little") :]


def forged(header: object, data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def changed(name: str, **changes: object) -> bytes:
    return forged(HEADER | {name: HEADER[name] | changes})


def opened(folder: Path, content: bytes) -> Checkpoint:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    return load(str(folder))


BAD = {
    "empty": b"",
    "seven bytes": SMALL[:7],
    "header length alone": SMALL[:8],
    "cut in the header": SMALL[:100],
    "cut in the data": SMALL[:-1],
    "no data": forged(HEADER, b""),
    "one byte too many": SMALL + b"\0",
    "giant header": (1 << 62).to_bytes(8, "little") + SMALL[8:],
    "negative header": b"\xff" * 8 + SMALL[8:],
    "header not UTF-8": forged(b'{"\xff": 1}'),
    "header not JSON": forged(b"{]"),
    "header a list": forged([]),
    "header too deep": forged(b'{"a":' * 100_000),
    "name twice": forged(b'{"a": %s, "a": %s}' % ((json.dumps(HEADER["a"]).encode(),) * 2)),
    "name with an escape sequence": forged({"a\x1b[2J": HEADER["a"]}, DATA[:48]),
    "entry a list": forged(HEADER | {"a": []}),
    "entry with more": changed("a", more=1),
    "entry with less": forged(HEADER | {"a": {"dtype": "F32"}}),
    "unknown dtype": changed("a", dtype="F31"),
    "dtype a list": changed("a", dtype=["F32"]),
    "wrong dtype": changed("a", dtype="F16"),
    "wrong shape": changed("a", shape=[3, 5]),
    "negative shape": changed("a", shape=[-3, -4]),
    "float shape": changed("a", shape=[3.0, 4]),
    "true shape": changed("a", shape=[True, 12]),
    "rank 10000": changed("a", shape=[1] * 10_000),
    "absurd shape": changed("a", shape=[0, 1 << 62, 1 << 62]),
    "overflowing shape": changed("a", shape=[1 << 32, 1 << 32, 12]),
    "offsets backwards": changed("a", data_offsets=[48, 0]),
    "offsets negative": changed("a", data_offsets=[-48, 0]),
    "offsets of three": changed("a", data_offsets=[0, 24, 48]),
    "offsets overlapping": changed("b", data_offsets=HEADER["c"]["data_offsets"], shape=[5]),
    "offsets with a hole": changed("a", shape=[2, 4], data_offsets=[0, 32]),
    "offsets beyond the end": changed("a", data_offsets=[1 << 40, (1 << 40) + 48]),
    "same bytes twice": forged(HEADER | {"twin": HEADER["a"]}),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(OnnxGptError) as caught:
        opened(tmp_path, content)
    assert (caught.value.code, caught.value.exit) == ("weights-corrupt", Exit.REJECTED)
    assert "model.safetensors" in str(caught.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError) as caught:
        opened(
            tmp_path, forged(HEADER | {"a": HEADER["a"] | {"dtype": "X"}, "c": HEADER["c"] | {"shape": [4]}})
        )
    assert len(caught.value.details) == 2


def test_what_the_format_allows_is_accepted(tmp_path: Path) -> None:
    meta = forged({"__metadata__": {"format": "pt"}} | HEADER)
    assert opened(tmp_path, meta).weights.keys() == HEADER.keys() - {"__metadata__"}
    assert np.array_equal(opened(tmp_path, meta).weights["a"].read(), np.arange(12).reshape(3, 4))
    scalar = forged({"s": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, b"\0\0\0\0")
    assert opened(tmp_path, scalar).weights["s"].shape == ()
    assert not opened(tmp_path, forged({}, b"")).weights


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_and_cut_bytes_load_or_are_rejected(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "drop", "insert"]))
        if kind == "flip":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at + 1 :]
        elif kind == "drop":
            del content[at : at + data.draw(st.integers(1, 8))]
            content = content or bytearray(1)
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    try:
        for weight in opened(tmp_path, bytes(content)).weights.values():
            if isinstance(weight, Stored) and weight.shape:
                weight.read()
    except OnnxGptError:
        pass


def test_a_file_cut_after_it_was_opened_is_rejected(tmp_path: Path) -> None:
    weight = opened(tmp_path, SMALL).weights["c"]
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(len(SMALL) - 12)
    with pytest.raises(OnnxGptError, match="has changed since it was opened"):
        weight.read()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_named_when_read(tmp_path: Path, value: float, dtype: type) -> None:
    matrix = np.ones((7, 5), np.float32)
    matrix[4, 3] = value
    weights = opened(tmp_path, save({"w": matrix.astype(dtype)})).weights
    assert weights["w"].rows(0, 4).all()
    for read in (
        weights["w"].read,
        lambda: weights["w"].rows(3, 6),
        lambda: WeightTensor("x", weights["w"], transpose=True).numpy(),
        lambda: WeightTensor("x", weights["w"]).tofile(io.BytesIO()),
        lambda: WeightTensor("x", Stack((Zeros((2, 5)), Rows(weights["w"], ((2, 5),))))).tofile(io.BytesIO()),
    ):
        with pytest.raises(OnnxGptError) as caught:
            read()
        assert caught.value.code == "weights-not-finite"
        assert f"w[4, 3] is {value}" in str(caught.value)


def test_a_double_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    weights = opened(tmp_path, save({"w": np.array([1.0, 1e300])})).weights
    with pytest.raises(OnnxGptError, match=r"w\[1\] is inf"):
        weights["w"].read()


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=40),
)
@example(values=[3e38, 3e38, 3e38])
@example(values=[np.inf, -np.inf])
def test_require_finite_agrees_with_isfinite(values: list[float]) -> None:
    array = np.array(values, np.float32)
    if np.isfinite(array).all():
        assert require_finite(array, "w") is array
        return
    with pytest.raises(OnnxGptError) as caught:
        require_finite(array, "w", 100)
    first = int(np.flatnonzero(~np.isfinite(array))[0])
    assert f"w[{100 + first}] is" in str(caught.value)


def test_transposing_twice_is_the_weight_itself() -> None:
    weight = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert transposed(transposed(weight)) is weight
    assert np.array_equal(transposed(weight).rows(1, 3), weight.array.T[1:3])


def test_zeros_have_the_rows_asked_for() -> None:
    assert Zeros((4, 3)).rows(1, 3).shape == (2, 3)
    assert not Zeros((4,)).read().any()

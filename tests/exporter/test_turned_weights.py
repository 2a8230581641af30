"""Matrices that lie the other way round: any rows and columns of them, written as they lie, never read whole."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter import stored_weights, weights
from exporter.errors import OnnxGptError
from exporter.stored_weights import Stored
from exporter.weight_expressions import Rows, Stack, transposed
from exporter.weight_tensor import WeightTensor
from exporter.weights import Weight


def stored(folder: Path, array: np.ndarray, dtype: str = "F32") -> Stored:
    path = folder / "weights.bin"
    path.write_bytes(b"head" + array.astype(stored_weights.STORED_DTYPES[dtype]).tobytes())
    return Stored(path, 4, dtype, array.shape, "w")


def bytes_of(tensor: WeightTensor) -> bytes:
    sink = io.BytesIO()
    tensor.tofile(sink)
    return sink.getvalue()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), dtype=st.sampled_from(["F32", "F16"]), shortest=st.sampled_from([1, 40, 4096]))
def test_any_rows_of_a_turned_matrix_are_those_of_its_transpose(
    data: st.DataObject, dtype: str, shortest: int, tmp_path: Path
) -> None:
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))
    array = np.random.default_rng(rows * columns).standard_normal((rows, columns)).astype(np.float16)
    weight = transposed(stored(tmp_path, array, dtype))
    start = data.draw(st.integers(0, columns - 1))
    stop = data.draw(st.integers(start + 1, columns))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_weights, "SHORTEST_RUN", shortest)
        found = weight.rows(start, stop)
    assert found.dtype == np.float32 and np.array_equal(found, array.T[start:stop])


@pytest.mark.parametrize("transpose", [False, True])
def test_what_is_written_is_what_is_read(transpose: bool, tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((70, 90)).astype(np.float32)
    base = stored(tmp_path, array)
    turned = transposed(base)
    expressions: list[Weight] = [base, turned, Rows(turned, ((5, 30), (0, 3))), Stack((turned, turned))]
    for weight in expressions:
        tensor = WeightTensor("w", weight, transpose=transpose)
        assert bytes_of(tensor) == np.ascontiguousarray(tensor.numpy()).tobytes()


def test_a_matrix_turned_twice_is_streamed_as_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a foreign graph stores for a product is written with no more than a piece of it in memory."""
    array = np.ones((64, 32), np.float32)
    tensor = WeightTensor("w", transposed(stored(tmp_path, array)), transpose=True)
    monkeypatch.setattr(weights, "PIECE", 1024)
    monkeypatch.setattr(Weight.pieces, "__defaults__", (1024,))
    largest = 0
    honest = Stored.rows

    def rows(self: Stored, start: int, stop: int) -> np.ndarray:
        nonlocal largest
        largest = max(largest, stop - start)
        return honest(self, start, stop)

    monkeypatch.setattr(Stored, "rows", rows)
    assert bytes_of(tensor) == array.tobytes()
    assert largest == 8


def test_a_value_that_is_not_finite_is_named_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.ones((6, 50), np.float32)
    array[3, 41] = np.nan
    monkeypatch.setattr(stored_weights, "SHORTEST_RUN", 1)
    weight = transposed(stored(tmp_path, array))
    assert np.array_equal(weight.rows(0, 41), np.ones((41, 6)))
    with pytest.raises(OnnxGptError) as caught:
        weight.rows(40, 45)
    assert caught.value.code == "weights-not-finite" and "w[3, 41] is nan" in str(caught.value)

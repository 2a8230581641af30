"""Quantized initializers stream into the file: the same bytes whoever writes, one search, little memory."""

from __future__ import annotations

import io
import threading
import tracemalloc
from pathlib import Path
from typing import IO

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import quantized, random, tied

from calibration.quantization import rtn
from calibration.quantization.pack import unpack
from calibration.quantization.tensors import CodesTensor, Keeping, ParameterTensor, QuantizedWeight, Rounding
from calibration.quantization.weight_only import quantize_weights
from calibration.scheme import Grid, scheme_of
from exporter.block_codes import Coded
from exporter.errors import OnnxGptError
from exporter.weights import Array, Weight


class Counting(Rounding):
    """Remembers which rows were searched and which only coded."""

    def __init__(self, weight: Weight, grid: Grid) -> None:
        super().__init__(weight, grid, "w")
        object.__setattr__(self, "searched", [])

    def coded(self, start: int, stop: int, scale: np.ndarray | None) -> Coded:
        if scale is None:
            self.searched.append((start, stop))  # type: ignore[attr-defined]
        return super().coded(start, stop, scale)


def written(tensor: CodesTensor | ParameterTensor) -> bytes:
    file = io.BytesIO()
    tensor.tofile(file)
    return file.getvalue()


def of(coder: Rounding | Keeping, chunk: int = 4096) -> QuantizedWeight:
    rows, columns = coder.weight.shape
    return QuantizedWeight("w", (rows, columns), coder, chunk)


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(8, 32), Grid(4, 64)], ids=str)
@pytest.mark.parametrize("first", ["codes", "scale"])
def test_either_may_be_written_first_and_the_search_is_done_once(grid: Grid, first: str) -> None:
    weight = random(100, 80)
    coder = Counting(weight, grid)
    shared = of(coder)
    codes, scale = CodesTensor(shared), ParameterTensor(shared, "scale")
    order = [codes, scale] if first == "codes" else [scale, codes]
    found = {tensor.name: written(tensor) for tensor in order}
    searched = coder.searched  # type: ignore[attr-defined]
    assert len(searched) > 5
    assert sorted(searched) == sorted(set(searched))
    expected = rtn.quantize(weight.read(), grid)
    assert found["w.scale"] == expected.scale.tobytes()
    packed = np.frombuffer(found["w.codes"], np.uint8).reshape(codes.shape.numpy())
    assert np.array_equal(unpack(packed, grid.bits, 80), expected.codes)
    for tensor in order:
        assert tensor.tobytes() == found[tensor.name]
        assert tensor.numpy().tobytes() == found[tensor.name]
        assert tensor.numpy().dtype == tensor.dtype.numpy()
        assert len(found[tensor.name]) == tensor.nbytes


def test_scales_are_forgotten_once_all_is_written_and_found_again() -> None:
    coder = Counting(random(100, 80), Grid(4, 32))
    shared = of(coder)
    tensors = [CodesTensor(shared), ParameterTensor(shared, "scale")]
    once = [written(tensor) for tensor in tensors]
    searched = coder.searched  # type: ignore[attr-defined]
    chunks = len(searched)
    assert [written(tensor) for tensor in tensors] == once
    assert len(searched) == 2 * chunks


def test_two_threads_share_one_search() -> None:
    coder = Counting(random(400, 256), Grid(4, 32))
    shared = of(coder, 8192)
    tensors = [CodesTensor(shared), ParameterTensor(shared, "scale")]
    found: dict[str, bytes] = {}
    threads = [
        threading.Thread(target=lambda t=tensor: found.update({t.part: written(t)})) for tensor in tensors
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    searched = coder.searched  # type: ignore[attr-defined]
    assert sorted(searched) == sorted(set(searched))
    alone = of(Rounding(random(400, 256), Grid(4, 32), "w"))
    assert found == {t.part: written(t) for t in [CodesTensor(alone), ParameterTensor(alone, "scale")]}


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_the_file_is_the_same_for_one_and_two_writers(name: str, tmp_path: Path) -> None:
    contents = []
    for workers in (1, 2):
        graph = tied(random(500, 96))
        quantize_weights(graph, scheme_of(name))
        ir.save(graph, tmp_path / f"{workers}.onnx", external_data=f"{workers}.data", max_workers=workers)
        contents.append((tmp_path / f"{workers}.data").read_bytes())
    assert contents[0] == contents[1]


class Generated(Weight):
    """A weight that takes no memory until its rows are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        return 12800, 256

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.sin(np.arange(start * 256, stop * 256, dtype=np.float32)).reshape(-1, 256)


class Discarding(io.RawIOBase):
    def write(self, data: object) -> int:
        return memoryview(data).nbytes  # type: ignore[arg-type]


@pytest.mark.parametrize("first", ["codes", "scale"])
def test_memory_follows_the_piece_and_not_the_weight(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = 1 << 18  # 1/50 of the weight
    monkeypatch.setattr(rtn, "CACHED", 1 << 14)
    shared = of(Rounding(Generated(), Grid(4, 32), "w"), chunk)
    tensors = [CodesTensor(shared), ParameterTensor(shared, "scale")]
    sink: IO[bytes] = Discarding()  # type: ignore[assignment]
    tracemalloc.start()
    for tensor in tensors if first == "codes" else tensors[::-1]:
        tensor.tofile(sink)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    scales = 2 * 12800 * 256 // 32  # kept, and gathered once more to be written
    assert peak < 4 * chunk + 2 * scales
    assert peak < 4 * 12800 * 256 / 8


def test_kept_codes_are_streamed_with_minima() -> None:
    weight = quantized("Q4_1", 64, 96)
    shared = of(Keeping(weight, weight.format), 2048)
    assert shared.parts == ("codes", "scale", "minimum")
    assert weight.code.minimum is not None
    assert written(ParameterTensor(shared, "minimum")) == weight.code.minimum.tobytes()
    assert written(ParameterTensor(shared, "scale")) == weight.code.scale.tobytes()
    packed = np.frombuffer(written(CodesTensor(shared)), np.uint8).reshape(64, 3, 16)
    assert np.array_equal(unpack(packed, 4, 96), weight.code.codes)


def test_what_is_not_finite_is_found_in_writing_and_named_with_its_row() -> None:
    array = np.ones((100, 80), np.float32)
    array[77, 5] = np.nan
    shared = of(Rounding(Array(array), Grid(4, 32), "layers.0.ffn.down.weight"))
    with pytest.raises(OnnxGptError, match=r"layers\.0\.ffn\.down\.weight\[77, 5\]"):
        written(CodesTensor(shared))

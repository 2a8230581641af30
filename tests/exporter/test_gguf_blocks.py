"""Quantized blocks: what the codes mean is, bit for bit, what the gguf library dequantizes."""

from __future__ import annotations

from pathlib import Path

import gguf
import gguf_samples as samples
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.block_codes import BlockFormat, Coded
from exporter.errors import Exit, OnnxGptError
from exporter.gguf_format.blocks import LAYOUTS, weight_of
from exporter.gguf_format.reader import TensorEntry
from exporter.weight_expressions import Permuted, Stack
from exporter.weights import Weight


def written(path: Path, type: Type, data: np.ndarray, before: int = 32) -> Weight:
    path.write_bytes(b"\xa5" * before + data.tobytes() + b"\xa5" * 32)
    elements, nbytes = GGML_QUANT_SIZES[type]
    shape = (len(data), data.shape[1] // nbytes * elements)
    return weight_of(path, TensorEntry("blk.0.ffn_up.weight", shape, type, before, data.size))


def meaning(coded: Coded, form: BlockFormat) -> np.ndarray:
    """`BlockFormat`'s sentence, in float32."""
    codes = coded.codes.astype(np.float32)
    scale = coded.scale.astype(np.float32).repeat(form.block, axis=1)
    if not form.has_minimum:
        assert coded.minimum is None
        return scale * (codes - np.float32(2 ** (form.bits - 1)))
    assert coded.minimum is not None
    return scale * codes + coded.minimum.astype(np.float32).repeat(form.block, axis=1)


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint32)


@pytest.mark.parametrize("type", LAYOUTS, ids=lambda type: type.name)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), blocks=st.integers(1, 3), data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_codes_mean_what_the_gguf_library_dequantizes(
    type: Type, seed: int, rows: int, blocks: int, data: st.DataObject, tmp_path: Path
) -> None:
    stored = samples.random_blocks(type, rows, blocks, seed)
    weight = written(tmp_path / "w", type, stored)
    expected = gguf.quants.dequantize(stored, type)
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    np.testing.assert_array_equal(bits(weight.rows(start, stop)), bits(expected[start:stop]))
    coded, form = weight.coded(start, stop), weight.format
    assert form is not None
    np.testing.assert_array_equal(bits(meaning(coded, form)), bits(expected[start:stop]))
    assert coded.codes.dtype == np.uint8 and coded.codes.max() < 2**form.bits
    assert coded.scale.dtype == form.scale_dtype
    assert coded.scale.shape == (stop - start, weight.shape[1] // form.block)


@pytest.mark.parametrize("type", [Type.F32, Type.F16, Type.BF16], ids=lambda type: type.name)
def test_floats(type: Type, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    stored = gguf.quants.quantize(values, type)
    path = tmp_path / "w"
    path.write_bytes(b"\0" * 32 + stored.tobytes())
    weight = weight_of(path, TensorEntry("t", (6, 32), type, 32, stored.nbytes))
    assert weight.format is None
    np.testing.assert_array_equal(weight.rows(2, 5), gguf.quants.dequantize(stored, type).reshape(6, 32)[2:5])


def test_codes_survive_packing_and_permuting(tmp_path: Path) -> None:
    first = written(tmp_path / "a", Type.Q4_1, samples.random_blocks(Type.Q4_1, 8, 2, 1))
    second = written(tmp_path / "b", Type.Q4_1, samples.random_blocks(Type.Q4_1, 4, 2, 2))
    stack = Stack((Permuted(first, np.array([1, 0, 3, 2, 5, 4, 7, 6])), second))
    assert stack.format is not None
    np.testing.assert_array_equal(meaning(stack.coded(3, 10), stack.format), stack.rows(3, 10))


@pytest.mark.parametrize(
    "type", [t for t in Type if t not in LAYOUTS and t not in (Type.F32, Type.F16, Type.BF16)]
)
def test_other_types_are_refused_by_name(type: Type, tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError, match=type.name) as error:
        weight_of(tmp_path / "w", TensorEntry("blk.0.ffn_up.weight", (4, 256), type, 0, 0))
    assert error.value.exit == Exit.UNSUPPORTED
    assert error.value.code == "gguf-type-unsupported"


@pytest.mark.parametrize("type", LAYOUTS, ids=lambda type: type.name)
def test_infinite_scales_are_refused(type: Type, tmp_path: Path) -> None:
    stored = samples.random_blocks(type, 3, 1, 5)
    at = samples.FLOAT16_FIELDS[type][0]
    stored[2, at : at + 2] = [0x00, 0x7C]
    weight = written(tmp_path / "w", type, stored)
    weight.rows(0, 2)
    for read in (weight.rows, weight.coded):
        with pytest.raises(OnnxGptError, match=r"blk\.0\.ffn_up\.weight\[2, 0\] is") as error:
            read(1, 3)
        assert error.value.code == "weights-not-finite"


def test_a_file_that_shrinks_is_refused(tmp_path: Path) -> None:
    weight = written(tmp_path / "w", Type.Q8_0, samples.random_blocks(Type.Q8_0, 4, 1, 3))
    (tmp_path / "w").write_bytes(b"\0" * 60)
    with pytest.raises(OnnxGptError) as error:
        weight.rows(0, 4)
    assert error.value.code == "weights-corrupt"

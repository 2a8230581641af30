"""Packed codes are what they were before, in the byte order that onnxruntime reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.quantization.pack import pack, packed_shape, unpack


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 150),
    bits=st.sampled_from([2, 4, 8]),
    block=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_unpacking_gives_the_codes_back(rows: int, columns: int, bits: int, block: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns), np.uint8)
    packed = pack(codes, bits, block)
    assert packed.dtype == np.uint8
    assert packed.shape == packed_shape(rows, columns, bits, block)
    assert np.array_equal(unpack(packed, bits, columns), codes)


@given(columns=st.integers(1, 100), bits=st.sampled_from([2, 4, 8]))
def test_the_last_block_is_padded_with_zero(columns: int, bits: int) -> None:
    codes = np.zeros((2, columns), np.uint8)
    padded = unpack(pack(codes, bits, 32), bits, -(-columns // 32) * 32)
    assert (padded[:, columns:] == 1 << (bits - 1)).all()


@pytest.mark.parametrize(("bits", "first"), [(2, 0b11_10_01_00), (4, 0x10), (8, 0)])
def test_the_first_code_lies_in_the_lowest_bits(bits: int, first: int) -> None:
    codes = (np.arange(32) % (1 << bits)).astype(np.uint8)[None]
    assert pack(codes, bits, 32)[0, 0, 0] == first

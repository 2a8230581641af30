"""Biases by position are transformers' own: slopes of any number of heads, and what Falcon rounds to bfloat16."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.bloom import modeling_bloom
from transformers.models.falcon import modeling_falcon
from transformers.models.mpt import modeling_mpt

from exporter.alibi import slopes, table
from exporter.decoder import Alibi

CONTEXT = 2048
HEADS = pytest.mark.parametrize("heads", [1, 2, 6, 12, 32, 71, 112])


@HEADS
def test_slopes_are_those_of_bloom_and_of_mpt(heads: int) -> None:
    ours = table(Alibi(slopes(heads)), CONTEXT)
    mask = torch.ones(1, CONTEXT, dtype=torch.long)
    bloom = modeling_bloom.build_alibi_tensor(mask, heads, torch.float32).reshape(heads, CONTEXT).numpy().T
    mpt = modeling_mpt.build_mpt_alibi_tensor(heads, CONTEXT)[:, 0].numpy().T
    np.testing.assert_allclose(ours, bloom, rtol=4e-6)
    np.testing.assert_allclose(ours - ours[-1], mpt, rtol=4e-6, atol=2e-4)


@HEADS
def test_falcon_rounds_as_transformers_does(heads: int) -> None:
    mask = torch.ones(1, CONTEXT, dtype=torch.long)
    falcon = modeling_falcon.build_alibi_tensor(mask, heads, torch.float32).reshape(heads, CONTEXT)
    ours = table(Alibi(slopes(heads), 64**-0.5, bfloat16=True), CONTEXT)
    np.testing.assert_array_equal(ours, falcon.numpy().T * np.float32(64**-0.5))

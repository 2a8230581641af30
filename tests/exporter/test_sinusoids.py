"""Sines by position are transformers' own, but for what its exponential rounds otherwise in a few channels."""

from __future__ import annotations

import numpy as np
import pytest
from transformers.models.xglm.modeling_xglm import XGLMSinusoidalPositionalEmbedding

from exporter.decoder import Sinusoids
from exporter.sinusoids import table

CONTEXT = 2048


@pytest.mark.parametrize("channels", [4, 6, 1024, 4096])
@pytest.mark.parametrize("first", [0, 2])
def test_a_table_is_that_of_xglm(channels: int, first: int) -> None:
    theirs = XGLMSinusoidalPositionalEmbedding.get_embedding(CONTEXT + first, channels).numpy()[first:]
    apart = np.abs(table(Sinusoids(first), CONTEXT, channels) - theirs).max(axis=0)
    assert apart.max() < 2e-4, "a unit in the last place of a frequency, times 2048 places"
    assert (apart > 1e-6).mean() < 0.02

"""The reference as a runtime with a cache: how transformers keeps heads is seen in what it keeps, not asked for."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny

from exporter.reference import Reference


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ],
)
def test_a_past_goes_on_whoever_made_it(family: str, options: dict[str, object]) -> None:
    checkpoint = tiny(family, **options)
    tokens = np.random.default_rng(0).integers(0, 131, (2, 9))
    first = Reference(checkpoint)
    calls: list[int] = []
    first.model.register_forward_hook(lambda *_: calls.append(1))
    whole, _ = first.remember(tokens)
    _, past = first.remember(tokens[:, :6])
    logits, kept = first.after(tokens[:, 6:], past)
    assert len(calls) == 3  # nothing is run to find out how heads are kept
    np.testing.assert_allclose(logits, whole[:, 6:], atol=1e-5)
    assert [keys.shape for keys, _ in kept] == [(2, 2, 9, 16)] * 2
    fresh, _ = Reference(checkpoint).after(tokens[:, 6:], past)
    np.testing.assert_allclose(fresh, logits, atol=1e-6)

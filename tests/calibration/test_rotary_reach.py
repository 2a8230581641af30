"""What rotated keys become elsewhere in the context: told from one place, and found at every other one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kv_cache import lowered, presents_of

from calibration.kv_cache import CacheRanges, rotations_of
from calibration.rotary_reach import Rotation, reach, rotation_of
from tests.graph_passes.decoders import VARIANTS, VOCAB


def turned(keys: np.ndarray, rotation: Rotation, by: np.ndarray) -> np.ndarray:
    """Keys ``[T, D]``, each turned by so many places more."""
    first, second = rotation.pairs
    cos, sin = np.cos(by[:, None] * rotation.steps), np.sin(by[:, None] * rotation.steps)
    out = keys.copy()
    out[:, first] = keys[:, first] * cos - keys[:, second] * sin
    out[:, second] = keys[:, second] * cos + keys[:, first] * sin
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 300), st.booleans(), st.sampled_from([1, -1])
)
def test_the_reach_is_the_largest_of_all_places(
    seed: int, pairs: int, context: int, interleaved: bool, direction: int
) -> None:
    random = np.random.default_rng(seed)
    steps = direction * random.choice([1.0, 0.3, 0.02, 1e-3, 1e-5], pairs)
    rotation = Rotation(steps, context, interleaved)
    seen = min(context, 5)
    keys = random.normal(size=(seen, 2 * pairs + 2))  # two channels are not turned
    everywhere = [turned(keys, rotation, place - np.arange(seen)) for place in range(context)]
    largest = np.abs(everywhere).max(axis=0)
    found = reach(keys[None, None], rotation)[0, 0]
    assert (found >= largest - 1e-9).all()
    # between two places a cosine may pass its peak: by half a step at most
    assert (found * np.cos(np.minimum(np.abs(steps).max() / 2, 1)) <= largest + 1e-9).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "hunyuan"])
def test_tokens_further_on_are_within_ranges_of_the_start(name: str) -> None:
    described, model = lowered(VARIANTS[name])
    rotations = rotations_of(model)
    assert len(rotations) == (len(described.layers) if described.layers[0].attention.rope else 0)
    row = np.random.default_rng(0).integers(0, VOCAB, 4)
    ids = np.tile(row, described.context_length // 4)[None]
    # keys of the first layer are those of the same tokens, turned further
    keys = presents_of(model, described, ids)["present.0.key"]
    start = CacheRanges().add({"present.0.key": keys[:, :, :4]}, rotations)
    whole = CacheRanges().add({"present.0.key": keys}, {})
    reached, held = start.largest["present.0.key"], whole.largest["present.0.key"]
    if rotations:
        assert (held <= reached * 1.0001).all()
        short = CacheRanges().add({"present.0.key": keys[:, :, :4]}, {}).largest["present.0.key"]
        assert (held > 1.2 * short).any(), "the text itself is no bound"


@pytest.mark.parametrize(("name", "behind"), [("qwen3", False), ("hunyuan", True)])
def test_only_a_norm_behind_the_rotation_counts(name: str, behind: bool) -> None:
    _, model = lowered(VARIANTS[name])
    found = [rotation_of(node) for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert found and all(one is not None and (one.gain is not None) == behind for one in found)

"""Rotary frequencies are transformers' own, to the bit or nearly; what is not implemented is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import Exit, OnnxGptError
from exporter.rope import rope

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}


def of_transformers(
    parameters: dict[str, Any], theta: float, head_dim: int, context: int
) -> tuple[np.ndarray, float]:
    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=context,
        rope_parameters=dict(parameters) | {"rope_theta": theta},
    )
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    return rotary.inv_freq.numpy(), rotary.attention_scaling


@settings(max_examples=100, deadline=None)
@given(
    parameters=st.sampled_from(
        [
            {"rope_type": "default"},
            {"rope_type": "linear", "factor": 3.0},
            {"rope_type": "llama3"} | LLAMA3,
            {"rope_type": "llama3"} | LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 512},
            YARN,
            YARN | {"beta_fast": 8, "beta_slow": 2.0, "attention_factor": 1.25},
            YARN | {"factor": 40, "mscale": 1.0},
            YARN | {"mscale": 0.7, "mscale_all_dim": 1.5, "original_max_position_embeddings": 20},
        ]
    ),
    theta=st.sampled_from([1e4, 1e5, 130_000.0, 5e5, 1e6]) | st.floats(100, 1e7),
    head_dim=st.sampled_from([8, 24, 64, 80, 128, 256]),
)
def test_frequencies_are_those_of_transformers(
    parameters: dict[str, Any], theta: float, head_dim: int
) -> None:
    found = rope(parameters, theta, head_dim, 16_384)
    ours = np.array(found.frequencies, np.float32)
    theirs, factor = of_transformers(parameters, theta, head_dim, 16_384)
    assert found.factor == factor
    if parameters["rope_type"] in (
        "llama3",
        "yarn",
    ):  # blending multiplies by the factor what one ulp in a power makes
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    else:
        np.testing.assert_array_max_ulp(ours, theirs, maxulp=4)


@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5])
def test_default_frequencies_are_equal_to_the_bit(theta: float) -> None:
    """One ulp of the fastest frequency is 5e-4 radians at position 8192."""
    ours = np.array(rope({}, theta, 64, 4096).frequencies, np.float32)
    np.testing.assert_array_equal(ours, of_transformers({"rope_type": "default"}, theta, 64, 4096)[0])


def test_both_names_of_the_type_are_read() -> None:
    assert rope({"type": "linear", "factor": 2.0}, 1e4, 16, 64) == rope(
        {"rope_type": "linear", "factor": 2}, 1e4, 16, 64
    )
    assert rope({"type": "linear", "factor": 2.0}, 1e4, 16, 64) != rope({}, 1e4, 16, 64)


def test_partial_rotation_uses_the_rotated_channels_as_the_base_of_the_exponent() -> None:
    assert rope({}, 1e4, 64, 64, partial=0.25) == rope({}, 1e4, 16, 64)
    assert rope({"partial_rotary_factor": 0.5}, 1e4, 64, 64, partial=0.25) == rope({}, 1e4, 32, 64)
    assert rope({"partial_rotary_factor": 1.0}, 1e4, 64, 64) == rope({}, 1e4, 64, 64)


@pytest.mark.parametrize("parameters", [{"rope_type": "llama3"} | LLAMA3, YARN], ids=["llama3", "yarn"])
def test_context_stands_in_for_the_original_one(parameters: dict[str, Any]) -> None:
    without = {key: value for key, value in parameters.items() if key != "original_max_position_embeddings"}
    assert rope(without, 1e4, 64, 8192) == rope(parameters, 1e4, 64, 1)


def test_keys_of_yarn_that_say_nothing_are_as_if_left_out() -> None:
    nothing = dict.fromkeys(["attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"])
    assert rope(YARN | nothing | {"truncate": True}, 1e4, 64, 1) == rope(YARN, 1e4, 64, 1)


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        (YARN | {"truncate": False}, "truncate"),
        (YARN | {"low_freq_factor": 1.0}, "low_freq_factor"),
        ({"type": "dynamic", "factor": 2.0, "alpha": 50.0}, "alpha"),
        ({"type": "longrope", "long_factor": [1.0]}, "longrope"),
        ({"rope_type": ["default"]}, "default"),
        ({"rope_type": "linear", "factor": 2.0, "attention_factor": 1.2}, "attention_factor"),
        ({"factor": 2.0}, "factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_unknown_scaling_is_refused_by_name(parameters: dict[str, Any], word: str) -> None:
    with pytest.raises(OnnxGptError) as caught:
        rope(parameters, 1e4, 64, 64)
    assert (caught.value.code, caught.value.exit) == ("rope-unknown", Exit.UNSUPPORTED)
    assert word in caught.value.cause


@pytest.mark.parametrize(
    ("parameters", "theta", "word"),
    [
        ({"rope_type": "linear"}, 1e4, "factor"),
        ({"rope_type": "linear", "factor": 0.0}, 1e4, "factor"),
        ({"rope_type": "linear", "factor": "2"}, 1e4, "factor"),
        ({"rope_type": "linear", "factor": float("inf")}, 1e4, "factor"),
        ({"rope_type": "llama3"} | LLAMA3 | {"low_freq_factor": 4.0}, 1e4, "low_freq_factor"),
        (YARN | {"factor": None}, 1e4, "factor"),
        (YARN | {"attention_factor": -1.0}, 1e4, "attention_factor"),
        (YARN | {"beta_fast": 1e308}, 1e4, "beta_fast"),
        (YARN, 1.0, "rope_theta"),
        ({}, -1.0, "rope_theta"),
        ({}, "10000", "rope_theta"),
    ],
)
def test_malformed_scaling_is_rejected_by_name(parameters: dict[str, Any], theta: Any, word: str) -> None:
    with pytest.raises(OnnxGptError) as caught:
        rope(parameters, theta, 64, 64)
    assert (caught.value.code, caught.value.exit) == ("config-invalid", Exit.REJECTED)
    assert any(word in detail for detail in caught.value.details)


@pytest.mark.parametrize("share", [0.0, 1.5, 0.01, True, "half"])
def test_a_share_that_rotates_no_whole_pairs_is_rejected(share: Any) -> None:
    with pytest.raises(OnnxGptError) as caught:
        rope({"partial_rotary_factor": share}, 1e4, 64, 64, partial=1.0)
    assert caught.value.code == "config-invalid"

"""The reference's own noise: what it is of, that it is measured, and that measuring leaves the reference as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from my_decoder import fused as make_module
from tiny import tiny

from onnx_gpt.parity import noise
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.torch_model import TorchModel

FOREIGN = Path(__file__).parent.parent / "graph_passes" / "foreign"
WINDOWS = np.random.default_rng(0).integers(0, 61, (2, 48))


class Numbers:
    """A reference whose other ways are off by known numbers."""

    def __init__(self, *off: float) -> None:
        self.off = off
        rng = np.random.default_rng(0)
        self.rows = rng.standard_normal((2, 48, 61)).astype(np.float32)
        self.error = rng.standard_normal((2, 48, 61))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self.rows[:1]

    def alternatives(self, tokens: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        for off in self.off:
            base = np.concatenate([self.rows[:1]] * len(tokens))
            yield f"off by {off}", base + off * self.error[: len(tokens)]


def test_noise_is_the_largest_of_the_ways() -> None:
    found = noise.measure(Numbers(1e-4, 1e-3), WINDOWS)
    assert found.ways.keys() == {"off by 0.0001", "off by 0.001"}
    assert found.rms == pytest.approx(1e-3, rel=0.05) and found.rms < found.worst < 1.5e-3
    assert found.ways["off by 0.0001"].rms == pytest.approx(1e-4, rel=0.05)
    assert found.positions == WINDOWS.size


def test_a_reference_without_noise_is_exact_to_its_last_bit() -> None:
    found = noise.measure(Numbers(), WINDOWS)
    assert found.ways == {} and found.worst == found.rms > 0
    assert found.worst < 1e-7


@given(st.floats(-100, 100, width=32))
def test_a_constant_added_to_a_row_is_no_difference(constant: float) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 61)).astype(np.float32)
    assert noise.row_differences(rows + np.float32(constant), rows).max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_torch_is_held_against_float64_and_eager_attention(family: str) -> None:
    model = TorchModel(tiny(family))
    before = model.logits(WINDOWS)
    found = noise.measure(model, WINDOWS)
    assert found.ways.keys() == {"float64", "eager attention"}
    assert 1e-8 < found.rms < 1e-5
    assert np.array_equal(model.logits(WINDOWS), before), "measuring has changed the model"


def test_a_module_is_held_against_float64() -> None:
    module = make_module()
    vocab = TorchModel(module).logits(np.zeros((1, 1), np.int64)).shape[-1]
    found = noise.measure(TorchModel(module), WINDOWS % vocab)
    assert found.ways.keys() == {"float64"} and found.rms > 0


@pytest.mark.parametrize("name", ["optimum-llama", "genai-llama"])
def test_a_graph_is_held_against_the_optimizer_and_its_neighbours(name: str) -> None:
    graph = Candidate(FOREIGN / f"{name}.onnx", 1, optimized=False)
    found = noise.measure(graph, WINDOWS)
    assert found.ways.keys() == {"optimizations on", "weights moved by their last bit"}
    assert 1e-8 < found.ways["weights moved by their last bit"].rms < 1e-5


def test_an_epsilon_stands_out_of_the_noise() -> None:
    right = TorchModel(tiny("llama", rms_norm_eps=1e-5))
    wrong = TorchModel(tiny("llama", rms_norm_eps=1e-6))
    scale, logits = noise.measure(right, WINDOWS), right.logits(WINDOWS)

    def multiple(model: TorchModel) -> float:
        """How many times what noise allows a model is away."""
        found = noise.deviation(noise.row_differences(model.logits(WINDOWS), logits))
        allowed = noise.FACTOR * scale.rms, noise.WORST_FACTOR * scale.worst
        return max(found.rms / allowed[0], found.worst / allowed[1])

    assert multiple(wrong) > 2
    assert multiple(TorchModel(tiny("llama", rms_norm_eps=1e-5))) < 1

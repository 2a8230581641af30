"""A tiny random model of every architecture goes into a GGUF file and comes back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_samples as samples
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type

from exporter.checkpoint import Checkpoint
from exporter.errors import Exit, OnnxGptError
from exporter.families import describe, family_of
from exporter.match import match_weights
from exporter.sources import load


def loaded(path: Path) -> Checkpoint:
    checkpoint = load(str(path))
    assert isinstance(checkpoint, Checkpoint)
    return checkpoint


def in_memory(name: str) -> str:
    """transformers 5 keeps GPT-NeoX's head under another name in memory than in files."""
    return name.replace("embed_out.", "lm_head.")


def rebuilt(checkpoint: Checkpoint) -> Any:
    """The transformers model that a checkpoint speaks of, with its weights."""
    config = transformers.AutoConfig.for_model(**checkpoint.config)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    state = {
        in_memory(name): torch.from_numpy(weight.read()) for name, weight in checkpoint.weights.items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name == "lm_head.weight" for name in missing) and config.tie_word_embeddings or not missing
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", samples.CONFIGS)
def test_weights_and_configuration_come_back(name: str, tmp_path: Path) -> None:
    """The configuration is held to its effect: the same logits, to the last bit."""
    model = samples.tiny(name)
    samples.convert(model, tmp_path / "m.gguf")
    checkpoint = loaded(tmp_path / "m.gguf")

    state = model.state_dict()
    for tensor, weight in checkpoint.weights.items():
        expected = state[in_memory(tensor)].numpy()
        if "norm" in tensor and name == "gemma3":  # stored + 1 rounds, and so does taking it off again
            np.testing.assert_allclose(weight.read(), expected, rtol=0, atol=1.2e-7)
        else:
            np.testing.assert_array_equal(weight.read(), expected, err_msg=tensor)
    assert checkpoint.config["tie_word_embeddings"] == model.config.tie_word_embeddings

    tokens = torch.arange(40).reshape(2, 20) % samples.VOCAB
    with torch.no_grad():
        ours, theirs = rebuilt(checkpoint)(tokens).logits, model(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 if name == "gemma3" else 0)


@pytest.mark.parametrize("name", samples.CONFIGS)
def test_our_family_takes_it(name: str, tmp_path: Path) -> None:
    """Every role finds its tensor; matrices of the layers keep the codes of the file where rows stay whole."""
    model = samples.tiny(name)
    samples.convert(model, tmp_path / "m.gguf", Type.Q8_0)
    checkpoint = loaded(tmp_path / "m.gguf")
    family = family_of(checkpoint)
    roles = match_weights(describe(checkpoint), checkpoint.weights, getattr(family, "IGNORED", ()))
    for role in ("attention.q", "attention.o", "ffn.up", "ffn.down"):
        weight = roles[f"layers.1.{role}.weight"]
        assert weight.format is not None, role
        coded = weight.coded(1, 5)
        scale = coded.scale.astype(np.float32).repeat(weight.format.block, axis=1)
        np.testing.assert_array_equal((coded.codes.astype(np.float32) - 128) * scale, weight.rows(1, 5))


def test_gemma_norms_reach_the_graph_as_they_are_stored(tmp_path: Path) -> None:
    """γ is stored as 1 + γ and used as 1 + γ: nothing is subtracted and added again."""
    samples.convert(samples.tiny("gemma3"), tmp_path / "m.gguf")
    checkpoint = loaded(tmp_path / "m.gguf")
    roles = match_weights(describe(checkpoint), checkpoint.weights)
    import gguf

    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    np.testing.assert_array_equal(roles["norm.weight"].read(), stored["output_norm.weight"])

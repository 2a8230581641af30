"""A tiny random model of every architecture goes into a GGUF file and comes back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import gguf_samples as samples
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from transformers.core_model_loading import revert_weight_conversion

from exporter.checkpoint import Checkpoint
from exporter.errors import Exit, OnnxGptError
from exporter.families import describe
from exporter.gguf_format.architectures import ARCHITECTURES
from exporter.gguf_format.dims import share
from exporter.match import match_weights, matched
from exporter.sources import gguf_file, load

SHIFTED = ("gemma", "nemotron")
"""Their norms are stored + 1, which rounds, and so does taking it off again."""


def loaded(path: Path) -> Checkpoint:
    checkpoint = load(str(path))
    assert isinstance(checkpoint, Checkpoint)
    return checkpoint


def rebuilt(checkpoint: Checkpoint) -> Any:
    """The transformers model that a checkpoint speaks of, with its weights."""
    config = transformers.AutoConfig.for_model(**checkpoint.config)
    kind = type(transformers.AutoModelForCausalLM.from_config(config))
    state = {name: torch.from_numpy(weight.read()) for name, weight in checkpoint.weights.items()}
    model, found = kind.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()


@pytest.mark.parametrize("name", samples.CONFIGS)
def test_weights_and_configuration_come_back(name: str, tmp_path: Path) -> None:
    """The configuration is held to its effect: the same logits, to the last bit."""
    model = samples.tiny(name)
    samples.convert(model, tmp_path / "m.gguf")
    checkpoint = loaded(tmp_path / "m.gguf")

    state = revert_weight_conversion(model, model.state_dict())  # under the names that files have
    for tensor, weight in checkpoint.weights.items():
        expected = state[tensor].numpy()
        if "norm" in tensor and name.startswith(SHIFTED):
            np.testing.assert_allclose(weight.read(), expected, rtol=0, atol=1.2e-7)
        else:
            np.testing.assert_array_equal(weight.read(), expected, err_msg=tensor)
    assert checkpoint.config["tie_word_embeddings"] == model.config.tie_word_embeddings

    tokens = torch.arange(40).reshape(2, 20) % samples.VOCAB
    with torch.no_grad():
        ours, theirs = rebuilt(checkpoint)(tokens).logits, model(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 if name.startswith(SHIFTED) else 0)


@pytest.mark.parametrize("name", samples.CONFIGS)
def test_our_family_takes_it(name: str, tmp_path: Path) -> None:
    """It is what the model's own configuration describes, every role finds its tensor, and matrices of the layers keep
    the codes of the file.
    """
    model = samples.tiny(name)
    samples.convert(model, tmp_path / "m.gguf", Type.Q8_0)
    checkpoint = loaded(tmp_path / "m.gguf")
    decoder, roles = matched(checkpoint)
    own = model.config.to_dict() | {"architectures": [type(model).__name__]}
    assert decoder == describe(Checkpoint("", own, {}))
    for role in ("attention.q", "attention.o", "ffn.up", "ffn.down"):
        weight = roles[f"layers.1.{role}.weight"]
        assert weight.format is not None, role
        coded = weight.coded(1, 5)
        scale = coded.scale.astype(np.float32).repeat(weight.format.block, axis=1)
        values = (coded.codes.astype(np.float32) - 128) * scale
        rounds = 2e-7 if name == "granite" else 0  # its scales have been multiplied
        np.testing.assert_allclose(values, weight.rows(1, 5), rtol=rounds, atol=0)


def test_gemma_norms_reach_the_graph_as_they_are_stored(tmp_path: Path) -> None:
    """γ is stored as 1 + γ and used as 1 + γ: nothing is subtracted and added again."""
    samples.convert(samples.tiny("gemma3"), tmp_path / "m.gguf")
    checkpoint = loaded(tmp_path / "m.gguf")
    roles = match_weights(describe(checkpoint), checkpoint.weights)
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    np.testing.assert_array_equal(roles["norm.weight"].read(), stored["output_norm.weight"])


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str]] = {
    "experts": ("llama", {"llama.expert_count": 8}, {}, "gguf-key-unsupported", "llama.expert_count = 8"),
    "clamped": ("llama", {"llama.attention.clamp_kqv": 8.0}, {}, "gguf-key-unsupported", "clamp_kqv"),
    "window": ("qwen3", {"qwen3.attention.sliding_window": 64}, {}, "gguf-key-unsupported", "sliding_window"),
    "values": ("llama", {"llama.attention.value_length": 8}, {}, "gguf-key-unsupported", "value_length"),
    "partial": ("llama", {"llama.rope.dimension_count": 8}, {}, "gguf-key-unsupported", "dimension_count"),
    "longrope by its name": (
        "qwen2", {"qwen2.rope.scaling.type": "longrope"}, {}, "gguf-rope-unsupported", "'longrope'"
    ),
    "yarn in part": (
        "qwen3-yarn", {"qwen3.rope.scaling.yarn_ext_factor": 0.5}, {}, "gguf-key-unsupported", "yarn_ext_factor"
    ),
    "yarn of DeepSeek": (
        "qwen3-yarn", {"qwen3.rope.scaling.yarn_log_multiplier": 0.1}, {}, "gguf-key-unsupported", "log_multiplier"
    ),
    "clipped": ("mpt", {"mpt.attention.clamp_kqv": 6.0}, {}, "gguf-key-unsupported", "clamp_kqv = 6.0"),
    "no biases": ("mpt", {"mpt.attention.max_alibi_bias": 0.0}, {}, "gguf-key-unsupported", "max_alibi_bias = 0.0"),
    "steeper biases": (
        "mpt", {"mpt.attention.max_alibi_bias": 16.0}, {}, "gguf-key-unsupported", "max_alibi_bias = 16.0"
    ),
    "shared heads": ("mpt", {"mpt.attention.head_count_kv": 1}, {}, "gguf-key-unsupported", "head_count_kv = 1"),
    "narrow layers": (
        "bloom", {"bloom.feed_forward_length": 128}, {}, "gguf-key-unsupported", "feed_forward_length = 128"
    ),
    "rows in another order": (
        "falcon", {"falcon.tensor_data_layout": "other"}, {}, "gguf-key-unsupported", "tensor_data_layout"
    ),
    "Command R+": (
        "command-r", {}, {"blk.0.attn_q_norm.weight": np.ones((4, 16), np.float32)}, "gguf-key-unsupported",
        "attn_q_norm",
    ),
    "attention factor": (
        "llama", {"llama.rope.scaling.attn_factor": 1.2}, {}, "gguf-key-unsupported", "attn_factor"
    ),
    "epsilon": (
        "olmo", {"olmo.attention.layer_norm_epsilon": 1e-6}, {}, "gguf-key-unsupported", "layer_norm_epsilon"
    ),
    "clamped heads": ("olmo", {"olmo.attention.clamp_kqv": 8.0}, {}, "gguf-key-unsupported", "clamp_kqv"),
    "another curve": ("apertus", {"xielu.beta": [0.5, 0.25]}, {}, "gguf-key-unsupported", "xielu.beta = [0.5, 0.25]"),
    "queries that grow elsewhere": (
        "mistral3", {"mistral3.attention.temperature_length": 16}, {}, "gguf-key-unsupported", "temperature_length"
    ),
    "longrope": (
        "phi3", {}, {"rope_factors_long.weight": np.ones(8, np.float32)}, "gguf-rope-unsupported", "longrope"
    ),
    "frequencies": (
        "llama", {}, {"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}, "gguf-rope-unsupported",
        "rope_freqs",
    ),
    "two scalings": (
        "llama-linear", {}, {"rope_freqs.weight": np.full(8, 2, np.float32)}, "gguf-rope-unsupported",
        "linear",
    ),
    "split": ("llama", {"split.count": 3}, {}, "gguf-split", "one part of 3"),
    "architecture": ("llama", {"general.architecture": "mamba"}, {}, "architecture-unknown", "mamba"),
    "layers that differ": (
        "llama", {"llama.attention.head_count_kv": [2, 4]}, {}, "gguf-key-unsupported", "head_count_kv"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(name: str, tmp_path: Path) -> None:
    model, keys, tensors, code, named = REFUSED[name]
    samples.convert(samples.tiny(model), tmp_path / "m.gguf", keys=keys, tensors=tensors)
    with pytest.raises(OnnxGptError) as error:
        load(str(tmp_path / "m.gguf"))
    assert error.value.code == code
    assert error.value.exit == Exit.UNSUPPORTED
    assert named in str(error.value)


BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "too many layers": ({"llama.block_count": 3}, {}, "there are no tensors of block 2"),
    "layers without end": ({"llama.block_count": 2**32 - 1}, {}, "block_count"),
    "no heads": ({"llama.attention.head_count": 0}, {}, "head_count"),
    "another vocabulary": ({"llama.vocab_size": 95}, {}, "vocab_size is 95"),
    "a base of zero": ({"llama.rope.freq_base": 0.0}, {}, "freq_base"),
    "no embedding": ({}, {"token_embd.weight": None}, "token_embd.weight"),
    "words for numbers": ({"llama.embedding_length": "64"}, {}, "embedding_length"),
    "a tensor under both names": ({}, {"model.norm.weight": np.ones(64, np.float32)}, "under both its names"),
    "positions stretched by half": ({"llama.rope.scaling.factor": 0.5}, {}, "scaled by 0.5"),
    "no context": ({"llama.context_length": 0}, {}, "m.gguf: its keys make no llama model"),
    "no feed-forward": (
        {"llama.feed_forward_length": 0},
        {},
        "- llama.feed_forward_length = 0: Input should",
    ),
    "an epsilon of 2": ({"llama.attention.layer_norm_rms_epsilon": 2.0}, {}, "layer_norm_rms_epsilon = 2.0"),
    "heads that do not share": ({"llama.attention.head_count_kv": 3}, {}, "do not share 3 kv heads"),
    "frequencies of another size": ({}, {"rope_freqs.weight": np.ones(3, np.float32)}, "rope_freqs.weight"),
}


CONTRADICTING: dict[str, tuple[str, dict[str, Any], str]] = {
    "heads that do not divide": ("falcon", {"falcon.attention.head_count": 5}, "m.gguf: its keys make no falcon"),
    "groups that do not divide": ("falcon-40b", {"falcon.attention.head_count_kv": 3}, "do not share 3 kv heads"),
    "Falcon 11B without its base": ("falcon", {"falcon.attention.head_count_kv": 2}, "falcon.rope.freq_base"),
    "no positions": ("bloom", {"bloom.context_length": 0}, "bloom.context_length = 0: Input should"),
    "an epsilon below": (
        "mpt", {"mpt.attention.layer_norm_epsilon": -1.0}, "mpt.attention.layer_norm_epsilon = -1.0"
    ),
    "no logits": ("command-r", {"command-r.logit_scale": 0.0}, "command-r.logit_scale = 0.0"),
    "no window": ("cohere2", {"cohere2.attention.sliding_window": 0}, "cohere2.attention.sliding_window = 0"),
    "windows of fewer layers": (
        "olmo3", {"olmo2.attention.sliding_window_pattern": [True, False]},
        "olmo2.attention.sliding_window_pattern is no yes or no for each of 4 layers",
    ),
    "windows in words": (
        "gemma2", {"gemma2.attention.sliding_window_pattern": "LG"}, "gemma2.attention.sliding_window_pattern"
    ),
    "numbers of fewer layers": ("apertus", {"xielu.alpha_p": [0.5]}, "xielu.alpha_p has 1 numbers for 2 layers"),
    "one number": ("apertus", {"xielu.alpha_n": 0.5}, "xielu.alpha_n should be an array of numbers"),
    "queries that shrink": ("mistral3", {"mistral3.attention.temperature_scale": -1.0}, "llama_4_scaling_beta is -1"),
    "yarn without a context": (
        "arcee-yarn", {"arcee.rope.scaling.original_context_length": "16"}, "original_context_length"
    ),
    "yarn of no pair": ("arcee-yarn", {"arcee.rope.scaling.yarn_beta_fast": 0.0}, "beta_fast"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "keys", "tensors", "named"),
    [
        *(("llama", *broken) for broken in BROKEN.values()),
        *((model, keys, {}, named) for model, keys, named in CONTRADICTING.values()),
    ],
    ids=[*BROKEN, *CONTRADICTING],
)
def test_contradictions_are_rejected(
    model: str, keys: dict[str, Any], tensors: dict[str, Any], named: str, tmp_path: Path
) -> None:
    samples.convert(samples.tiny(model), tmp_path / "m.gguf", keys=keys, tensors=tensors)
    with pytest.raises(OnnxGptError) as error:
        load(str(tmp_path / "m.gguf"))
    assert (error.value.code, error.value.exit) == ("gguf-invalid", Exit.REJECTED)
    assert named in str(error.value)


def test_features_turned_off_are_tolerated(tmp_path: Path) -> None:
    keys = {"llama.expert_count": 0, "llama.attention.causal": True, "llama.rope.scaling.type": "none"}
    ones = {"rope_freqs.weight": np.ones(8, np.float32)}
    samples.convert(samples.tiny("llama"), tmp_path / "m.gguf", keys=keys, tensors=ones)
    assert loaded(tmp_path / "m.gguf").config["rope_scaling"] is None


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({"llama.rope.scale_linear": 4.0}, 4.0),  # before there were types
        ({"llama.rope.scaling.factor": 2.0}, 2.0),
        ({"llama.rope.scaling.factor": 0.0}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 2.0}, None),
    ],
)
def test_linear_scaling_as_llama_cpp_reads_it(
    keys: dict[str, Any], factor: float | None, tmp_path: Path
) -> None:
    samples.convert(samples.tiny("llama"), tmp_path / "m.gguf", keys=keys)
    scaling = loaded(tmp_path / "m.gguf").config["rope_scaling"]
    assert scaling == (None if factor is None else {"rope_type": "linear", "factor": factor})


def test_one_tensor_of_q_k_and_v_is_three(tmp_path: Path) -> None:
    """As in files that were made of GLM-4's first checkpoints."""
    model = samples.tiny("chatglm")
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    tensors: dict[str, np.ndarray | None] = {}
    for i in range(2):
        for suffix in ("weight", "bias"):
            parts = [state[f"model.layers.{i}.self_attn.{part}_proj.{suffix}"] for part in "qkv"]
            tensors[f"blk.{i}.attn_qkv.{suffix}"] = np.concatenate(parts)
            tensors |= {f"blk.{i}.attn_{part}.{suffix}": None for part in "qkv"}
    samples.convert(model, tmp_path / "m.gguf", tensors=tensors)
    checkpoint = loaded(tmp_path / "m.gguf")
    matched(checkpoint)
    for name, weight in checkpoint.weights.items():
        np.testing.assert_array_equal(weight.read(), state[name], err_msg=name)


@pytest.mark.parametrize("type", [Type.Q4_K, Type.Q6_K], ids=lambda type: type.name)
def test_k_quants_of_heads_that_change_places_keep_their_codes(type: Type, tmp_path: Path) -> None:
    """llama.cpp keeps q, k and v of Falcon one after the other, Hugging Face by group."""
    config = transformers.FalconConfig(
        **samples.FALCON | {"hidden_size": 256}, num_kv_heads=2, new_decoder_architecture=True
    )
    stored = samples.random_blocks(type, (4 + 2 * 2) * 64, 1, seed=7)
    tensors = {"blk.0.attn_qkv.weight": (stored, type)}
    samples.convert(transformers.FalconForCausalLM(config), tmp_path / "m.gguf", tensors=tensors)
    _, roles = matched(loaded(tmp_path / "m.gguf"))
    expected = gguf.quants.dequantize(stored, type)
    for role, rows in (("q", slice(256)), ("k", slice(256, 384)), ("v", slice(384, None))):
        weight = roles[f"layers.0.attention.{role}.weight"]
        assert weight.format is not None
        np.testing.assert_array_equal(weight.read(), expected[rows])
        np.testing.assert_array_equal(weight.coded(3, 70).values(weight.format), expected[rows][3:70])


def test_falcon_11b_has_groups_and_one_norm(tmp_path: Path) -> None:
    """With a base that the file has to say."""
    config = transformers.FalconConfig(
        **samples.FALCON, num_kv_heads=2, new_decoder_architecture=True, num_ln_in_parallel_attn=1,
        rope_parameters={"rope_type": "default", "rope_theta": 500042.0},
    )  # fmt: skip
    model = transformers.FalconForCausalLM(config).eval()
    samples.convert(model, tmp_path / "m.gguf", keys={"falcon.rope.freq_base": 500042.0})
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        ours, theirs = rebuilt(loaded(tmp_path / "m.gguf"))(tokens).logits, model(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("pattern", "full"),
    [(None, [3]), (2, [1, 3]), (0, []), ([True, False, False, True], [1, 2]), ([1, 1, 1, 0], [3])],
)
def test_windows_are_told_by_a_period_or_layer_by_layer(
    pattern: int | list[Any] | None, full: list[int], tmp_path: Path
) -> None:
    keys = {} if pattern is None else {"cohere2.attention.sliding_window_pattern": pattern}
    samples.convert(samples.tiny("cohere2"), tmp_path / "m.gguf", keys=keys)
    types = loaded(tmp_path / "m.gguf").config["layer_types"]
    assert [i for i, kind in enumerate(types) if kind == "full_attention"] == full


def test_every_architecture_is_in_the_docs() -> None:
    page = Path(__file__).parents[2] / "docs" / "architecture.md"
    section = page.read_text("utf-8").split("## A GGUF file\n")[1].split("\n## ")[0]
    assert [name for name in ARCHITECTURES if f"`{name}`" not in section] == []


def test_missing_and_unknown_tensors_are_listed_together(tmp_path: Path) -> None:
    tensors = {"blk.1.ffn_up.weight": None, "blk.0.ffn_gate_exps.weight": np.ones((2, 4), np.float32)}
    samples.convert(samples.tiny("llama"), tmp_path / "m.gguf", tensors=tensors)
    checkpoint = loaded(tmp_path / "m.gguf")
    with pytest.raises(OnnxGptError) as error:
        match_weights(describe(checkpoint), checkpoint.weights)
    assert error.value.details == (
        "missing: model.layers.1.mlp.up_proj.weight [96, 64]",
        "unused: blk.0.ffn_gate_exps.weight [2, 4]",
    )


def test_claims(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "model.bin").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "other.bin").write_bytes(b"ONNX")
    (tmp_path / "broken.GGUF").write_bytes(b"")
    claimed = {name: gguf_file.claims(str(tmp_path / name)) for name in (
        "folder.gguf", "model.bin", "other.bin", "broken.GGUF", "missing.gguf", "missing.bin",
    )}  # fmt: skip
    assert claimed == {
        "folder.gguf": False, "model.bin": True, "other.bin": False, "broken.GGUF": True,
        "missing.gguf": True, "missing.bin": False,
    }  # fmt: skip
    assert not gguf_file.claims("hf:org/model.gguf")
    with pytest.raises(OnnxGptError, match="source-missing"):
        load(str(tmp_path / "missing.gguf"))


@pytest.mark.parametrize(
    ("head_dim", "factor", "context"), [(64, 32.0, 8192), (128, 8.0, 8192), (32, 4.0, 4096)]
)
def test_llama3_scaling_is_recovered(head_dim: int, factor: float, context: int, tmp_path: Path) -> None:
    """The file has only what the frequencies are divided by."""
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": context,
    }
    config = transformers.LlamaConfig(
        **samples.DIMS, head_dim=head_dim, rope_parameters=scaling | {"rope_theta": 500000.0}
    )
    samples.convert(transformers.LlamaForCausalLM(config), tmp_path / "m.gguf")
    found = loaded(tmp_path / "m.gguf").config
    assert found["rope_scaling"] == scaling
    assert found["rope_theta"] == 500000.0


def test_the_share_of_rotated_channels_survives_rounding() -> None:
    for head_dim in range(2, 258, 2):
        for rotated in range(2, head_dim + 1, 2):
            assert int(head_dim * share(rotated, head_dim)) == rotated

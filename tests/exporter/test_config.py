"""Real configurations parse, in both of transformers' spellings; what is not understood is refused by name.

``configs/`` holds ``config.json`` files of well-known models, one a model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import DYNAMIC, YARN, config_class, tiny

from exporter import variants
from exporter.checkpoint import Checkpoint
from exporter.config import INERT, OFF
from exporter.decoder import Decoder
from exporter.errors import Exit, OnnxGptError
from exporter.families import describe, families, family_of

CONFIGS = Path(__file__).parent / "configs"

PARAMETERS = {
    "AFM-4.5B": 4_619_184_640,
    "Apertus-8B-2509": 8_053_338_176,
    "ERNIE-4.5-0.3B-PT": 360_748_032,
    "EXAONE-3.5-2.4B-Instruct": 2_405_327_360,
    "EXAONE-4.0-1.2B": 1_279_391_488,
    "GLM-4-9B-0414": 9_400_279_040,
    "Llama-2-7b-hf": 6_738_415_616,
    "Llama-3.2-1B": 1_235_814_400,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Minitron-4B-Base": 4_190_509_056,
    "OLMo-1B-hf": 1_176_764_416,
    "OLMo-2-0425-1B": 1_484_916_736,
    "Olmo-3-7B-Instruct": 7_298_011_136,
    "Phi-3-mini-4k-instruct": 3_821_079_552,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen3-0.6B": 596_049_920,
    "Seed-OSS-36B-Instruct": 36_151_104_512,
    "SmolLM2-135M-Instruct": 134_515_008,
    "SmolLM3-3B": 3_075_098_624,
    "TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "biogpt": 346_763_264,
    "bloom-560m": 559_214_592,
    "c4ai-command-r-v01": 34_980_831_232,
    "c4ai-command-r7b-12-2024": 8_028_033_024,
    "codegen-350M-mono": 356_712_448,
    "distilgpt2": 81_912_576,
    "falcon-40b": 41_303_293_952,
    "falcon-7b": 6_921_720_704,
    "falcon-rw-1b": 1_311_625_216,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2b": 2_506_172_416,
    "gemma-3-1b-it": 999_885_952,
    "gemma-3-270m": 268_098_176,
    "glm-4-9b-chat-hf": 9_399_951_360,
    "gpt-j-6b": 6_050_882_784,
    "gpt-neo-125m": 125_198_592,
    "gpt-neox-20b": 20_554_567_680,
    "gpt2": 124_439_808,
    "granite-3.3-8b-instruct": 8_170_864_640,
    "helium-1-preview-2b": 2_172_643_840,
    "internlm3-8b-instruct": 8_804_241_408,
    "mpt-7b": 6_649_286_656,
    "nanochat-d32": 1_879_048_192,
    "opt-125m": 125_239_296,
    "persimmon-8b-base": 9_397_175_296,
    "phi-2": 2_779_683_840,
    "pythia-70m": 70_426_624,
    "stablelm-3b-4e1t": 2_795_443_200,
    "starcoder2-3b": 3_030_371_328,
    "starcoderbase-1b": 1_137_207_296,
    "xglm-564M": 564_463_616,
}
"""As the models' authors and their model pages give them."""


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text("utf-8"))
    return config


def described(config: dict[str, Any]) -> Decoder:
    return describe(Checkpoint("test", config, {}))


def refusal(config: dict[str, Any]) -> OnnxGptError:
    with pytest.raises(OnnxGptError) as caught:
        described(config)
    return caught.value


@pytest.mark.parametrize("name", PARAMETERS)
def test_real_config_describes_a_model_of_the_known_size(name: str) -> None:
    decoder = described(config_of(name))
    stored = {part.name: part.stored_shape for _, part in decoder.parts()}
    assert sum(math.prod(shape) for shape in stored.values()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_both_spellings_describe_one_model(name: str) -> None:
    """The file as it is on the hub, and what transformers 5 makes of it, are one description."""
    config = config_of(name)
    rewritten = config_class_of(config).from_dict(config).to_dict()
    assert described(json.loads(json.dumps(rewritten))) == described(config)


def config_class_of(config: dict[str, Any]) -> Any:
    return config_class(family_of(Checkpoint("test", config, {})).__name__.rpartition(".")[2])


def test_every_config_here_is_tested() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == PARAMETERS.keys() | {"Phi-4-mini-instruct"}


def test_phi4_mini_is_refused_for_longrope() -> None:
    error = refusal(config_of("Phi-4-mini-instruct"))
    assert (error.code, error.exit) == ("rope-unknown", Exit.UNSUPPORTED)
    assert "longrope" in error.cause


def test_yarn_of_phi3_is_longrope_and_refused() -> None:
    """transformers reads the name so."""
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    error = refusal(config_of("Phi-3-mini-4k-instruct") | {"rope_scaling": scaling})
    assert (error.code, error.exit) == ("rope-unknown", Exit.UNSUPPORTED)


DERIVED = (
    *("num_key_value_heads", "head_dim", "layer_types", "no_rope_layers", "word_embed_proj_dim"),
    *("attention_types", "attention_layers", "attention_multiplier"),
    *("num_kv_heads", "ffn_hidden_size", "attn_config"),
)
"""Keys that follow from others where they are left out, there as here."""


@pytest.mark.parametrize("family", families())
def test_defaults_are_those_of_transformers(family: str) -> None:
    """A key left out means here what it means there."""
    theirs = config_class(family)().to_dict()
    skipped = {"rope_theta", "rope_local_base_freq", "rotary_emb_base", "rotary_pct", "rope_parameters"}
    compared = 0
    for name, field in families()[family].Config.model_fields.items():
        key = field.alias or name
        if field.is_required() or key in skipped or key not in theirs:
            continue
        ours, expected = field.default, theirs[key]
        if ours is None and key in DERIVED:
            continue
        if key == "sliding_window" and theirs.get("use_sliding_window") is False:
            continue
        assert ours == expected, key
        compared += 1
    assert compared >= 2


# What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("Llama-3.2-1B", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("Llama-3.2-1B", {"rope_interleaved": True}, "rope_interleaved"),
        ("Llama-3.2-1B", {"num_local_experts": 8}, "num_local_experts"),
        ("Qwen2.5-0.5B", {"use_mrope": True}, "use_mrope"),
        ("Phi-3-mini-4k-instruct", {"lm_head_bias": True}, "lm_head_bias"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("opt-125m", {"do_layer_norm_before": False}, "do_layer_norm_before"),
        ("phi-2", {"qk_layernorm": True}, "qk_layernorm"),
        ("starcoder2-3b", {"norm_type": "rms_norm"}, "norm_type"),
        ("starcoder2-3b", {"mlp_type": "gated"}, "mlp_type"),
        ("gpt-j-6b", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("granite-3.3-8b-instruct", {"position_embedding_type": "nope"}, "position_embedding_type"),
        ("OLMo-1B-hf", {"clip_qkv": 8.0}, "clip_qkv"),
        ("OLMo-2-0425-1B", {"clip_qkv": 8.0}, "clip_qkv"),
        ("opt-125m", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        ("Mistral-7B-v0.1", {"layer_types": ["full_attention"] * 32}, "layer_types"),
        ("stablelm-3b-4e1t", {"qk_layernorm": True}, "qk_layernorm"),
        ("c4ai-command-r-v01", {"use_qk_norm": True}, "use_qk_norm"),
        ("mpt-7b", {"attn_config": {"clip_qkv": 6}}, "clip_qkv"),
        ("mpt-7b", {"attn_config": {"alibi": False}}, "alibi"),
        ("mpt-7b", {"attn_config": {"alibi_bias_max": 16}}, "alibi_bias_max"),
        ("mpt-7b", {"attn_config": {"qk_ln": True}}, "qk_ln"),
        ("mpt-7b", {"no_bias": False}, "no_bias"),
        ("mpt-7b", {"logit_scale": "inv_sqrt_d_model"}, "logit_scale"),
        *(
            (
                name,
                {"apply_residual_connection_post_layernorm": True},
                "apply_residual_connection_post_layernorm",
            )
            for name in ("bloom-560m", "falcon-7b")
        ),
        ("c4ai-command-r7b-12-2024", {"use_parallel_block": False}, "use_parallel_block"),
        ("GLM-4-9B-0414", {"use_qk_norm": True}, "use_qk_norm"),
        ("EXAONE-4.0-1.2B", {"attention_bias": True}, "attention_bias"),
        ("gemma-2b", {"hidden_activation": "gelu"}, "hidden_activation"),
        ("gemma-2b", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_an_unknown_feature_is_named(name: str, change: dict[str, Any], word: str) -> None:
    error = refusal(config_of(name) | change)
    assert (error.code, error.exit) == ("config-key-unknown", Exit.UNSUPPORTED)
    assert [detail for detail in error.details if detail.startswith(f"{word} = ")]


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("Llama-3.2-1B", {"hidden_act": "gelu"}, "hidden_act"),
        ("Llama-3.2-1B", {"hidden_size": "2048"}, "hidden_size"),
        ("Llama-3.2-1B", {"hidden_size": 0}, "hidden_size"),
        ("Llama-3.2-1B", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("Llama-3.2-1B", {"vocab_size": 10**12}, "vocab_size"),
        ("Llama-3.2-1B", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ("Llama-3.2-1B", {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ("Llama-3.2-1B", {"num_key_value_heads": 7}, "7 kv heads"),
        ("Llama-3.2-1B", {"rope_parameters": {"rope_theta": 5.0}}, "rope_scaling"),
        ("Llama-2-7b-hf", {"num_attention_heads": 30, "num_key_value_heads": 30}, "30 heads"),
        ("gpt2", {"n_head": 5}, "n_head"),
        ("gpt2", {"activation_function": "mish"}, "activation_function"),
        ("opt-125m", {"word_embed_proj_dim": 512}, "word_embed_proj_dim"),
        ("gpt-j-6b", {"rotary_dim": None}, "rotary_dim"),
        ("gpt-j-6b", {"rotary_dim": 512}, "rotary_dim"),
        ("granite-3.3-8b-instruct", {"residual_multiplier": 0.0}, "residual_multiplier"),
        ("pythia-70m", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("pythia-70m", {"rope_theta": 500.0}, "rope_theta"),
        ("pythia-70m", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("gemma-3-1b-it", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma-3-1b-it", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma-3-1b-it", {"_sliding_window_pattern": 3}, "_sliding_window_pattern"),
        ("gemma-3-1b-it", {"sliding_window": None}, "sliding_window"),
        ("gemma-3-1b-it", {"rope_parameters": {"rope_theta": 5.0}}, "rope_theta"),
        ("gemma-3-1b-it", {"rope_parameters": {"full_attention": "linear"}}, "full_attention"),
        ("Olmo-3-7B-Instruct", {"rope_theta": 1e6}, "rope_theta"),
        ("Olmo-3-7B-Instruct", {"sliding_window": None}, "sliding_window"),
        ("gemma-3-270m", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma-3-270m", {"layer_types": ["chunked_attention"] * 18}, "layer_types"),
        ("Qwen2.5-0.5B", {"layer_types": ["sliding_attention"] * 24}, "sliding_window"),
        ("gpt-neo-125m", {"attention_types": [[["global"], 12]]}, "attention_types"),
        ("gpt-neo-125m", {"num_layers": 11}, "num_layers"),
        ("starcoderbase-1b", {"num_key_value_heads": 16}, "num_key_value_heads"),
        ("codegen-350M-mono", {"n_embd": 1022, "n_head": 7, "rotary_dim": 2}, "n_embd"),
        ("stablelm-3b-4e1t", {"head_dim": 64}, "head_dim"),
        ("bloom-560m", {"hidden_size": 2048}, "n_embed"),
        ("falcon-7b", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ("falcon-40b", {"parallel_attn": False}, "parallel_attn"),
        ("falcon-40b", {"num_kv_heads": 7}, "kv heads"),
        ("falcon-rw-1b", {"num_kv_heads": 8}, "num_kv_heads"),
        ("mpt-7b", {"n_heads": 31}, "n_heads"),
        ("c4ai-command-r7b-12-2024", {"sliding_window": None}, "sliding_window"),
        ("EXAONE-4.0-1.2B", {"layer_types": None}, "layer_types"),
        ("EXAONE-4.0-1.2B", {"layer_types": None, "sliding_window_pattern": "LLLG"}, "LLLG"),
        ("EXAONE-4.0-1.2B", {"layer_types": ["sliding_attention"] * 30}, "sliding_window"),
        ("EXAONE-4.0-1.2B", {"layer_types": None, "sliding_window_pattern": 4}, "sliding_window"),
        ("helium-1-preview-2b", {"head_dim": 64}, "head_dim"),
        ("EXAONE-3.5-2.4B-Instruct", {"num_hidden_layers": 31}, "num_layers"),
        ("EXAONE-3.5-2.4B-Instruct", {"activation_function": "gelu"}, "hidden_act"),
        ("internlm3-8b-instruct", {"qkv_bias": True}, "qkv_bias"),
        ("biogpt", {"num_attention_heads": 15}, "15 heads"),
    ],
)
def test_an_invalid_value_is_named(name: str, change: dict[str, Any], word: str) -> None:
    error = refusal(config_of(name) | change)
    assert (error.code, error.exit) == ("config-invalid", Exit.REJECTED)
    assert any(word in detail for detail in error.details), error.details


@pytest.mark.parametrize(
    ("family", "change", "code", "word"),
    [
        ("apertus", {"hidden_act": "silu"}, "config-invalid", "hidden_act"),
        ("apertus", {"mlp_bias": True}, "config-key-unknown", "mlp_bias"),
        ("apertus", {"post_norm": True}, "config-key-unknown", "post_norm"),
        ("apertus", {"qk_norm": False}, "config-key-unknown", "qk_norm"),
        ("cwm", {"rope_parameters": None, "rope_theta": 5.0}, "config-invalid", "rope_theta"),
        ("gpt_neox_japanese", {"intermediate_size": 64}, "config-invalid", "intermediate_size"),
        ("gpt_neox_japanese", {"use_parallel_residual": True}, "config-key-unknown", "use_parallel_residual"),
        ("hunyuan_v1_dense", {"head_dim": None}, "config-invalid", "head_dim"),
        ("hunyuan_v1_dense", {"attention_head_dim": 8}, "config-invalid", "attention_head_dim"),
        ("hunyuan_v1_dense", {"rope_parameters": DYNAMIC | {"alpha": "many"}}, "config-invalid", "alpha"),
        ("hunyuan_v1_dense", {"rope_parameters": DYNAMIC | {"alpha": 5, "low": 1}}, "rope-unknown", "low"),
        ("hunyuan_v1_dense", {"rope_parameters": DYNAMIC | {"alpha": 1e308}}, "config-invalid", "rope_theta"),
        (
            "hunyuan_v1_dense",
            {"head_dim": 2, "rope_parameters": DYNAMIC | {"alpha": 5}},
            "config-invalid",
            "rope_theta",
        ),
        ("hunyuan_v1_dense", {"use_cla": True}, "config-key-unknown", "use_cla"),
        ("hunyuan_v1_dense", {"use_qk_norm": False}, "config-key-unknown", "use_qk_norm"),
        ("iquestcoder", {"clip_qkv": 8.0}, "config-key-unknown", "clip_qkv"),
        ("iquestcoder", {"use_sliding_window": True}, "config-key-unknown", "use_sliding_window"),
        ("ministral3", {"rope_parameters": {**YARN}}, "config-invalid", "llama_4_scaling_beta"),
        ("ministral3", {"layer_types": ["full_attention"] * 2}, "config-key-unknown", "layer_types"),
        ("nanochat", {"final_logit_softcapping": 0.0}, "config-invalid", "final_logit_softcapping"),
        ("nanochat", {"qkv_bias": True}, "config-key-unknown", "qkv_bias"),
        ("persimmon", {"head_dim": 8}, "config-invalid", "head_dim"),
        ("persimmon", {"num_key_value_heads": 2}, "config-invalid", "num_key_value_heads"),
        ("xglm", {"pad_token_id": 2}, "config-invalid", "pad_token_id"),
        ("xglm", {"attention_heads": 3, "d_model": 63}, "config-invalid", "sines"),
        ("xglm", {"attention_heads": 5}, "config-invalid", "5 heads"),
    ],
)
def test_what_a_family_does_not_run_is_refused(
    family: str, change: dict[str, Any], code: str, word: str
) -> None:
    error = refusal(dict(tiny(family).config) | change)
    assert error.code == code
    assert any(word in said for said in (error.cause, *error.details))


@pytest.mark.parametrize(("variant", "context"), [("short", 32), ("unscaled", 64)])
def test_the_context_of_ministral_3_ends_where_its_queries_grow(variant: str, context: int) -> None:
    assert described(dict(tiny("ministral3", variant=variant).config)).context_length == context


@pytest.mark.parametrize("kind", ["exaone", "iquestcoder", "internlm3", "llama", "mistral", None])
def test_what_transformers_saves_as_llama_is_told_apart_by_its_type(kind: str | None) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": kind}
    named = family_of(Checkpoint("test", config, {})).__name__.rpartition(".")[2]
    assert named == (kind if kind in families() and kind != "mistral" else "llama")


@pytest.mark.parametrize("family", families())
def test_a_missing_dim_is_named(family: str) -> None:
    config = dict(tiny(family).config)
    del config["vocab_size"]
    error = refusal(config)
    assert error.code == "config-invalid"
    assert any(detail.startswith("vocab_size") for detail in error.details)


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    error = refusal(config_of("gemma-3-1b-it") | {"architectures": ["Gemma3ForConditionalGeneration"]})
    assert (error.code, error.exit) == ("architecture-unknown", Exit.UNSUPPORTED)
    assert "Gemma3ForCausalLM" in error.remedy


@given(key=st.text(st.characters(codec="utf-8"), min_size=1), value=st.integers() | st.text() | st.booleans())
def test_no_key_is_ignored_in_silence(key: str, value: Any) -> None:
    config = config_of("SmolLM2-135M-Instruct")
    family = family_of(Checkpoint("test", config, {}))
    known = {*INERT, *OFF, variants.KEY}
    if key in family.Config.model_fields or key in known or key in family.Config.absent:
        return
    assert refusal(config | {key: value}).code == "config-key-unknown"

"""Checkpoint directories as transformers writes them, and as accidents and strangers leave them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from exporter.errors import Exit, OnnxGptError
from exporter.match import matched
from exporter.sources import hf_directory, load


def llama(**changes: object) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **changes,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=97, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama in three shards."""
    folder = tmp_path_factory.mktemp("sharded")
    llama().save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder


@pytest.fixture
def sharded(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refused(folder: Path, code: str, exit: Exit = Exit.REJECTED) -> str:
    with pytest.raises(OnnxGptError) as caught:
        load(str(folder))
    assert (caught.value.code, caught.value.exit) == (code, exit)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_weights_are_read_back_bit_for_bit(tmp_path: Path, make, shard: str, dtype: torch.dtype) -> None:
    model = make().to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    checkpoint = load(str(tmp_path))
    state = model.state_dict()
    assert checkpoint.weights.keys() == state.keys() - (
        {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    )
    for name, weight in checkpoint.weights.items():
        assert np.array_equal(weight.read(), state[name].float().numpy()), name
        assert np.array_equal(weight.rows(1, 3), state[name][1:3].float().numpy()), name
    assert "layers.1.ffn.down.weight" in matched(checkpoint)[1]
    assert "generation_config.json" in checkpoint.files


def test_files_of_the_tokenizer_are_passed_through_as_bytes(sharded: Path) -> None:
    (sharded / "tokenizer.json").write_bytes(b"\xff anything")
    (sharded / "chat_template.jinja").write_text("{{ messages }}")
    (sharded / "tokenizer.model").write_bytes(b"sentencepiece")
    files = load(str(sharded)).files
    assert files["tokenizer.json"] == b"\xff anything"
    assert files["chat_template.jinja"] == b"{{ messages }}"
    assert "tokenizer.model" not in files and "config.json" not in files


@pytest.mark.parametrize(
    ("make", "prefix"), [(gpt2, "transformer."), (llama, "model.")], ids=["gpt2", "llama"]
)
def test_a_checkpoint_of_the_base_model_gets_the_names_of_the_class(
    tmp_path: Path, make, prefix: str
) -> None:
    make().save_pretrained(tmp_path)
    with_prefix = {name: weight.read() for name, weight in load(str(tmp_path)).weights.items()}
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    assert bare.keys() != tensors.keys()
    bare["h.0.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), np.bool_))  # as in gpt2 on the Hub
    save_file(bare, tmp_path / "model.safetensors")
    without = load(str(tmp_path)).weights
    assert without.keys() == with_prefix.keys() | {f"{prefix}h.0.attn.bias"}
    for name, array in with_prefix.items():
        assert np.array_equal(array, without[name].read())


def test_one_file_wins_over_an_index_as_in_transformers(sharded: Path) -> None:
    save_file({"model.norm.weight": np.ones(3, np.float32)}, sharded / "model.safetensors")
    assert list(load(str(sharded)).weights) == ["model.norm.weight"]


def test_shards_and_index_are_held_against_each_other_in_one_error(sharded: Path) -> None:
    index = json.loads((sharded / hf_directory.INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    (sharded / shards[0]).unlink()
    name = next(n for n, shard in index["weight_map"].items() if shard == shards[1])
    del index["weight_map"][name]
    index["weight_map"]["model.ghost.weight"] = shards[1]
    (sharded / hf_directory.INDEX).write_text(json.dumps(index))
    message = refused(sharded, "weights-incomplete")
    assert f"missing file: {shards[0]}" in message
    assert f"{shards[1]} lacks model.ghost.weight" in message
    assert f"{shards[1]} has {name}, which the index does not place there" in message


@pytest.mark.parametrize(
    "place", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "x\0", "é\n"]
)
def test_an_index_cannot_lead_out_of_the_folder(sharded: Path, place: str) -> None:
    shutil.copy(next(sharded.glob("model-*")), sharded.parent / "model.safetensors")
    (sharded / hf_directory.INDEX).write_text(json.dumps({"weight_map": {"a": place}}))
    refused(sharded, "path-escapes")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": None}])
def test_an_index_without_a_map_is_refused(sharded: Path, index: object) -> None:
    (sharded / hf_directory.INDEX).write_text(json.dumps(index))
    refused(sharded, "weights-incomplete")


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model-00001-of-00003.safetensors"])
def test_a_link_out_of_the_folder_is_refused(sharded: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (sharded / name).unlink(missing_ok=True)
    (sharded / name).symlink_to(secret)
    assert "secret" in refused(sharded, "path-escapes")


def test_links_of_the_hub_cache_are_followed(saved: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(saved.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert load(str(snapshot)).weights.keys() == load(str(saved)).weights.keys()


def test_a_dangling_link_is_refused(sharded: Path) -> None:
    (sharded / "tokenizer.json").symlink_to("nowhere")
    refused(sharded, "file-unreadable")


def test_links_in_a_circle_and_endless_names_are_refused(sharded: Path) -> None:
    (sharded / hf_directory.INDEX).write_text(json.dumps({"weight_map": {"a": "x" * 5000}}))
    refused(sharded, "file-unreadable")
    (sharded / "tokenizer.json").symlink_to("tokenizer.json")
    (sharded / hf_directory.INDEX).unlink()
    save_file({"a": np.ones(3, np.float32)}, sharded / "model.safetensors")
    refused(sharded, "file-unreadable")


def test_a_directory_in_place_of_a_file_is_refused(sharded: Path) -> None:
    (sharded / "tokenizer.json").mkdir()
    refused(sharded, "file-irregular")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_refused_with_a_way_out(sharded: Path, name: str) -> None:
    for file in sharded.glob("model*"):
        file.unlink()
    refused(sharded, "weights-missing")
    (sharded / name).write_bytes(b"\x80\x02.")
    assert "save_pretrained" in refused(sharded, "weights-pickle", Exit.UNSUPPORTED)


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "config-missing")


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"[]",
        b"null",
        b"3",
        b"{",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\xff"}',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"architectures": "LlamaForCausalLM"}',
        b'{"architectures": [1]}',
        b'{"architectures": {"0": 1}}',
    ],
    ids=lambda config: config[:24].decode("latin-1"),
)
def test_a_config_that_is_not_strict_json_is_refused(sharded: Path, config: bytes) -> None:
    (sharded / "config.json").write_bytes(config)
    refused(sharded, "config-unreadable")


def test_a_config_that_does_not_end_is_refused(sharded: Path) -> None:
    with (sharded / "config.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse: takes no space
    refused(sharded, "file-too-large")


def test_integers_are_refused_where_a_weight_is_wanted_and_tolerated_elsewhere(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.arange(4)
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = load(str(tmp_path))
    matched(checkpoint)
    tensors["model.norm.weight"] = np.ones(32, np.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = load(str(tmp_path))
    with pytest.raises(OnnxGptError, match=r"model\.norm\.weight is I8"):
        matched(checkpoint)
    with pytest.raises(OnnxGptError, match="stored as I8"):
        checkpoint.weights["model.norm.weight"].read()


def test_bfloat16_of_every_bit_pattern_but_nan_and_infinity(tmp_path: Path) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    finite = patterns[np.isfinite(patterns.astype(np.float32))]
    save_file({"a": finite.reshape(2, -1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    read = load(str(tmp_path)).weights["a"].read()
    assert np.array_equal(read.view(np.uint32) >> 16, finite.view(np.uint16).reshape(2, -1).astype(np.uint32))


@pytest.mark.parametrize(
    "method", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes"}, {}, "awq"]
)
def test_a_quantized_checkpoint_is_refused_by_name(sharded: Path, method: object) -> None:
    config = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    message = refused(sharded, "checkpoint-quantized", Exit.UNSUPPORTED)
    assert (method.get("quant_method") or "None" if isinstance(method, dict) else method) in message
    (sharded / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    load(str(sharded))


def test_an_adapter_without_its_model_is_refused_by_name(tmp_path: Path, sharded: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in refused(tmp_path / "lora", "adapter-unmerged", Exit.UNSUPPORTED)
    (sharded / "adapter_config.json").write_text("{}")
    load(str(sharded))  # beside whole weights it says how they came about


@pytest.mark.parametrize("name", hf_directory.SLOW_TOKENIZERS)
def test_a_tokenizer_that_would_be_left_out_is_an_error(sharded: Path, name: str) -> None:
    (sharded / name).write_text("?")
    assert name in refused(sharded, "tokenizer-slow", Exit.UNSUPPORTED)
    (sharded / "tokenizer.json").write_text("{}")
    load(str(sharded))


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff"])
def test_small_files_that_no_runtime_could_read_are_refused(sharded: Path, name: str, data: bytes) -> None:
    (sharded / name).write_bytes(data)
    assert name in refused(sharded, "config-unreadable")


def test_a_template_that_is_no_text_is_refused(sharded: Path) -> None:
    (sharded / "chat_template.jinja").write_bytes(b"\xff\xfe{")
    assert "chat_template.jinja" in refused(sharded, "config-unreadable")


@pytest.mark.parametrize("name", ["model.gguf", "model.onnx", "ckpt.pt"])
def test_a_folder_of_another_kind_of_model_says_what_to_give(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert str(tmp_path / name) in refused(tmp_path, "config-missing")
    (tmp_path / "config.json").write_text("{}")
    assert str(tmp_path / name) in refused(tmp_path, "weights-missing")


def test_what_git_lfs_leaves_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refused(tmp_path, "weights-corrupt")


def test_a_source_that_is_none_says_what_would_be_one(tmp_path: Path) -> None:
    assert "hf:org/name;" not in refused(tmp_path / "nothing", "source-missing")
    with pytest.raises(OnnxGptError, match="write hf:org/name,"):
        load("org/name")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"")
    assert f"config.json: {tmp_path}" in refused(weights, "source-unknown")
    refused(tmp_path / ("x" * 5000), "file-unreadable")

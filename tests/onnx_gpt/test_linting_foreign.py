"""What the genai builder and mobius wrote does not run in transformers.js, and does once repaired."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from device_runtimes import genai_greedy
from tiny_decoders import TEMPLATE
from tokenizers import AddedToken, Tokenizer, decoders, models
from web_runtimes import in_node

from onnx_gpt.generation.generator import Generator
from onnx_gpt.linting.linter import lint
from onnx_gpt.linting.repairing import repair

FOREIGN = Path(__file__).parents[1] / "graph_passes" / "foreign"
PEERS = {"genai": "cache-dim-open", "mobius": "batch-symbol"}
"""What breaks each exporter's graph in transformers.js."""

CHAT = [{"role": "user", "content": "why?"}]
COUNT = 24
"""Tokens, with those of the prompt within the 32 that the tiny graphs hold."""
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 61,
    "max_position_embeddings": 32,
}


def letters() -> Tokenizer:
    """A token for each letter, as the 61 tokens of the tiny graphs allow."""
    alphabet = "abcdefghijklmnopqrstuvwxyz ?.,"
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each exporter, the documents as their exporters leave them, and repaired ones beside them."""
    home = tmp_path_factory.mktemp("foreign")
    for peer in PEERS:
        folder = home / peer
        folder.mkdir()
        shutil.copy(FOREIGN / f"{peer}-llama.onnx", folder / "model.onnx")
        letters().save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[0]}
        (folder / "tokenizer_config.json").write_text(json.dumps(words))
        (folder / "config.json").write_text(json.dumps(CONFIG))
        repair(folder, "web", home / f"{peer}-repaired")
        plain = home / f"{peer}-moved"  # all but what the linter is for: laid out as transformers.js wants it
        shutil.copytree(home / f"{peer}-repaired", plain)
        shutil.copy(folder / "model.onnx", plain / "onnx" / "model.onnx")
    return home


@pytest.mark.parametrize("peer", PEERS)
def test_what_is_wrong_is_found_and_repaired(folders: Path, peer: str) -> None:
    before = {finding.code for finding in lint(folders / peer, "web").errors}
    assert {PEERS[peer], "model-misplaced", "template-not-inline"} <= before
    after = lint(folders / f"{peer}-repaired", "web")
    assert after.ok
    assert not [finding for finding in after.findings if finding.mechanical]


@pytest.mark.parametrize("peer", PEERS)
def test_they_run_in_transformers_js_once_repaired(folders: Path, peer: str) -> None:
    """The same tokens as the Python runner gives on the exporter's own graph, with the chat template; not so before."""
    call = {"messages": CHAT, "max_new_tokens": COUNT}
    with pytest.raises(RuntimeError, match="past_key"):
        in_node(folders / f"{peer}-moved", [call])
    generator = Generator(folders / peer, threads=1)
    repaired = in_node(folders / f"{peer}-repaired", [call])[0]
    assert repaired["prompt"] == generator.encode(CHAT)
    assert tuple(repaired["ids"]) == generator.generate(CHAT, max_new_tokens=COUNT).tokens


@pytest.mark.parametrize("peer", PEERS)
def test_they_run_in_onnxruntime_genai_once_repaired_for_it(folders: Path, tmp_path: Path, peer: str) -> None:
    pytest.importorskip("onnxruntime_genai")
    repaired = repair(folders / peer, "genai", tmp_path / "out")
    assert repaired.after.ok, repaired.after.findings
    generator = Generator(folders / peer, threads=1)
    prompt = generator.encode(CHAT)
    expected = generator.generate(prompt, max_new_tokens=COUNT).tokens
    assert tuple(genai_greedy(tmp_path / "out", prompt, COUNT)) == expected

"""Whether the small files of a bundle speak of the graph that lies beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from tokenizers import Tokenizer

from exporter.errors import OnnxGptError, first_line
from exporter.sources._files import JSON_LIMIT, parse_json_object
from onnx_gpt.bundle.decoder_facts import KEYS as CACHES
from onnx_gpt.bundle.decoder_facts import heads_of
from onnx_gpt.certificate.violations import Violation, violation

CONFIG, GENAI, GENERATION, TOKENIZER = (
    "config.json",
    "genai_config.json",
    "generation_config.json",
    "tokenizer.json",
)
KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim", "head_size"),
    "vocab_size": ("vocab_size",),
}
"""How configurations of Hugging Face and of onnxruntime-genai call what a graph tells by itself."""

TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id")


def config_violations(folder: Path, graph: str, model: ir.Model) -> Iterator[Violation]:
    """Sizes that are stated otherwise than the graph has them, and token ids that it does not know."""
    logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
    vocab = logits.shape[-1] if logits is not None and logits.shape is not None else None
    if not isinstance(vocab, int):
        return  # the contract has said so
    sizes = {"vocab_size": vocab, **_attention_sizes(model)}
    for name in (CONFIG, GENAI, GENERATION):
        try:
            tables = list(_tables(folder / name))
        except (OnnxGptError, OSError) as error:
            yield violation("config", name, first_line(error))
            continue
        for table in tables:
            yield from (violation("config", name, f"{what} ({graph})") for what in _wrong(table, sizes))
    yield from _tokenizer(folder, vocab, graph)


def _attention_sizes(model: ir.Model) -> dict[str, int]:
    """What caches and attentions tell; nothing of a graph without a cache."""
    caches = [value for value in model.graph.inputs if CACHES.fullmatch(str(value.name))]
    heads = heads_of(model.graph)
    shape = caches[0].shape if caches else None
    if shape is None or len(shape) != 4 or not heads:
        return {}
    sizes = {"layers": len(caches), "heads": heads[0], "kv_heads": shape[1], "head_dim": shape[3]}
    return {name: size for name, size in sizes.items() if isinstance(size, int)}


def _tables(path: Path) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of a configuration file that may hold sizes; none where there is no file."""
    if path.is_symlink() or not path.is_file():
        return
    with path.open("rb") as file:
        document = parse_json_object(file.read(JSON_LIMIT), path.name, "bundle-invalid")
    yield document
    model = document.get("model")
    if path.name == GENAI and isinstance(model, dict):
        yield model
        if isinstance(model.get("decoder"), dict):
            yield model["decoder"]


def _wrong(table: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[str]:
    for size, names in KEYS.items():
        for key in names:
            stated = table.get(key)
            if stated is not None and size in sizes and stated != sizes[size]:
                yield f"{key} is {stated!r:.40}, the graph has {sizes[size]}"
    for key in TOKENS:
        ids = table.get(key)
        for token in ids if isinstance(ids, list) else [] if ids is None else [ids]:
            if not isinstance(token, int) or not 0 <= token < sizes["vocab_size"]:
                yield f"{key} is {token!r:.40}, the graph has {sizes['vocab_size']} tokens"


def _tokenizer(folder: Path, vocab: int, graph: str) -> Iterator[Violation]:
    path = folder / TOKENIZER
    if path.is_symlink() or not path.is_file():
        return
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a malformed file
        yield violation("config", TOKENIZER, f"it is no tokenizer: {first_line(error):.200}")
        return
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab:
        yield violation("config", TOKENIZER, f"it has token {largest}, {graph} has {vocab} tokens")

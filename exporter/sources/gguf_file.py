"""A GGUF file of llama.cpp: configuration, weights with their own quantization, and tokenizer in one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.checkpoint import Checkpoint
from exporter.errors import OnnxGptError, rejected, unsupported
from exporter.families import describe
from exporter.gguf_format.names import config_of, weights_of
from exporter.gguf_format.reader import MAGIC, Header, read_header
from exporter.gguf_format.tokenizer import files_of, special_ids
from exporter.gguf_format.vocabulary import vocabulary_of


def claims(uri: str) -> bool:
    path = Path(uri)
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(len(MAGIC)) == MAGIC
        return magic or path.suffix.lower() == ".gguf"
    scheme = re.match(r"[a-z]{2,}:", uri)  # hf:org/name.gguf names a repository
    return path.suffix.lower() == ".gguf" and scheme is None and not path.exists()


def load(uri: str) -> Checkpoint:
    """Read the header. Weights are read when they are asked for.

    Raises:
        OnnxGptError: ``source-missing``, ``gguf-invalid``, ``tokenizer-too-large`` (exit 4); ``gguf-version``,
            ``gguf-type-unsupported``, ``gguf-key-unsupported``, ``gguf-rope-unsupported``,
            ``gguf-tokenizer-unsupported``, ``gguf-split``, ``architecture-unknown`` (exit 3).
    """
    path = Path(uri)
    if not path.is_file():
        raise rejected("source-missing", f"{uri!r} is not a file", "check the path")
    header = read_header(path)
    kind = header.text("general.type", "model")
    if kind != "model":
        raise unsupported(
            "gguf-key-unsupported",
            f"{path.name} is no model by itself (general.type = {kind!r:.80})",
            "give the model that it belongs to; adapters are merged with llama-export-lora",
        )
    if header.integer("split.count", 1) > 1:
        raise unsupported(
            "gguf-split",
            f"{path.name} is one part of {header.integer('split.count')}",
            "join the parts with llama-gguf-split --merge",
        )
    config = config_of(header)
    _require_valid(config, header)
    weights = weights_of(header, config)
    vocabulary = vocabulary_of(header, config["vocab_size"])
    if vocabulary is None:
        return Checkpoint(uri, config | special_ids({}), weights)
    context_length = header.integer(f"{header.text('general.architecture')}.context_length")
    files = files_of(header, vocabulary, context_length)
    return Checkpoint(uri, config | special_ids(vocabulary.ids), weights, files)


def _require_valid(config: Mapping[str, Any], header: Header) -> None:
    """Hold what the keys say against the family's checks, which would blame config.json; there is none here."""
    try:
        describe(Checkpoint(str(header.path), config, {}))
    except OnnxGptError as error:
        if error.code != "config-invalid":
            return  # whoever asks for the description is told
        raise rejected(
            "gguf-invalid",
            f"{header.path.name}: its keys make no {header.text('general.architecture')} model",
            "get the file again, or convert the model again",
            tuple(_in_keys_of(header, config, finding) for finding in error.details),
        ) from error


def _in_keys_of(header: Header, config: Mapping[str, Any], finding: str) -> str:
    """A finding, ``intermediate_size: …``, with the file's own key where one alone holds the value."""
    name, _, rest = finding.partition(": ")
    prefix, value = f"{header.text('general.architecture')}.", config.get(name)
    keys = [
        key
        for key, held in header.metadata.items()
        if key.startswith(prefix) and type(held) is type(value) and held == value
    ]
    return f"{keys[0]} = {value}: {rest}" if len(keys) == 1 else finding

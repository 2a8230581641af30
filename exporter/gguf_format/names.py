"""A GGUF header in Hugging Face terms: ``config.json`` and weights under their Hugging Face names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import gguf

from exporter.errors import unsupported
from exporter.gguf_format.architectures import ARCHITECTURES, OTHERWISE, Architecture
from exporter.gguf_format.blocks import weight_of
from exporter.gguf_format.keys import Keys
from exporter.gguf_format.reader import Header
from exporter.gguf_format.rotary import FREQUENCY_FACTORS
from exporter.weight_expressions import Rows
from exporter.weights import Weight

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
QKV, Q_K_V = "blk.{}.attn_qkv", ("blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v")


def architecture_of(header: Header) -> Architecture:
    """The entry that ``general.architecture`` names.

    Raises:
        OnnxGptError: ``architecture-unknown`` (exit 3).
    """
    name = header.text("general.architecture")
    if name not in ARCHITECTURES:
        raise unsupported(
            "architecture-unknown",
            f"{header.path.name}: the GGUF architecture {name[:80]!r} is not implemented",
            f"use one of {', '.join(ARCHITECTURES)}",
        )
    if name in OTHERWISE:
        holds, other = OTHERWISE[name]
        if holds(header):
            return other
    return ARCHITECTURES[name]


def config_of(header: Header) -> dict[str, Any]:
    """The keys of ``config.json``, without those of the tokenizer.

    Raises:
        OnnxGptError: ``gguf-key-unsupported`` (exit 3) naming all keys of the architecture that are not
            understood.
    """
    architecture = architecture_of(header)
    keys = Keys(header)
    config = architecture.config(keys)
    if EMBEDDING not in header.tensors:
        raise header.invalid(f"tensor {EMBEDDING!r} is missing")
    rows = header.tensors[EMBEDDING].shape[0]
    if keys.integer("vocab_size", rows) != rows:
        raise header.invalid(
            f"vocab_size is {keys.integer('vocab_size')}, but the embedding table has {rows} rows"
        )
    if unread := keys.unread():
        raise keys.unsupported(unread)
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "vocab_size": rows,
        **config,
        "tie_word_embeddings": OUTPUT not in header.tensors,
    }


def weights_of(header: Header, config: Mapping[str, Any]) -> dict[str, Weight]:
    """The tensors under their Hugging Face names, with Hugging Face's values. Reads nothing.

    A tensor that the architecture does not have keeps its own name, so that it is listed as unused with the
    others.
    """
    architecture = architecture_of(header)
    names = _names(header.text("general.architecture"), architecture)
    weights: dict[str, Weight] = {}
    for entry in header.tensors.values():
        if entry.name == FREQUENCY_FACTORS:
            continue  # it is in the configuration, as rope_scaling
        stem, _, suffix = entry.name.rpartition(".")
        layer = re.match(r"blk\.(\d{1,6})\.", stem)
        generic = stem if layer is None else f"blk.{{}}.{stem[layer.end() :]}"
        for part, weight in _parted(generic, weight_of(header.path, entry), names, config):
            full_name = entry.name
            if part in names:
                name = names[part]
                undo = architecture.undo.get(name, architecture.undo.get(f"{name}.{suffix}"))
                if undo is not None:
                    weight = undo(weight, config)
                full_name = f"{name.format(layer[1] if layer else '')}.{suffix}"
            if full_name in weights:
                raise header.invalid(f"tensor {full_name!r} is there under both its names")
            weights[full_name] = weight
    return weights | dict(architecture.from_keys(header, config))


def _parted(
    generic: str, weight: Weight, names: Mapping[str, str], config: Mapping[str, Any]
) -> list[tuple[str, Weight]]:
    """A tensor, or the three that Hugging Face makes of the q, k and v that a file has in one."""
    if generic != QKV or QKV in names or not all(part in names for part in Q_K_V):
        return [(generic, weight)]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size, rest = divmod(weight.shape[0], heads + 2 * kv_heads)
    if rest:
        return [(generic, weight)]
    ends = itertools.accumulate((0, heads * size, kv_heads * size, kv_heads * size))
    return [(part, Rows(weight, (rows,))) for part, rows in zip(Q_K_V, itertools.pairwise(ends), strict=True)]


def _names(gguf_name: str, architecture: Architecture) -> dict[str, str]:
    """Hugging Face tensor names by llama.cpp's, ``{}`` for the layer; the gguf library's table, inverted."""
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == gguf_name)
    table = gguf.get_tensor_name_map(arch, 1)
    names = {}
    for name in architecture.tensors:
        listed = name.format(0)
        if listed not in table:
            listed = listed.removeprefix("transformer.")  # which the converter takes off BLOOM's
        names[table[listed].replace("blk.0.", "blk.{}.")] = name
    return names

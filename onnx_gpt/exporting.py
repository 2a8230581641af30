"""From an opened source to the graph that passes start from, and what is known of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.build import build
from exporter.checkpoint import Checkpoint, ModuleSource
from exporter.decoder import Decoder
from exporter.errors import rejected, unsupported
from exporter.families import describe, family_of
from exporter.match import match_weights

MODULE_PIPELINE = "fold, clean"
"""Passes for a graph that torch exported: what holds for any graph."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """A graph and what is known of it. ``decoder`` is None for a user's own module."""

    model: ir.Model
    decoder: Decoder | None
    family: str
    parameters: int
    vocab_size: int
    module: Any = None


def export(opened: Checkpoint | ModuleSource, context_length: int | None = None) -> Exported:
    """The canonical graph, its weights unread; a module's graph as torch gives it."""
    if isinstance(opened, ModuleSource):
        return _export_module(opened)
    decoder = describe(opened)
    family = family_of(opened)
    weights = match_weights(decoder, opened.weights, getattr(family, "IGNORED", ()))
    _require_tokenizer_fits(opened, decoder)
    if context_length is not None and not 0 < context_length <= decoder.context_length:
        raise rejected(
            "context-too-long",
            f"the model was trained for {decoder.context_length} tokens, {context_length} are asked for",
            "lower --context-length",
        )
    model = build(decoder, weights, context_length=context_length)
    stored = {part.name: part.stored_shape for _, part in decoder.parts()}
    parameters = sum(int(np.prod(shape, dtype=np.int64)) for shape in stored.values())
    return Exported(model, decoder, decoder.family, parameters, decoder.vocab_size)


def _export_module(opened: ModuleSource) -> Exported:
    from exporter.sources import module as module_source

    module = module_source.instantiate(opened)
    model = module_source.export(module)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    logits = model.graph.outputs[0].shape
    vocab = logits[-1] if logits is not None else None
    if not isinstance(vocab, int):
        raise unsupported(
            "module-not-exportable",
            "the module's logits have no fixed last dimension",
            "return [B, S, V] logits",
        )
    return Exported(model, None, "module", parameters, vocab, module)


def opened_config(opened: Checkpoint | ModuleSource) -> dict[str, Any]:
    return dict(opened.config) if isinstance(opened, Checkpoint) else {"architectures": ["module"]}


def _require_tokenizer_fits(checkpoint: Checkpoint, decoder: Decoder) -> None:
    raw = checkpoint.files.get("tokenizer.json")
    if raw is None:
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(raw.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise rejected("tokenizer-invalid", f"tokenizer.json: {error}", "restore the file") from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= decoder.vocab_size:
        raise rejected(
            "tokenizer-too-large",
            f"the tokenizer has token id {largest}, the model has {decoder.vocab_size} rows",
            "use the tokenizer that the model was trained with",
        )

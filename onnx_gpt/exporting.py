"""From an opened source to the graph that passes start from, and what is known of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.data.encoding import ids_of
from exporter import variants
from exporter.build import build
from exporter.checkpoint import Checkpoint, GraphSource, ModuleSource, Opened
from exporter.decoder import Decoder
from exporter.errors import Exit, OnnxGptError, rejected, unsupported
from exporter.families import describe
from exporter.match import matched
from exporter.weights import Weight
from graph_passes import PassReport
from graph_passes.inference import facts
from onnx_gpt.bundle.decoder_facts import DecoderFacts
from onnx_gpt.bundle.reading import CONTEXT_KEYS

CANONICAL_PIPELINE = (
    "inline, fold, shapes, linear, fold, control{context}, canonical, unpack, canonical, fold, cache, roles"
)
"""From a graph that somebody else exported to the canonical one; ``{context}`` is filled in by `canonical_pipeline`."""

CONTRACT = re.compile(r"input_ids|attention_mask|num_logits_to_keep|past_key_values\.\d+\.(key|value)")
"""Inputs of the graph's contract (docs/architecture.md)."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """A graph and what is known of it.

    Attributes:
        decoder: None for a graph that we have not built ourselves.
        context_length: tokens that the model was made for; None where nobody has said it.
        module: the user's ``torch.nn.Module``, where the graph is one's.
    """

    model: ir.Model
    decoder: Decoder | None
    family: str
    parameters: int
    vocab_size: int
    context_length: int | None
    module: Any = None


Transform = Callable[[Decoder, Mapping[str, Weight]], tuple[Decoder, Mapping[str, Weight]]]
"""A change of a decoder and its weights that leaves its function as it is."""


def export(
    opened: Opened, context_length: int | None = None, *, transform: Transform | None = None
) -> Exported:
    """The canonical graph, its weights unread; a foreign graph as it is, in float32.

    Args:
        transform: applied to a checkpoint's decoder before its graph is built; other sources have none.
    """
    if isinstance(opened, ModuleSource):
        return _export_module(opened, context_length)
    if isinstance(opened, GraphSource):
        return _export_graph(opened, context_length)
    decoder, own = matched(opened)
    require_tokenizer_fits(opened.files.get("tokenizer.json"), decoder.vocab_size)
    context = _context_length(decoder.context_length, context_length)
    changed, weights = transform(decoder, own) if transform is not None else (decoder, own)
    model = build(changed, weights, context_length=context_length)
    stored = {part.name: part.stored_shape for _, part in decoder.parts()}
    parameters = sum(int(np.prod(shape, dtype=np.int64)) for shape in stored.values())
    return Exported(model, decoder, decoder.family, parameters, decoder.vocab_size, context)


def pipeline_of(exported: Exported, asked: str | None, lowering: str) -> str:
    """The passes that are asked for, else those of a target's model; a foreign graph is made canonical first."""
    if asked is not None:
        return asked
    if exported.decoder is not None:
        return lowering
    return f"{canonical_pipeline(exported.context_length)}, {lowering}"


def canonical_pipeline(context_length: int | None) -> str:
    """Passes from a graph that somebody else exported to the canonical one, for so many tokens."""
    told = f"{{context_length={context_length}}}" if context_length else ""
    return CANONICAL_PIPELINE.replace("{context}", told)


def require_contract(model: ir.Model, passes: Sequence[PassReport]) -> None:
    """Check that a graph takes what the contract says and nothing else.

    Raises:
        OnnxGptError: ``contract-unmet`` (exit 3), with what the passes could not make canonical.
    """
    strange = [str(value.name) for value in model.graph.inputs if not CONTRACT.fullmatch(str(value.name))]
    if strange or all(value.name != "logits" for value in model.graph.outputs):
        what = f"has inputs {', '.join(strange)}" if strange else "gives no logits"
        raise unsupported(
            "contract-unmet",
            f"after all passes the graph still {what}, which no runtime of a bundle knows",
            "export the model in one of the ways that docs/architecture.md names",
            tuple(f"{entry.name}: {reason}" for entry in passes for reason in entry.refused),
        )


def _export_graph(opened: GraphSource, context_length: int | None) -> Exported:
    model = opened.read()
    stated = next((opened.config[key] for key in CONTEXT_KEYS if key in opened.config), None)
    if stated is not None and not (isinstance(stated, int) and stated > 0):
        raise rejected(
            "config-invalid",
            f"config.json states a context of {stated!r} tokens",
            "write a whole number above 0",
        )
    context = _context_length(stated, context_length)
    vocab = _vocab_size(model)
    require_tokenizer_fits(opened.files.get("tokenizer.json"), vocab)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    parameters = sum(tensor.size for tensor in tensors if tensor is not None)
    return Exported(model, None, str(opened.config.get("model_type", "graph")), parameters, vocab, context)


def _context_length(stated: int | None, asked: int | None) -> int | None:
    context = stated if asked is None else asked
    if context is not None and context < 2:
        raise OnnxGptError(
            "context-too-short",
            f"a context of {context} tokens holds no token and the next",
            "give --context-length 2 or more, where the model was trained for as many",
            exit=Exit.USAGE,
        )
    if asked is not None and asked > (stated or asked):
        raise OnnxGptError(
            "context-too-long",
            f"the model was trained for {stated} tokens, {asked} are asked for",
            "lower --context-length",
            exit=Exit.USAGE,
        )
    return context


def _vocab_size(model: ir.Model) -> int:
    facts.annotate(model)
    logits = logits_of(model.graph)
    sizes = facts.dims(logits)
    if sizes is None or len(sizes) != 3 or not isinstance(sizes[-1], int):
        shape = "of unknown rank" if sizes is None else f"[{', '.join(map(str, sizes))}]"
        raise interface_unknown(f"its output {logits.name!r} is {shape}, not logits [B, S, V]")
    return sizes[-1]


def logits_of(graph: ir.Graph) -> ir.Value:
    """The output that holds the logits: the one called so, or the first.

    Raises:
        OnnxGptError: ``interface-unknown`` (exit 3) for a graph that gives nothing.
    """
    if not graph.outputs:
        raise interface_unknown("it has no output")
    return next((value for value in graph.outputs if value.name == "logits"), graph.outputs[0])


def interface_unknown(what: str) -> OnnxGptError:
    """The refusal of a graph that does not take and give what a decoder does."""
    return unsupported(
        "interface-unknown",
        f"the graph is no decoder: {what}",
        "export the model with input_ids [batch, sequence] and, where it needs them, attention_mask, "
        "position_ids and past keys and values; logits [batch, sequence, vocabulary] and present ones",
    )


def _export_module(opened: ModuleSource, context_length: int | None) -> Exported:
    from exporter.sources import module as module_source

    module = module_source.instantiate(opened)
    model = module_source.export(module)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    logits = model.graph.outputs[0].shape
    vocab = logits[-1] if logits is not None else None
    config = getattr(module, "config", None)  # as models of transformers have one
    stated = next((n for key in CONTEXT_KEYS if type(n := getattr(config, key, None)) is int and n > 0), None)
    context = _context_length(stated, context_length)
    if not isinstance(vocab, int):
        raise unsupported(
            "module-not-exportable",
            "the module's logits have no fixed last dimension",
            "return [B, S, V] logits",
        )
    return Exported(model, None, "module", parameters, vocab, context, module)


def opened_config(opened: Opened, decoder: DecoderFacts | None) -> dict[str, Any]:
    """The bundle's config.json: the source's, or what the graph tells where there is none.

    It states no longer context than the graph's tables hold: a runtime that believed it would run over their end.
    """
    given: dict[str, Any] = {"architectures": ["module"]}
    if not isinstance(opened, ModuleSource):
        given = dict(opened.config)
    if isinstance(opened, Checkpoint) and variants.variant_of(opened.config) is not None:
        plain = dataclasses.replace(opened, config=variants.ordinary_config(opened.config))
        if _heads(plain) == _heads(opened):
            given = dict(plain.config)  # a runtime reads how large caches are, not how wide feed-forwards
    if decoder is not None and decoder.context_length:
        stated = [key for key in CONTEXT_KEYS if key in given]
        for key in stated or ["max_position_embeddings"]:
            given[key] = min(int(given.get(key) or decoder.context_length), decoder.context_length)
    return given


def _heads(checkpoint: Checkpoint) -> list[int]:
    return [layer.attention.kv_heads for layer in describe(checkpoint).layers]


def require_tokenizer_fits(raw: bytes | None, vocab_size: int) -> None:
    """Raise ``tokenizer-too-large`` where a tokenizer.json has tokens beyond the model's, ``tokenizer-invalid``."""
    if raw is None:
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(raw.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise rejected("tokenizer-invalid", f"tokenizer.json: {error}", "restore the file") from error
    around = ids_of(tokenizer, "", special=True, what="an empty text", remedy="restore the file")
    largest = max([*tokenizer.get_vocab(with_added_tokens=True).values(), *around], default=-1)
    if largest >= vocab_size:
        raise rejected(
            "tokenizer-too-large",
            f"the tokenizer has token id {largest}, the model has {vocab_size} rows",
            "use the tokenizer that the model was trained with",
        )

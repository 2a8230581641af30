"""The few numbers of a decoder that a runtime's configuration repeats, told by the finished graph itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import onnx_ir as ir

from exporter.emitter import ROLE
from graph_passes.matching import placed_table

KEYS = re.compile(r"past_key_values\.(\d+)\.key")
HEADS = {"GroupQueryAttention": "num_heads", "Attention": "q_num_heads"}
"""Attribute in which an attention operator has its number of query heads."""

TABLES = {"GroupQueryAttention": 7, "RotaryEmbedding": 1}
"""Input in which an operator has its table of cosines ``[context, D/2]``."""


@dataclasses.dataclass(frozen=True)
class DecoderFacts:
    """Sizes of a decoder with a KV cache.

    Attributes:
        context_length: tokens that it can hold; None where neither anybody nor a table of positions says it.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    context_length: int | None


def decoder_facts(model: ir.Model, vocab_size: int, stated: int | None) -> DecoderFacts | None:
    """Facts of a graph that keeps the contract; None where it has no cache, or attention is none that we know.

    Args:
        stated: the context length that the source or the user states, if any.
    """
    caches = [value for value in model.graph.inputs if KEYS.fullmatch(str(value.name))]
    heads = heads_of(model.graph)
    if not caches or not heads or caches[0].shape is None:
        return None
    _, kv_heads, _, head_dim = caches[0].shape
    hidden_size = _hidden_size(model.graph)
    if not isinstance(kv_heads, int) or not isinstance(head_dim, int) or hidden_size is None:
        return None
    context = stated or min(_table_rows(model.graph), default=None)
    return DecoderFacts(len(caches), heads[0], kv_heads, head_dim, hidden_size, vocab_size, context)


def heads_of(graph: ir.Graph) -> list[int]:
    """Query heads of each attention that states them."""
    attentions = [node for node in graph if HEADS.get(node.op_type, "") in node.attributes]
    stated = [node.attributes[HEADS[node.op_type]].value for node in attentions]
    return [heads for heads in stated if isinstance(heads, int)]  # anybody may have written the file


def _table_rows(graph: ir.Graph) -> Iterator[int]:
    """Rows of the tables that are looked up by position."""
    for node in graph:
        slot = TABLES.get(node.op_type)
        if node.metadata_props.get(ROLE) == "positions" or placed_table(node) is not None:
            slot = 0
        table = node.inputs[slot] if slot is not None and slot < len(node.inputs) else None
        if table is not None and table.is_initializer() and table.shape is not None:
            rows = table.shape[0]
            if isinstance(rows, int):
                yield rows


def _hidden_size(graph: ir.Graph) -> int | None:
    """E of the first lookup by tokens ``[B, S] → [B, S, E]``."""
    tokens = next((value for value in graph.inputs if value.name == "input_ids"), None)
    for node, _ in tokens.uses() if tokens is not None else ():
        shape = node.outputs[0].shape
        if node.op_type in ("Gather", "GatherBlockQuantized") and shape is not None and len(shape) == 3:
            return shape[2] if isinstance(shape[2], int) else None
    return None

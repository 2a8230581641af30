"""Sizes of a decoder as its graph has them, whatever its documents say."""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.control.caches import Cache, caches_of
from graph_passes.control.interface import Interface, interface_of
from onnx_gpt.bundle.decoder_facts import heads_of
from onnx_gpt.linting.graph_file import GraphFile


def sizes_of(graph: GraphFile) -> dict[str, int]:
    """Sizes by the keys of `onnx_gpt.linting.subject.ALIASES`; those that the graph leaves open are not there."""
    found: dict[str, int | None] = {}
    pasts = graph.pasts
    if pasts:
        found["layers"] = len({layer for layer, _ in pasts})
        shape = next(iter(pasts.values())).shape
        if shape is not None and len(shape) == 4:
            found |= {"kv_heads": _number(shape, 1), "head_dim": _number(shape, 3)}
    heads = set(heads_of(graph.graph))
    found["heads"] = heads.pop() if len(heads) == 1 else None
    found["hidden_size"] = _hidden_size(graph)
    found["vocab_size"] = vocab_size(graph)
    return {which: size for which, size in found.items() if isinstance(size, int)}


def vocab_size(graph: GraphFile) -> int | None:
    """V of the logits, where the graph states it or the product that makes them does."""
    logits = graph.output("logits")
    if logits is None:
        return None
    stated = _number(logits.shape, -1) if logits.shape else None
    return stated if stated is not None else _width(logits)


def told_apart(graph: GraphFile) -> tuple[Interface, tuple[Cache, ...]] | None:
    """Which input and output is which, by where they flow; None where that cannot be told."""
    interface = interface_of(graph.graph)
    if isinstance(interface, str):
        return None
    caches = caches_of(graph.graph, interface)
    return None if isinstance(caches, str) else (interface, tuple(caches))


def _hidden_size(graph: GraphFile) -> int | None:
    """E of the first lookup by tokens ``[B, S] → [B, S, E]``."""
    tokens = graph.input("input_ids")
    for node, index in tokens.uses() if tokens is not None else ():
        table = node.inputs[0]
        if node.op_type == "Gather" and index == 1 and table is not None and table.shape:
            return _number(table.shape, -1)
        if node.op_type in ("Gather", "GatherBlockQuantized") and len(node.outputs[0].shape or ()) == 3:
            return _number(node.outputs[0].shape, 2)
    return None


def _width(logits: ir.Value) -> int | None:
    node = logits.producer()
    if node is not None and node.op_type == "MatMulNBits" and "N" in node.attributes:
        return node.attributes["N"].as_int()
    weight = node.inputs[1] if node is not None and node.op_type == "MatMul" and node.domain == "" else None
    return _number(weight.shape, -1) if weight is not None and weight.shape else None


def _number(shape: ir.Shape | None, axis: int) -> int | None:
    dim = shape[axis] if shape is not None else None
    return dim if isinstance(dim, int) else None

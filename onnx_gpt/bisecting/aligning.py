"""Points at which two graphs of one model can be compared, whatever each is written in: by roles of nodes.

In order of the data: the embedding; of each layer its first norm, the heads of its attention, the stream after them,
its second norm, what its down projection reads, and the stream after that; the last norm; the logits. A layer without
such norms has the others. A sum inside a fused norm is a point where the norm gives it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from exporter.emitter import ROLE
from exporter.errors import unsupported
from graph_passes.matching import MICROSOFT

NORMS = {
    ("", "RMSNormalization"),
    ("", "LayerNormalization"),
    (MICROSOFT, "SkipSimplifiedLayerNormalization"),
    (MICROSOFT, "SkipLayerNormalization"),
}
LAYER = re.compile(r"layers\.(\d+)\.(.+)")
KINDS = ("attention_norm", "heads", "middle", "ffn_norm", "hidden", "out")
"""Points of a layer; ``middle`` and ``out`` are of the residual stream."""
READERS = {"attention.q": "in", "attention.qkv": "in", "ffn.up": "middle", "ffn.gate_up": "middle"}
"""Products that read the residual stream themselves where no norm stands before them (OLMo 2)."""
STREAM = ("middle", "out")
"""Where what a block adds has been added."""


def points(model: ir.Model) -> dict[str, ir.Value]:
    """Values by point, ``embedding``, ``layers.3.heads``, ``norm``, ``logits``, in the order of the data.

    Raises:
        OnnxGptError: ``roles-missing`` (exit 3) for a graph whose nodes carry none.
    """
    found = dict(_found(model))
    if not any(LAYER.match(name) for name in found):
        raise unsupported(
            "roles-missing",
            "the graph's nodes carry no roles, by which points of two graphs are matched",
            "give the source that it was made from, or a bundle that onnx-gpt made",
        )
    return {name: found[name] for name in sorted(found, key=_order)}


def aligned(a: ir.Model, b: ir.Model) -> dict[str, tuple[ir.Value, ir.Value]]:
    """Points that both graphs have, in the order of the second."""
    ours, theirs = points(a), points(b)
    return {name: (ours[name], value) for name, value in theirs.items() if name in ours}


def layer_of(place: str) -> int | None:
    """The layer in ``layers.3.heads``; None outside of layers."""
    match = LAYER.match(place)
    return int(match[1]) if match else None


def _order(point: str) -> tuple[float, int]:
    """The embedding, layers by number, then what follows them."""
    parts = point.split(".")
    if parts[0] == "layers":
        return int(parts[1]), KINDS.index(parts[2])
    return (-1.0, 0) if point == "embedding" else (float("inf"), ("norm", "logits").index(point))


def _found(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    streams: dict[str, ir.Value] = {}
    for node in model.graph:
        role = node.metadata_props.get(ROLE, "")
        match = LAYER.match(role)
        place = match[2] if match else role
        at = f"layers.{match[1]}." if match else ""
        if (node.domain, node.op_type) in NORMS and place in ("attention_norm", "ffn_norm", "norm"):
            yield at + place, node.outputs[0]
            if (read := _stream(node)) is not None:
                streams[at + {"attention_norm": "in", "ffn_norm": "middle"}.get(place, "")] = read
        elif place in READERS and (read := _sum_read(node)) is not None:
            streams.setdefault(at + READERS[place], read)
        elif place == "attention.heads" and node.op_type != "Reshape":
            yield f"{at}heads", node.outputs[0]
        elif place == "ffn.down" and node.inputs and (read := node.inputs[0]) is not None:
            read = _unrounded(read)
            if read.producer() is not None:
                yield f"{at}hidden", read
        elif place == "embedding" and node.op_type in ("Gather", "GatherBlockQuantized"):
            yield "embedding", _flat(node.outputs[0])
    yield from _placed(streams)
    logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
    if logits is not None:
        yield "logits", logits


def _placed(streams: Mapping[str, ir.Value]) -> Iterator[tuple[str, ir.Value]]:
    """What enters a layer is what the one before gives out, and is called so; the last is read by the last norm."""
    entering = {int(name.split(".")[1]): v for name, v in streams.items() if name.endswith(".in")}
    for name, value in streams.items():
        if name.endswith(".middle") and _uncut(value) is not entering.get(int(name.split(".")[1])):
            yield name, value  # of parallel branches both norms read the same
    for layer, value in entering.items():
        if layer > 0:
            yield f"layers.{layer - 1}.out", value
    if "" in streams and entering:
        yield f"layers.{max(entering)}.out", streams[""]


def _stream(norm: ir.Node) -> ir.Value | None:
    """The residual stream that a norm reads: the sum that it makes itself, where it does and gives it out."""
    if norm.op_type.startswith("Skip"):
        summed = norm.outputs[3] if len(norm.outputs) > 3 else None
        return summed if summed is not None and summed.name and summed.uses() else None
    read = norm.inputs[0]
    return read if read is not None and read.producer() is not None else None


def _sum_read(node: ir.Node) -> ir.Value | None:
    """The sum that a product reads; None where it reads anything else."""
    read = _unrounded(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    made = read.producer() if read is not None else None
    return read if made is not None and made.op_type == "Add" else None


def _uncut(value: ir.Value) -> ir.Value | None:
    """Before the slice that keeps the last tokens."""
    node = value.producer()
    return node.inputs[0] if node is not None and node.op_type == "Slice" else value


def _unrounded(value: ir.Value) -> ir.Value:
    """Before a quantize-dequantize pair."""
    for op_type in ("DequantizeLinear", "QuantizeLinear"):
        node = value.producer()
        if node is None or node.op_type != op_type or node.inputs[0] is None:
            return value
        value = node.inputs[0]
    return value


def _flat(rows: ir.Value) -> ir.Value:
    """Rows that are looked up in blocks, once they are whole: ``[B, S, blocks, block]`` flattened."""
    node = rows.producer()
    while node is not None and node.op_type in ("GatherBlockQuantized", "Add"):
        users = [use.node for use in rows.uses()]
        if len(users) != 1 or users[0].op_type not in ("Add", "Reshape"):
            break
        node = users[0]
        rows = node.outputs[0]
    return rows

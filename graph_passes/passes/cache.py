"""Attention(q, k, v; causal) ⇒ Attention(q, k, v; causal; past) → present: a decoder without a cache gets one.

Where tokens meet in causal attention alone, what a token computes does not depend on later ones: keys and values of a
prefix stay as they were, and a call needs only those of its new tokens. So the cached decoder gives on a prefix and
then token by token what the decoder gave on the whole (Vaswani et al., arXiv 1706.03762; Shazeer, arXiv 1911.02150).

Needs the canonical graph: the standard Attention operator with canonical masks or ``is_causal``, and positions counted
from ``attention_mask``, which the `control` pass sees to. Either every attention gets a cache or none does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from exporter.control import Control
from exporter.emitter import Emitter, typed
from graph_passes.control.edges import is_canonical, rewrite_edges
from graph_passes.control.interface import Interface, interface_of
from graph_passes.control.island import island_of
from graph_passes.control.rewrite import splice
from graph_passes.control.tokens import tokens_meet_outside_attention
from graph_passes.inference import facts
from graph_passes.inference.dims import SEQUENCE, symbol
from graph_passes.lowering.causal import mask_structure
from graph_passes.matching import attribute, make, replace, role_of
from graph_passes.outcome import Outcome
from graph_passes.proof.subgraph import NodeSnapshot

KIND = "fp"
INTERFACE = True

LENGTH = symbol(SEQUENCE)

OPSET = 23
"""The first one that has Attention."""


@dataclasses.dataclass(frozen=True)
class Target:
    """An attention that gets a cache.

    Attributes:
        heads, size: KV heads K and their channels D.
        has_mask: it has a canonical mask; without one it is causal by its attribute.
    """

    node: ir.Node
    heads: int
    size: int
    has_mask: bool


def apply(model: ir.Model) -> Outcome:
    graph = model.graph
    attentions = [node for node in graph if node.op_type == "Attention" and node.domain == ""]
    interface = interface_of(graph)
    if isinstance(interface, str):
        return Outcome(0, (f"graph: {interface}",))
    if interface.caches:
        return Outcome(0)
    if not attentions:
        return Outcome(0, ("graph: it has no standard Attention, which the `canonical` pass makes",))
    _measure_tokens(interface)
    edges = rewrite_edges(model, interface)
    refused = [*edges.outcome.refused, *_obstacles(graph, interface)]
    targets = []
    for node in attentions:
        target = _target(node)
        if isinstance(target, str):
            refused.append(f"{role_of(node)}: {target}")
        else:
            targets.append(target)
    if refused:
        return Outcome(0, tuple(refused))
    _add_caches(model, interface, targets)
    facts.annotate(model)
    return Outcome(len(targets))


def _measure_tokens(interface: Interface) -> None:
    """Take lengths from the tokens instead of the mask. Without a past both are the same, and folding may have taken
    one for the other; masks and positions are told again and spelled anew afterwards."""
    mask = interface.attention_mask
    for node, index in () if mask is None else tuple(mask.uses()):
        if node.op_type == "Shape":
            node.replace_input_with(index, interface.input_ids)


def _obstacles(graph: ir.Graph, interface: Interface) -> list[str]:
    """Why a call with a past would not do what the whole call does."""
    found = []
    if graph.opset_imports[""] < OPSET:
        found.append(
            f"graph: its opset {graph.opset_imports['']} is below {OPSET}, which has Attention with a cache"
        )
    if interface.attention_mask is None:
        found.append("graph: it has no attention_mask, which the `control` pass adds")
    for value in (interface.position_ids, interface.cache_position):
        if value is not None:
            found.append(f"graph: it is told positions by {value.name}, which the `control` pass takes away")
    for edge in island_of(graph, interface).edges:
        if not is_canonical(edge.value):
            node = edge.uses[0].node
            found.append(
                f"{role_of(node)}: {edge.value.name} depends on the length of the call, and is not canonical"
            )
    if interface.attention_mask is not None:
        found += _readers(graph, interface, interface.attention_mask)
    meeting = tokens_meet_outside_attention(graph, interface.input_ids)
    return found if meeting is None else [*found, f"{meeting}: no cache of keys and values holds that"]


def _readers(graph: ir.Graph, interface: Interface, attention_mask: ir.Value) -> list[str]:
    """Nodes of the data that take lengths or places from the mask: with a past it is longer than the tokens."""
    island = island_of(graph, interface)
    masked = {attention_mask}
    found = []
    for node in graph:
        read = [value for value in NodeSnapshot.of(node).reads() if value in masked]
        if read and node.outputs[0] in island.values:
            masked.update(node.outputs)
            continue
        odd = [value for value in read if not is_canonical(value)]
        found += [
            f"{role_of(node)}: {value.name} depends on attention_mask, and is not canonical" for value in odd
        ]
    return found


def _target(node: ir.Node) -> Target | str:
    mask, keys = _input(node, 3), _input(node, 1)
    if len(node.outputs) > 1 and any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "its keys or scores are used"
    if _input(node, 6) is not None:
        return "it is told the length of its keys"
    if mask is None and not attribute(node, "is_causal", 0):
        return "it lets a token see later ones"
    if mask is not None:
        seen = mask_structure(mask)
        if isinstance(seen, str):
            return seen
    for value in node.inputs[:3]:
        shape = facts.dims(value) if value is not None else None
        if shape is None or len(shape) not in (3, 4) or shape[-2] != LENGTH:
            return "it attends with fewer tokens than the call has"
    sizes = facts.dims(keys) if keys is not None else None
    heads = attribute(node, "kv_num_heads", 0) or (
        sizes[1] if sizes is not None and len(sizes) == 4 else None
    )
    width = sizes[-1] if sizes is not None else None
    if not isinstance(heads, int) or not isinstance(width, int) or sizes is None:
        return "the number of its heads, or their size, is not known"
    return Target(node, heads, width if len(sizes) == 4 else width // heads, mask is not None)


def _add_caches(model: ir.Model, interface: Interface, targets: list[Target]) -> None:
    graph, attention_mask = model.graph, interface.attention_mask
    assert attention_mask is not None
    emit = Emitter({})
    control = Control(emit, interface.input_ids, attention_mask)
    masks = [None if target.has_mask else control.mask(None) for target in targets]
    splice(graph, emit, before=graph[0])
    for i, (target, mask) in enumerate(zip(targets, masks, strict=True)):
        _add_cache(graph, i, target, mask or _input(target.node, 3))
    attention_mask.shape = ir.Shape(["batch_size", "total_sequence_length"])


def _add_cache(graph: ir.Graph, i: int, target: Target, mask: ir.Value | None) -> None:
    node, (query, key, value) = target.node, target.node.inputs[:3]
    dtype = key.dtype if key is not None and key.dtype is not None else ir.DataType.FLOAT

    def shape(length: str) -> list[int | str]:
        return ["batch_size", target.heads, length, target.size]

    past = [
        typed(f"past_key_values.{i}.{which}", dtype, shape("past_sequence_length"))
        for which in ("key", "value")
    ]
    new = make(
        "Attention",
        [query, key, value, mask, *past],
        str(node.name),
        outputs=3,
        role=role_of(node),
        **_attributes(node),
    )
    graph.inputs.extend(past)
    replace(node, [node], [new], [(node.outputs[0], new.outputs[0])])
    for which, present in zip(("key", "value"), new.outputs[1:], strict=True):
        present.name = f"present.{i}.{which}"
        present.type, present.shape = ir.TensorType(dtype), ir.Shape(shape("total_sequence_length"))
        graph.outputs.append(present)


def _attributes(node: ir.Node) -> Mapping[str, Any]:
    return {name: attr.value for name, attr in node.attributes.items() if name != "is_causal"}


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None

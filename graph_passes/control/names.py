"""Gives a graph the inputs and outputs of the contract (docs/architecture.md): names, types, shapes, order."""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence, Sequence

import onnx_ir as ir

from exporter.control import END, KEEP, start_of_logits
from exporter.emitter import Emitter
from graph_passes.control.caches import Cache, caches_of
from graph_passes.control.interface import Interface
from graph_passes.control.rewrite import splice
from graph_passes.inference import dims, facts
from graph_passes.matching import make
from graph_passes.outcome import Outcome

BY_ELEMENT = frozenset(["Add", "Cast", "Div", "Identity", "Mul", "Tanh"])
"""What may lie between the head's product and the logits."""


def adopt_contract(model: ir.Model, interface: Interface, attention_mask: ir.Value) -> Outcome:
    """Rename, retype and reorder a graph's inputs and outputs, and let the caller choose how many logits to keep."""
    graph = model.graph
    refused = [*_drop_positions(graph, interface)]
    caches = caches_of(graph, interface)
    if isinstance(caches, str):
        refused.append(f"graph: {caches}")
        caches = ()
    presents = {cache.present for cache in caches}
    logits = _logits(graph, presents)
    if isinstance(logits, str):
        return Outcome(0, (*refused, f"graph: {logits}"))
    before = [(value.name, str(value.shape)) for value in (*graph.inputs, *graph.outputs)]
    _adopt_tokens(graph, interface.input_ids)
    if attention_mask not in graph.inputs:
        attention_mask.type = ir.TensorType(ir.DataType.INT64)
        graph.inputs.append(attention_mask)
    attention_mask.shape = ir.Shape(["batch_size", "total_sequence_length"])
    if all(value.name != KEEP for value in graph.inputs):
        kept = _choose_logits(graph, logits)
        if isinstance(kept, str):
            refused.append(f"{logits.name}: {kept}")
        else:
            logits = kept
            logits.shape = ir.Shape(["batch_size", "kept", *list(logits.shape or ())[2:]])
    keep = [value for value in graph.inputs if value.name == KEEP]
    axis = interface.past_axis
    caches = [_adopt_layout(graph, cache, axis) for cache in caches]
    _rename(graph, interface.input_ids, attention_mask, logits, caches)
    first = [interface.input_ids, attention_mask, *keep, *(cache.past for cache in caches)]
    _reorder(graph.inputs, first)
    _reorder(graph.outputs, [logits, *(cache.present for cache in caches)])
    facts.annotate(model)
    after = [(value.name, str(value.shape)) for value in (*graph.inputs, *graph.outputs)]
    return Outcome(int(before != after), tuple(refused))


def _drop_positions(graph: ir.Graph, interface: Interface) -> list[str]:
    """Remove inputs of positions that nothing reads any more; what reads their shape alone reads the tokens'."""
    refused = []
    for value in (interface.position_ids, interface.cache_position):
        if value is None:
            continue
        if value is interface.position_ids:
            for node, index in tuple(value.uses()):
                if node.op_type == "Shape":
                    node.replace_input_with(index, interface.input_ids)
        users = [node for node, _ in value.uses()]
        if users:
            refused.append(
                f"{value.name}: it stays an input: {users[0].name} reads it in a way that is not understood"
            )
        else:
            graph.inputs.remove(value)
    return refused


def _logits(graph: ir.Graph, presents: set[ir.Value]) -> ir.Value | str:
    found = [value for value in graph.outputs if value not in presents and len(facts.dims(value) or ()) == 3]
    named = [value for value in found if value.name == "logits"]
    if len(named or found) != 1:
        names = ", ".join(str(value.name) for value in graph.outputs if value not in presents)
        return f"none of its outputs, or more than one, is logits [batch, sequence, vocabulary]: {names}"
    return (named or found)[0]


def _adopt_tokens(graph: ir.Graph, tokens: ir.Value) -> None:
    """int64 ``[batch_size, sequence_length]``; a graph that reads another type reads a cast."""
    dtype = tokens.dtype
    if dtype is not None and dtype != ir.DataType.INT64:
        cast = make("Cast", [tokens], "input_ids.original", to=dtype)
        for node, index in tuple(tokens.uses()):
            if node is not cast and node.op_type != "Shape":
                node.replace_input_with(index, cast.outputs[0])
        graph.insert_before(graph[0], cast)
        tokens.type = ir.TensorType(ir.DataType.INT64)
    tokens.shape = ir.Shape(["batch_size", "sequence_length"])


def _choose_logits(graph: ir.Graph, logits: ir.Value) -> ir.Value | str:
    """Slice what the head reads to the last tokens, as many as ``num_logits_to_keep`` says. Gives the new logits, or
    why there are none."""
    sizes = facts.dims(logits)
    if sizes is None or sizes[1] != dims.symbol(dims.SEQUENCE):
        return f"it holds logits of {sizes[1] if sizes else 'an unknown number of'} tokens, not of all"
    head = _head(logits)
    source = head.inputs[0] if head is not None else logits
    emit = Emitter({})
    last = [source, start_of_logits(emit), emit.ints("int64_max", [END]), emit.ints("axis_1", [1])]
    kept = emit.op("Slice", last, name="logits.keep")
    graph.inputs.extend(emit.inputs)
    if head is not None:
        splice(graph, emit, before=head)
        head.replace_input_with(0, kept)
        return logits
    splice(graph, emit, before=None)
    kept.type, kept.shape = logits.type, logits.shape
    _replace_output(graph, logits, kept)
    return kept


def _head(logits: ir.Value) -> ir.Node | None:
    """The product that makes the logits, where nothing but work on each number lies between."""
    value = logits
    while (node := value.producer()) is not None:
        sizes = [len(facts.dims(operand) or ()) for operand in node.inputs if operand is not None]
        if node.op_type == "MatMul" and node.domain == "" and sizes == [3, 2]:
            return node
        if node.op_type not in BY_ELEMENT or sorted(sizes)[:-1] not in ([], [0], [1]) or max(sizes) != 3:
            return None
        value = node.inputs[sizes.index(3)]  # type: ignore[assignment]
        if len(value.uses()) != 1 or value.is_graph_output():
            return None
    return None


def _adopt_layout(graph: ir.Graph, cache: Cache, axis: int) -> Cache:
    """``[B, K, P, D]`` for a cache that lies otherwise: transposed as it comes in and as it goes out."""
    past, present = cache.past, cache.present
    sizes = [_told(present, i) or size for i, size in enumerate(past.shape or ())]
    if axis == 1:
        sizes[1], sizes[2] = sizes[2], sizes[1]
        inward = make("Transpose", [past], f"{past.name}.original", perm=[0, 2, 1, 3])
        ir.convenience.replace_all_uses_with(past, inward.outputs[0])
        inward.replace_input_with(0, past)
        graph.insert_before(graph[0], inward)
        outward = make("Transpose", [present], f"{present.name}.turned", perm=[0, 2, 1, 3])
        outward.outputs[0].type = present.type
        graph.append(outward)
        _replace_output(graph, present, outward.outputs[0])
        present = outward.outputs[0]
    past.shape = ir.Shape(["batch_size", sizes[1], "past_sequence_length", sizes[3]])
    present.shape = ir.Shape(["batch_size", sizes[1], "total_sequence_length", sizes[3]])
    return Cache(cache.layer, cache.which, past, present)


def _told(present: ir.Value, axis: int) -> int | None:
    """A size that follows from what makes the cache, where a file leaves it open: genai's builder does head_dim."""
    sizes = facts.dims(present)
    size = sizes[axis] if sizes is not None else None
    return size if isinstance(size, int) else None


def _replace_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    for i, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[i] = new


def _rename(
    graph: ir.Graph, input_ids: ir.Value, attention_mask: ir.Value, logits: ir.Value, caches: Sequence[Cache]
) -> None:
    """Names of the contract."""
    wanted = {input_ids: "input_ids", attention_mask: "attention_mask", logits: "logits"}
    for cache in caches:
        wanted[cache.past], wanted[cache.present] = cache.names
    rename(graph, wanted)


def rename(graph: ir.Graph, wanted: Mapping[ir.Value, str]) -> None:
    """Give values the names that are wanted; another value that has one gives it up."""
    names = set(wanted.values())
    for value in [*graph.inputs, *(v for node in graph for v in node.outputs), *graph.initializers.values()]:
        if value.name in names and wanted.get(value) != value.name:
            value.name = f"{value.name}.original"
    for value, name in wanted.items():
        value.name = name


def _reorder(values: MutableSequence[ir.Value], first: Sequence[ir.Value]) -> None:
    rest = [value for value in values if value not in set(first)]
    values.clear()
    values.extend([*first, *rest])

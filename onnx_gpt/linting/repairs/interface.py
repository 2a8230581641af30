"""Names and types of inputs and outputs: told by where they flow, whatever they are called."""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.control.names import rename
from graph_passes.matching import make
from onnx_gpt.linting.draft import Draft
from onnx_gpt.linting.graph_file import PAST, GraphFile
from onnx_gpt.linting.sizes import told_apart

OF = "graph"
CODES = (
    "input-missing",
    "input-unknown",
    "input-dtype",
    "output-missing",
    "cache-names",
    "cache-incomplete",
    "genai-names",
    "genai-integers",
)


def repair(draft: Draft) -> Draft:
    for graph in draft.graphs:
        draft = draft.note(*_unused(draft, graph), *_names(graph), *_types(graph))
    return draft


def _unused(draft: Draft, graph: GraphFile) -> list[str]:
    """Inputs that the runtime does not feed, and nothing reads."""
    changed = []
    for value in list(graph.graph.inputs):
        name = str(value.name)
        known = name in draft.subject.expected.inputs or PAST.fullmatch(name) or value.is_initializer()
        if not known and not value.uses():
            graph.graph.inputs.remove(value)
            changed.append(f"{graph.name}: {name}, which nothing reads, is no input")
    return changed


def _names(graph: GraphFile) -> list[str]:
    found = told_apart(graph)
    if found is None:
        return []
    interface, caches = found
    wanted = {interface.input_ids: "input_ids"}
    if interface.attention_mask is not None:
        wanted[interface.attention_mask] = "attention_mask"
    if interface.position_ids is not None:
        wanted[interface.position_ids] = "position_ids"
    for cache in caches:
        wanted[cache.past], wanted[cache.present] = cache.names
    rest = [value for value in graph.graph.outputs if value not in wanted and len(value.shape or ()) == 3]
    if len(rest) == 1:
        wanted[rest[0]] = "logits"
    changed = [(str(value.name), name) for value, name in wanted.items() if value.name != name]
    rename(graph.graph, wanted)
    return [f"{graph.name}: {old} is called {new}" for old, new in changed]


def _types(graph: GraphFile) -> list[str]:
    """Tokens, mask and positions as int64; what read another integer reads a cast."""
    changed = []
    for value in list(graph.graph.inputs):
        dtype = value.dtype
        if value.name not in ("input_ids", "attention_mask", "position_ids") or dtype is None:
            continue
        if dtype == ir.DataType.INT64 or not dtype.is_integer():
            continue
        cast = make("Cast", [value], f"{value.name}.original", to=dtype)
        for node, index in tuple(value.uses()):
            if node is not cast:
                node.replace_input_with(index, cast.outputs[0])
        graph.graph.insert_before(graph.graph[0], cast)
        value.type = ir.TensorType(ir.DataType.INT64)
        changed.append(f"{graph.name}: {value.name} is int64, and was {dtype.name.lower()}")
    return changed

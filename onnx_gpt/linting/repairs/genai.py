"""genai_config.json out of the graph; names, a type and lengths that onnxruntime-genai takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from onnx_gpt.bundle.targets import BundleFacts
from onnx_gpt.bundle.targets.genai import genai_config
from onnx_gpt.linting.checks.genai import INPUTS, NAME, OUTPUTS, TYPES
from onnx_gpt.linting.draft import Draft
from onnx_gpt.linting.repairs.config import facts_of
from onnx_gpt.linting.subject import table

OF = "document"
CODES = ("file-absent", "genai-names", "genai-type", "genai-length", "genai-file", "config-graph-mismatch")


def repair(draft: Draft) -> Draft:
    if draft.subject.target != "genai" or not draft.graphs:
        return draft
    if NAME not in draft.documents:
        made = _made(draft)
        return draft if made is None else draft.write(NAME, made, "made of the graph")
    return _corrected(draft)


def _made(draft: Draft) -> dict[str, Any] | None:
    facts = facts_of(draft)
    if facts is None or facts.context_length is None:
        return None
    generation = json.dumps(draft.documents.get("generation_config.json", {})).encode()
    bundle = BundleFacts(
        facts, draft.documents.get("config.json", {}), {"generation_config.json": generation}
    )
    config = genai_config(bundle, facts)
    config["model"]["decoder"] |= _names(draft)
    return config


def _corrected(draft: Draft) -> Draft:
    document = draft.documents[NAME]
    model, search = dict(table(document, "model")), dict(table(document, "search"))
    decoder = {**table(model, "decoder"), **_names(draft), **_sizes(draft)}
    if facts := facts_of(draft):
        model["vocab_size"] = facts.vocab_size or model.get("vocab_size")
    if model.get("type") not in TYPES:
        model["type"] = "decoder"
    context, longest = model.get("context_length"), search.get("max_length")
    if isinstance(context, int) and isinstance(longest, int) and longest > context:
        search["max_length"] = context
    new = {**document, "model": {**model, "decoder": decoder}, "search": search}
    return draft if new == document else draft.write(NAME, new, "names, type, sizes and lengths corrected")


def _names(draft: Draft) -> Mapping[str, Any]:
    """The file, and the contract's names of what the graph has."""
    graph = draft.graphs[0]
    has = {str(value.name) for value in (*graph.graph.inputs, *graph.graph.outputs)}

    def there(names: Mapping[str, str]) -> dict[str, str]:
        return {key: name for key, name in names.items() if name.replace("%d", "0") in has}

    return {"filename": draft.place(graph), "inputs": there(INPUTS), "outputs": there(OUTPUTS)}


def _sizes(draft: Draft) -> Mapping[str, int]:
    facts = facts_of(draft)
    if facts is None:
        return {}
    return {
        "head_size": facts.head_dim,
        "num_attention_heads": facts.heads,
        "num_hidden_layers": facts.layers,
        "num_key_value_heads": facts.kv_heads,
    }

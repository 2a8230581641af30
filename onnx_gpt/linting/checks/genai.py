"""genai_config.json: names of the graph, a type that the runtime has, and a length that the model has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir

from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.graph_file import GraphFile
from onnx_gpt.linting.subject import Subject, table

TARGETS = ("genai",)

NAME = "genai_config.json"
TYPES = frozenset(
    """
    chatglm decoder ernie4_5 gemma gemma2 gemma3_text gemma4_text gptoss granite granitemoehybrid hunyuandensev1
    internlm2 lfm2 llama mistral nemotron olmo phi phimoe phi3 phi3small qwen2 qwen3 qwen3_5_moe_text qwen3_5_text
    smollm3
    """.split()  # noqa: SIM905 (a table)
)
"""src/models/model_type.h; gpt2, which means one cache of keys and values together, is left out."""

INPUTS = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "position_ids": "position_ids",
    "past_key_names": "past_key_values.%d.key",
    "past_value_names": "past_key_values.%d.value",
}
OUTPUTS = {
    "logits": "logits",
    "present_key_names": "present.%d.key",
    "present_value_names": "present.%d.value",
}
"""Names that the runtime takes where the configuration gives none (src/config.h)."""


def check(subject: Subject) -> Iterator[Finding]:
    config = subject.documents.get(NAME)
    if config is None:
        return
    model = table(config, "model")
    decoder = table(model, "decoder")
    yield from _type(model)
    yield from _length(model, table(config, "search"))
    for graph in subject.graphs:
        yield from _names(graph, table(decoder, "inputs"), table(decoder, "outputs"), decoder)
        yield from _same_type(graph)
    if not subject.graphs or decoder.get("filename", "model.onnx") not in subject.files:
        yield Finding(
            "genai-file",
            "error",
            f"{NAME}: model.decoder.filename",
            f"{decoder.get('filename')!r} is not there",
            "name the model file",
            mechanical=bool(subject.graphs),
        )


def _type(model: Mapping[str, Any]) -> Iterator[Finding]:
    if model.get("type") not in TYPES:
        cause = "means one tensor for keys and values" if model.get("type") == "gpt2" else "is no decoder's"
        yield Finding(
            "genai-type",
            "error",
            f"{NAME}: model.type",
            f"{model.get('type')!r} {cause} to the runtime",
            "write decoder",
            mechanical=True,
        )


def _length(model: Mapping[str, Any], search: Mapping[str, Any]) -> Iterator[Finding]:
    context, longest = model.get("context_length"), search.get("max_length")
    if not isinstance(context, int) or context <= 0:
        yield Finding(
            "genai-length",
            "error",
            f"{NAME}: model.context_length",
            f"it is {context!r}: no text fits",
            "state how many tokens the model holds",
        )
    elif isinstance(longest, int) and longest > context:
        yield Finding(
            "genai-length",
            "error",
            f"{NAME}: search.max_length",
            f"it is {longest}, beyond the model's {context}: the runtime refuses to generate",
            "make it no more than context_length",
            mechanical=True,
        )


def _names(
    graph: GraphFile, inputs: Mapping[str, Any], outputs: Mapping[str, Any], decoder: Mapping[str, Any]
) -> Iterator[Finding]:
    layers = decoder.get("num_hidden_layers")
    count = layers if isinstance(layers, int) and 0 < layers < 10_000 else 1
    has_inputs = {str(value.name) for value in graph.graph.inputs}
    has_outputs = {str(value.name) for value in graph.graph.outputs}
    told: set[str] = set()
    for stated, known, defaults, have in (
        (inputs, "inputs", INPUTS, has_inputs),
        (outputs, "outputs", OUTPUTS, has_outputs),
    ):
        for key, default in defaults.items():
            name = str(stated.get(key, default))
            names = {name.replace("%d", str(i)) for i in range(count)} if "%d" in name else {name}
            told |= names
            if (key in stated or key in ("input_ids", "logits")) and names - have:
                yield _mismatch(graph, f"model.decoder.{known}.{key}", min(names - have))
    required = {str(value.name) for value in graph.graph.inputs if not value.is_initializer()}
    for name in sorted(required - told):
        yield _mismatch(graph, "model.decoder.inputs", name, fed=False)


def _mismatch(graph: GraphFile, key: str, name: str, *, fed: bool = True) -> Finding:
    cause = (
        f"it names {name}, which {graph.name} has not"
        if fed
        else f"{graph.name} wants {name}, which it names not"
    )
    return Finding(
        "genai-names",
        "error",
        f"{NAME}: {key}",
        cause,
        "give the graph the contract's names, and the configuration too",
        mechanical=True,
    )


def _same_type(graph: GraphFile) -> Iterator[Finding]:
    mask, positions = graph.input("attention_mask"), graph.input("position_ids")
    types: set[ir.DataType | None] = {value.dtype for value in (mask, positions) if value is not None}
    if len(types) > 1:
        yield Finding(
            "genai-integers",
            "error",
            f"{graph.name}: position_ids",
            "attention_mask and position_ids have different types, which the runtime refuses",
            "make both int64",
            mechanical=True,
        )

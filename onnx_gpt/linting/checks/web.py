"""What transformers.js makes of config.json: the cache that it feeds, the files it fetches, the model it opens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnx_gpt.bundle.targets.web import LAYER_KEYS
from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.graph_file import GraphFile
from onnx_gpt.linting.runtimes.web import SUFFIXES
from onnx_gpt.linting.subject import Subject, table

TARGETS = ("web",)

DTYPES: Mapping[str, str] = {f"model{suffix}.onnx": suffix[1:] for suffix in SUFFIXES} | {
    "model.onnx": "fp32",
    "model_quantized.onnx": "q8",
}
"""What transformers.js calls a model, by its name (src/utils/dtypes.js)."""

WASM_DEFAULT = "model_quantized.onnx"
CONFIG = "transformers.js_config"


def check(subject: Subject) -> Iterator[Finding]:
    config = subject.documents.get("config.json")
    if config is not None:
        yield from _cache(subject, config)
        for graph in subject.graphs:
            yield from _chunks(graph, config)
    for graph in subject.graphs:
        yield from _keep(graph)
        yield from _slow(graph)
    names = {Path(graph.name).name for graph in subject.graphs}
    if names and WASM_DEFAULT not in names and not table(config or {}, CONFIG).get("dtype"):
        yield Finding(
            "model-default-absent",
            "warning",
            f"onnx/{WASM_DEFAULT}",
            "a page that names no dtype opens it in WebAssembly, and it is not there",
            f"add it, or name a dtype in the page or in config.json's {CONFIG}",
            mechanical=len(names) == 1,
        )


def _cache(subject: Subject, config: Mapping[str, Any]) -> Iterator[Finding]:
    """An empty cache is made for the layers of config.json, found under a key that depends on model_type."""
    kind = config.get("model_type")
    key = LAYER_KEYS.get(str(kind))
    if key is None:
        yield Finding(
            "model-type-unknown",
            "error",
            "config.json: model_type",
            f"it is {kind!r}, for which transformers.js feeds no plain key/value cache",
            "name a type of the same cache, such as llama",
            mechanical=kind is None,
        )
    elif not isinstance(config.get(key), int):
        yield Finding(
            "config-key-absent",
            "error",
            f"config.json: {key}",
            f"transformers.js makes the empty cache of {kind} of it, and it is not there",
            "state the number of layers there",
            mechanical=True,
        )


def _chunks(graph: GraphFile, config: Mapping[str, Any]) -> Iterator[Finding]:
    name = Path(graph.name).name
    stated = chunks_of(table(config, CONFIG).get("use_external_data_format"), name)
    if stated != len(graph.data):
        yield Finding(
            "external-data-unlisted",
            "error",
            f"config.json: {CONFIG}.use_external_data_format",
            f"{name} has {len(graph.data)} files of weights, and {stated} are listed: a browser fetches no other",
            "list how many files each model has",
            mechanical=True,
        )


def chunks_of(value: object, name: str) -> int:
    """How many files of weights transformers.js fetches for a model, by its name or that without dtype."""
    if isinstance(value, dict):
        value = value.get(name, value.get("model", 0))
    return int(value) if isinstance(value, int) else 0


def _keep(graph: GraphFile) -> Iterator[Finding]:
    keep = graph.input("num_logits_to_keep")
    if keep is not None and keep.is_initializer():
        yield Finding(
            "keep-has-default",
            "warning",
            f"{graph.name}: num_logits_to_keep",
            "it has a default, so transformers.js does not see it: the logits of the whole prompt are computed",
            "take the default away; transformers.js then asks for one token's",
            mechanical=True,
        )


def _slow(graph: GraphFile) -> Iterator[Finding]:
    name = Path(graph.name).name
    packed = sum(node.op_type == "MatMulNBits" for node in graph.graph)
    if packed and name == WASM_DEFAULT:
        yield Finding(
            "nbits-on-wasm",
            "warning",
            graph.name,
            f"{packed} MatMulNBits have no fast kernel in WebAssembly, where this file is the default",
            "quantize it to int8 with integer products, and keep MatMulNBits for model_q4",
        )
